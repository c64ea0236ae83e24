package bench

import "testing"

// BenchmarkScale makes many pods at once and deletes them at once.
func BenchmarkScale(b *testing.B) {
	cluster, node := start(b)
	n := number(b, 100)
	field := plant(b, cluster, node.Name)
	field.warm()
	var ready, gone []float64
	for range *rounds {
		before := spent(b, look(b, cluster))
		made := field.createMany(n)
		cost := spent(b, look(b, cluster)).minus(before)
		say("%d created in %.2f s", n, made.requests.Seconds())
		for _, some := range []int{10, 25, 50, 100, 250, 500, 1000} {
			if some < n {
				say("  %d Ready after %.2f s", some, made.since[some-1])
			}
		}
		say("  all Ready after %.2f s", made.since[n-1])
		say("  each, create to Ready, ms: %s", summarize(made.each))
		say("  CPU seconds: agent %.2f, zygote %.2f, sandboxes %.2f", cost.agent, cost.zygote, cost.sandboxes)
		ended := field.removeMany(made.names)
		say("  all gone after %.2f s; each, delete to gone, ms: %s", ended.since[n-1], summarize(ended.each))
		ready, gone = append(ready, 1000*made.since[n-1]), append(gone, 1000*ended.since[n-1])
	}
	say("%d Ready, median of rounds, ms: %s", n, spread(ready))
	say("%d gone, median of rounds, ms: %s", n, spread(gone))
	b.ReportMetric(summarize(ready).p50, "all-ready-ms")
	b.ReportMetric(summarize(gone).p50, "all-gone-ms")
}
