// Package wasi gives Go programs TCP, UDP and names by wasi:sockets 0.2: types
// that net/http takes, on functions that the component model imports. The
// program has to become a component; build-large.sh does that.
package wasi

import (
	"net"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"
)

// tick is how long the poller may block. While it does no other goroutine runs,
// and none of them can wake it: timers are that late at most.
const tick = 10 * time.Millisecond

// waiter is a goroutine that waits for a pollable.
type waiter struct {
	pollable uint32
	woken    chan struct{}
}

// poller wakes goroutines when what they wait for is ready. One goroutine asks
// the host for all of them, while there are any.
var poller struct {
	sync.Mutex
	waiting []*waiter
	runs    bool
}

// side is one direction of a socket: it can wait, until it is closed or late.
type side struct {
	mu       sync.Mutex
	closed   bool
	deadline time.Time
	timer    *time.Timer
	waiter   *waiter
}

// wait waits once for a new pollable of this kind. It may return early.
func (s *side) wait(subscribe func() uint32) error {
	s.mu.Lock()
	if err := s.over(); err != nil {
		s.mu.Unlock()
		return err
	}
	w := &waiter{pollable: subscribe(), woken: make(chan struct{})}
	s.waiter = w
	s.mu.Unlock()
	poller.Lock()
	poller.waiting = append(poller.waiting, w)
	if !poller.runs {
		poller.runs = true
		go poll()
	}
	poller.Unlock()
	<-w.woken
	dropPollable(w.pollable)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over()
}

// over says why nobody may wait any more.
func (s *side) over() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case !s.deadline.IsZero() && !time.Now().Before(s.deadline):
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// close ends a wait that is under way, and those to come.
func (s *side) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	wake(s.waiter)
}

// until sets the deadline, for a wait under way too.
func (s *side) until(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.deadline = deadline
	if deadline.IsZero() {
		return
	}
	if left := time.Until(deadline); left > 0 {
		s.timer = time.AfterFunc(left, s.wake)
	} else {
		wake(s.waiter)
	}
}

// wake ends a wait that is under way.
func (s *side) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	wake(s.waiter)
}

func wake(w *waiter) {
	poller.Lock()
	defer poller.Unlock()
	for at, other := range poller.waiting {
		if other == w {
			last := len(poller.waiting) - 1
			poller.waiting[at] = poller.waiting[last]
			poller.waiting = poller.waiting[:last]
			close(w.woken)
			return
		}
	}
}

func poll() {
	var handles []uint32
	for {
		// Whoever can run runs first: the host's poll stops all of them.
		runtime.Gosched()
		poller.Lock()
		if len(poller.waiting) == 0 {
			poller.runs = false
			poller.Unlock()
			return
		}
		handles = handles[:0]
		for _, w := range poller.waiting {
			handles = append(handles, w.pollable)
		}
		timer := subscribeDuration(uint64(tick))
		handles = append(handles, timer)
		ready := ask(handles)
		dropPollable(timer)
		still := poller.waiting[:0]
		for at, w := range poller.waiting {
			if ready[at] {
				close(w.woken)
			} else {
				still = append(still, w)
			}
		}
		clear(poller.waiting[len(still):])
		poller.waiting = still
		poller.Unlock()
	}
}

// ask says which of the pollables are ready, once one is.
func ask(handles []uint32) []bool {
	ready := make([]bool, len(handles))
	forget()
	r := call(func(result pointer) {
		pollList(unsafe.Pointer(&handles[0]), uint32(len(handles)), result)
	})
	for _, at := range unsafe.Slice((*uint32)(unsafe.Add(nil, r.u32(0))), r.u32(4)) {
		ready[at] = true
	}
	return ready
}
