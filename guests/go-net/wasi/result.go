package wasi

import (
	"encoding/binary"
	"io"
	"net/netip"
	"unsafe"
)

// result is what a call wrote: a byte that says whether it failed, and behind it
// what it returned or the error. Where that begins depends on its alignment.
type result [36]byte

// area is where calls write. It must not be on a stack, for those move.
var area struct {
	_     [0]uint64 // aligned for the widest number
	bytes result
}

// call has f write a result.
func call(f func(result pointer)) result {
	f(unsafe.Pointer(&area.bytes))
	return area.bytes
}

func (r *result) u32(at int) uint32 { return binary.LittleEndian.Uint32(r[at:]) }
func (r *result) u64(at int) uint64 { return binary.LittleEndian.Uint64(r[at:]) }

// code is the error of a call of wasi:sockets, which stands at that place.
func (r *result) code(at int) error {
	if r[0] == 0 {
		return nil
	}
	return Code(r[at])
}

// broken is the error of a call on a stream, which stands at that place.
func (r *result) broken(at int) error {
	switch {
	case r[0] == 0:
		return nil
	case r[at] == 0:
		dropError(r.u32(at + 4))
		return Code(15) // connection-reset, or what else breaks a connection
	default:
		return io.EOF
	}
}

// list is a list of bytes whose place and length stand there.
func (r *result) list(at int) []byte { return memory(r.u32(at), r.u32(at+4)) }

func memory(at, length uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(nil, at)), length)
}

// address reads an ip-socket-address.
func address(bytes []byte) netip.AddrPort {
	port := binary.LittleEndian.Uint16(bytes[4:])
	if bytes[0] == 0 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(bytes[6:10])), port)
	}
	return netip.AddrPortFrom(ipv6(bytes[12:28]), port)
}

// ipv6 reads an address of eight numbers.
func ipv6(bytes []byte) netip.Addr {
	var ip [16]byte
	for at := 0; at < len(ip); at += 2 {
		ip[at], ip[at+1] = bytes[at+1], bytes[at]
	}
	return netip.AddrFrom16(ip)
}

// flat is an ip-socket-address as parameters: which family, and its fields.
func flat(to netip.AddrPort) (kind uint32, fields [11]uint32) {
	fields[0] = uint32(to.Port())
	if to.Addr().Is4() {
		for at, byte := range to.Addr().As4() {
			fields[1+at] = uint32(byte)
		}
		return 0, fields
	}
	ip := to.Addr().As16()
	for at := range 8 {
		fields[2+at] = uint32(binary.BigEndian.Uint16(ip[2*at:]))
	}
	return 1, fields
}

// Code is an error-code of wasi:sockets/network.
type Code uint8

const wouldBlock Code = 8

var names = [...]string{
	"unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout",
	"concurrency-conflict", "not-in-progress", "would-block", "invalid-state", "new-socket-limit",
	"address-not-bindable", "address-in-use", "remote-unreachable", "connection-refused",
	"connection-reset", "connection-aborted", "datagram-too-large", "name-unresolvable",
	"temporary-resolver-failure", "permanent-resolver-failure",
}

func (c Code) Error() string { return names[c] }

// family is the ip-address-family of an address.
func family(of netip.Addr) uint32 {
	if of.Is4() {
		return 0
	}
	return 1
}
