package wasi

import "sync"

// life tells when a socket may be given back to the host: once it is closed and
// nobody is in a call on it, for what a call waits for belongs to the socket.
type life struct {
	mu     sync.Mutex
	busy   int
	closed bool
}

// enter begins a call; false once it is closed.
func (l *life) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.busy++
	return true
}

// leave ends a call.
func (l *life) leave(drop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	if l.closed && l.busy == 0 {
		drop()
	}
}

// close lets no call begin any more.
func (l *life) close(drop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && l.busy == 0 {
		drop()
	}
	l.closed = true
}
