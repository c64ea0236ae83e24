package bench

import "testing"

// BenchmarkLatency takes one pod after another, as a user waits for one. A node
// that runs nothing goes first: what it takes is the control plane's own share.
func BenchmarkLatency(b *testing.B) {
	cluster, node := start(b)
	n := number(b, 30)

	const nothing = "nothing-1"
	cluster.StartFakeNode(b, nothing)
	floor := plant(b, cluster, nothing)
	floor.warm()
	floor.round("control plane alone", n)

	field := plant(b, cluster, node.Name)
	field.warm()
	var ready, gone []summary
	for range *rounds {
		r, g := field.round("krustlet", n)
		ready, gone = append(ready, r), append(gone, g)
	}
	for _, line := range []struct {
		what, unit string
		rounds     []summary
	}{{"create to Ready", "ready", ready}, {"delete to gone", "gone", gone}} {
		for _, rank := range []struct {
			name string
			of   func(summary) float64
		}{
			{"p50", func(s summary) float64 { return s.p50 }},
			{"p99", func(s summary) float64 { return s.p99 }},
		} {
			var values []float64
			for _, round := range line.rounds {
				values = append(values, rank.of(round))
			}
			say("%s, %s, median of rounds, ms: %s", line.what, rank.name, spread(values))
			b.ReportMetric(summarize(values).p50, line.unit+"-"+rank.name+"-ms")
		}
	}
}

func (f *field) round(who string, n int) (ready, gone summary) {
	f.b.Helper()
	var toReady, toGone []float64
	for range n {
		took := f.single()
		toReady, toGone = append(toReady, took.toReady), append(toGone, took.toGone)
	}
	ready, gone = summarize(toReady), summarize(toGone)
	say("%s: create to Ready, ms: %s", who, ready)
	say("%s: delete to gone, ms:  %s", who, gone)
	return ready, gone
}
