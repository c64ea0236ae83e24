package bench

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

// summary tells how numbers of one kind are spread. All are in their unit.
type summary struct {
	n                       int
	min, p50, p90, p99, max float64
}

func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	sorted := slices.Sorted(slices.Values(values))
	return summary{
		n: len(sorted), min: sorted[0], max: sorted[len(sorted)-1],
		p50: percentile(sorted, 50), p90: percentile(sorted, 90), p99: percentile(sorted, 99),
	}
}

// percentile is the smallest value that at least p percent do not exceed (the
// nearest rank): one that was seen, and with few values the 99th is the largest.
func percentile(sorted []float64, p float64) float64 {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func (s summary) String() string {
	return fmt.Sprintf("p50 %.1f  min %.1f  p90 %.1f  p99 %.1f  max %.1f  (n=%d)", s.p50, s.min, s.p90, s.p99, s.max, s.n)
}

// spread is the median of several rounds' figures, with the least and the greatest.
func spread(values []float64) string {
	s := summarize(values)
	return fmt.Sprintf("%.1f (%.1f to %.1f in %d rounds)", s.p50, s.min, s.max, s.n)
}

// few is the same without words, for columns of figures great and small.
func few(values []float64) string {
	s := summarize(values)
	return fmt.Sprintf("%.4g (%.4g to %.4g)", s.p50, s.min, s.max)
}

func TestASummaryNamesValuesThatWereSeen(t *testing.T) {
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i)
	}
	if got, want := summarize(values), (summary{n: 100, min: 1, p50: 50, p90: 90, p99: 99, max: 100}); got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
	if got, want := summarize([]float64{7}), (summary{n: 1, min: 7, p50: 7, p90: 7, p99: 7, max: 7}); got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
}

func TestTheHighestPercentileOfFewValuesIsTheLargest(t *testing.T) {
	if got := summarize([]float64{1, 2, 3}).p99; got != 3 {
		t.Errorf("%v", got)
	}
}
