package bench

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkMemory says what one more idle pod costs, in KiB.
func BenchmarkMemory(b *testing.B) {
	cluster, node := start(b)
	n := number(b, 100)
	field := plantKind(b, cluster, node.Name)
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
	pod := field.sayPods(n, system, "all pods")
	b.ReportMetric(pod.pss, "pod-pss-KiB")
	b.ReportMetric(pod.pageTables, "pod-tables-KiB")
	b.ReportMetric(pod.threads, "pod-threads")
	b.ReportMetric(pod.descriptors, "pod-descriptors")
	if *guestKind == "http" {
		field.askEach(n)
		time.Sleep(*rest)
		pod := field.sayPods(n, system, "all pods, each asked once and idle again")
		b.ReportMetric(pod.pss, "asked-pod-pss-KiB")
		b.ReportMetric(pod.pageTables, "asked-pod-tables-KiB")
		b.ReportMetric(pod.threads, "asked-pod-threads")
		b.ReportMetric(pod.descriptors, "asked-pod-descriptors")
	}
	field.removeMany(made.names)
}

// askEach sends a request to each of n http pods, on a connection of its own.
func (f *field) askEach(n int) {
	f.b.Helper()
	pods, err := f.bed.Client.CoreV1().Pods(f.namespace).List(f.b.Context(), metav1.ListOptions{})
	if err != nil {
		f.b.Fatal(err)
	}
	if len(pods.Items) != n {
		f.b.Fatalf("%d pods are there, not %d", len(pods.Items), n)
	}
	for _, pod := range pods.Items {
		if err := f.bed.Outside().Get(f.b.Context(), pod.Status.PodIP, httpPort); err != nil {
			f.b.Fatal(err)
		}
	}
}

// podCost is what one sandbox takes.
type podCost struct{ pss, pageTables, threads, descriptors float64 }

// sayPods prints what n pods cost, and returns the medians of their sandboxes.
func (f *field) sayPods(n int, before map[string]string, when string) podCost {
	f.b.Helper()
	b := f.b
	full, later := look(b, f.bed), machine(b)
	if len(full.sandboxes) != n {
		b.Fatalf("%d sandboxes for %d pods", len(full.sandboxes), n)
	}
	sayAgents(b, full, when)
	var pss, dirty, tables, threads, descriptors []float64
	for _, pid := range full.sandboxes {
		m := remember(b, pid)
		pss, dirty, tables = append(pss, m.pss), append(dirty, m.privateDirty), append(tables, m.pageTables)
		running, open := counts(b, pid)
		threads, descriptors = append(threads, running), append(descriptors, open)
	}
	say("each of %d sandboxes, KiB:", n)
	say("  PSS:           %s", summarize(pss))
	say("  Private_Dirty: %s", summarize(dirty))
	say("  page tables:   %s", summarize(tables))
	say("  threads: %s; descriptors: %s (numbers, not KiB)", summarize(threads), summarize(descriptors))
	say("the whole machine, per pod, KiB (the control plane's part and all noise included):")
	for _, kind := range []string{"MemAvailable", "Slab", "KernelStack", "PageTables"} {
		say("  %s: %+.1f", kind, (kibibytes(b, later, kind)-kibibytes(b, before, kind))/float64(n))
	}
	return podCost{
		pss: summarize(pss).p50, pageTables: summarize(tables).p50,
		threads: summarize(threads).p50, descriptors: summarize(descriptors).p50,
	}
}

// sayAgents returns the RSS of agent and zygote together.
func sayAgents(b *testing.B, of processes, when string) float64 {
	b.Helper()
	agent, zygote := remember(b, of.agent[0]), remember(b, of.zygote[0])
	say("with %s, KiB: agent RSS %.0f PSS %.0f; zygote RSS %.0f PSS %.0f; together RSS %.0f PSS %.0f", when,
		agent.rss, agent.pss, zygote.rss, zygote.pss, agent.rss+zygote.rss, agent.pss+zygote.pss)
	return agent.rss + zygote.rss
}
