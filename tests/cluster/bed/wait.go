package bed

import (
	"testing"
	"time"
)

// tick is how often a condition is looked at.
const tick = 100 * time.Millisecond

// WaitFor waits until the condition returns nil. What it returned last is in
// the message if the limit passes.
func (b *Bed) WaitFor(t testing.TB, what string, limit time.Duration, condition func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s; last seen: %v", limit, what, err)
		}
		time.Sleep(tick)
	}
}
