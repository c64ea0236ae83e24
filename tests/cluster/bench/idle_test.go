package bench

import (
	"testing"
	"time"
)

// BenchmarkIdle says what doing nothing costs, with and without pods.
func BenchmarkIdle(b *testing.B) {
	cluster, node := start(b)
	n := number(b, 100)
	field := plantKind(b, cluster, node.Name)
	field.warm()
	time.Sleep(*rest)
	b.ReportMetric(sayIdle(b, look(b, cluster)), "idle-cpu-%")
	made := field.createMany(n)
	time.Sleep(*rest)
	b.ReportMetric(sayIdle(b, look(b, cluster)), "idle-with-pods-cpu-%")
	if *guestKind == "http" {
		field.askEach(n)
		time.Sleep(*rest)
		b.ReportMetric(sayIdle(b, look(b, cluster)), "idle-again-with-pods-cpu-%")
	}
	field.removeMany(made.names)
}

// sayIdle returns the percentage of one CPU that all of the node used.
func sayIdle(b *testing.B, of processes) float64 {
	b.Helper()
	begin, before := time.Now(), spent(b, of)
	time.Sleep(time.Duration(*seconds) * time.Second)
	used, percent := spent(b, of).minus(before), 100/time.Since(begin).Seconds()
	all := percent * (used.agent + used.zygote + used.sandboxes)
	say("with %d pods, over %d s, %% of one CPU: agent %.3f, zygote %.3f, sandboxes %.3f; together %.3f", len(of.sandboxes), *seconds,
		percent*used.agent, percent*used.zygote, percent*used.sandboxes, all)
	return all
}
