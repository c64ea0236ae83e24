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
	return within(namespace, func() (net.Conn, error) {
		// An address needs no look-up, so that the socket is made on this thread.
		dialer := &net.Dialer{}
		if source.IsValid() && network == "udp" {
			dialer.LocalAddr = &net.UDPAddr{IP: source.AsSlice()}
		} else if source.IsValid() {
			dialer.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
		}
		return dialer.DialContext(ctx, network, address)
	})
}

// Listen listens for TCP at an IP address and any port within a network namespace.
func Listen(namespace string, address netip.Addr) (net.Listener, error) {
	return within(namespace, func() (net.Listener, error) {
		return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	})
}

// ListenPacket is Listen for UDP.
func ListenPacket(namespace string, address netip.Addr) (net.PacketConn, error) {
	return within(namespace, func() (net.PacketConn, error) {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	})
}

// within does something on a thread that is in a network namespace.
func within[T any](namespace string, do func() (T, error)) (T, error) {
	type done struct {
		value T
		err   error
	}
	results := make(chan done, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		value, err := func() (T, error) {
			var none T
			file, err := os.Open(namespace)
			if err != nil {
				return none, err
			}
			defer file.Close()
			if _, _, errno := syscall.RawSyscall(sysSetns, file.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
				return none, fmt.Errorf("entering %s: %w", namespace, errno)
			}
			return do()
		}()
		results <- done{value, err}
	}()
	result := <-results
	return result.value, result.err
}
