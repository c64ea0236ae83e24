package room

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
)

// Network is a file that is the room's network namespace.
func (r *Room) Network() string { return fmt.Sprintf("/proc/%d/ns/net", r.Holder()) }

// Path is where this process finds a file of the room, also one that is mounted
// only there.
func (r *Room) Path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", r.Holder(), inside)
}

// Dial connects to an IP address and port from within a network namespace, from
// the given address of it or, if that is the zero one, from any. The connection
// stays there, wherever it is used.
func Dial(ctx context.Context, namespace string, source netip.Addr, network, address string) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		conn, err := func() (net.Conn, error) {
			file, err := os.Open(namespace)
			if err != nil {
				return nil, err
			}
			defer file.Close()
			if _, _, errno := syscall.RawSyscall(sysSetns, file.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
				return nil, fmt.Errorf("entering %s: %w", namespace, errno)
			}
			// An address needs no look-up, so that the socket is made on this thread.
			dialer := &net.Dialer{}
			if source.IsValid() {
				dialer.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
			}
			return dialer.DialContext(ctx, network, address)
		}()
		done <- dialled{conn, err}
	}()
	result := <-done
	return result.conn, result.err
}
