package wasi

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"
)

// UDP is a socket for datagrams. One goroutine may receive while another sends.
type UDP struct {
	socket, incoming, outgoing uint32
	receives, sends            side
}

// Packets opens a socket at an address. It stays until the program ends.
func Packets(at netip.AddrPort) (*UDP, error) {
	r := call(func(result pointer) { createUDP(family(at.Addr()), result) })
	if err := r.code(4); err != nil {
		return nil, err
	}
	socket := r.u32(4)
	if err := bind(startBindUDP, finishBindUDP, subscribeUDP, socket, at); err != nil {
		dropUDP(socket)
		return nil, err
	}
	r = call(func(result pointer) {
		streamUDP(socket, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, result)
	})
	if err := r.code(4); err != nil {
		dropUDP(socket)
		return nil, err
	}
	return &UDP{socket: socket, incoming: r.u32(4), outgoing: r.u32(8)}, nil
}

// Addr is where it is.
func (u *UDP) Addr() netip.AddrPort {
	r := call(func(result pointer) { localAddressUDP(u.socket, result) })
	return address(r[4:])
}

// SetReadDeadline bounds Receive.
func (u *UDP) SetReadDeadline(deadline time.Time) { u.receives.until(deadline) }

// Receive waits for a datagram.
func (u *UDP) Receive(into []byte) (int, netip.AddrPort, error) {
	for {
		forget()
		r := call(func(result pointer) { receive(u.incoming, 1, result) })
		if err := r.code(4); err != nil {
			return 0, netip.AddrPort{}, err
		}
		if r.u32(8) > 0 {
			// One datagram: where its bytes are, how many, and whence they come.
			record := memory(r.u32(4), 40)
			bytes := memory(binary.LittleEndian.Uint32(record), binary.LittleEndian.Uint32(record[4:]))
			return copy(into, bytes), address(record[8:]), nil
		}
		if err := u.receives.wait(func() uint32 { return subscribeIncoming(u.incoming) }); err != nil {
			return 0, netip.AddrPort{}, err
		}
	}
}

// datagram is an outgoing-datagram: its bytes, and where they go.
type datagram struct {
	bytes  uint32
	length uint32
	some   uint32
	kind   uint32
	// port, then IPv4's four bytes; or port, flow, IPv6's eight numbers, scope.
	address [28]byte
}

// leaving is the datagram that is being sent. It must not be on a stack.
var leaving datagram

// Send sends a datagram.
func (u *UDP) Send(bytes []byte, to netip.AddrPort) error {
	for {
		r := call(func(result pointer) { checkSend(u.outgoing, result) })
		if err := r.code(8); err != nil {
			return err
		}
		if r.u64(8) > 0 {
			break
		}
		if err := u.sends.wait(func() uint32 { return subscribeOutgoing(u.outgoing) }); err != nil {
			return err
		}
	}
	kind, fields := flat(to)
	leaving = datagram{length: uint32(len(bytes)), some: 1, kind: kind}
	leaving.bytes = uint32(uintptr(unsafe.Pointer(unsafe.SliceData(bytes))))
	binary.LittleEndian.PutUint16(leaving.address[:], to.Port())
	if kind == 0 {
		for at := range 4 {
			leaving.address[2+at] = byte(fields[1+at])
		}
	} else {
		for at := range 8 {
			binary.LittleEndian.PutUint16(leaving.address[8+2*at:], uint16(fields[2+at]))
		}
	}
	r := call(func(result pointer) { send(u.outgoing, unsafe.Pointer(&leaving), 1, result) })
	return r.code(8)
}
