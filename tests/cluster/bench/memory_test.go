package bench

import (
	"testing"
	"time"
)

// BenchmarkMemory says what one more idle pod costs, in KiB.
func BenchmarkMemory(b *testing.B) {
	cluster, node := start(b)
	n := number(b, 100)
	field := plant(b, cluster, node.Name)
	field.warm()
	time.Sleep(*rest)
	empty, system := look(b, cluster), machine(b)
	if len(empty.sandboxes) != 0 {
		b.Fatalf("%d sandboxes outlive their pods", len(empty.sandboxes))
	}
	idle := sayAgents(b, empty, "no pods")
	b.ReportMetric(idle, "agents-rss-KiB")

	made := field.createMany(n)
	time.Sleep(*rest)
	full, later := look(b, cluster), machine(b)
	if len(full.sandboxes) != n {
		b.Fatalf("%d sandboxes for %d pods", len(full.sandboxes), n)
	}
	sayAgents(b, full, "all pods")
	var pss, dirty, tables []float64
	for _, pid := range full.sandboxes {
		m := remember(b, pid)
		pss, dirty, tables = append(pss, m.pss), append(dirty, m.privateDirty), append(tables, m.pageTables)
	}
	say("each of %d sandboxes, KiB:", n)
	say("  PSS:           %s", summarize(pss))
	say("  Private_Dirty: %s", summarize(dirty))
	say("  page tables:   %s", summarize(tables))
	b.ReportMetric(summarize(pss).p50, "pod-pss-KiB")
	b.ReportMetric(summarize(tables).p50, "pod-tables-KiB")
	say("the whole machine, per pod, KiB (the control plane's part and all noise included):")
	for _, kind := range []string{"MemAvailable", "Slab", "KernelStack", "PageTables"} {
		say("  %s: %+.1f", kind, (kibibytes(b, later, kind)-kibibytes(b, system, kind))/float64(n))
	}
	field.removeMany(made.names)
}

// sayAgents returns the RSS of agent and zygote together.
func sayAgents(b *testing.B, of processes, when string) float64 {
	b.Helper()
	agent, zygote := remember(b, of.agent[0]), remember(b, of.zygote[0])
	say("with %s, KiB: agent RSS %.0f PSS %.0f; zygote RSS %.0f PSS %.0f; together RSS %.0f PSS %.0f", when,
		agent.rss, agent.pss, zygote.rss, zygote.pss, agent.rss+zygote.rss, agent.pss+zygote.pss)
	return agent.rss + zygote.rss
}
