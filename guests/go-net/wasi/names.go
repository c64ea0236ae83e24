package wasi

import (
	"net/netip"
	"unsafe"
)

// Lookup is the addresses of a name, or the one that it is.
func Lookup(name string) ([]netip.Addr, error) {
	r := call(func(result pointer) {
		resolveAddresses(network(), unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), result)
	})
	if err := r.code(4); err != nil {
		return nil, err
	}
	stream := r.u32(4)
	defer dropResolve(stream)
	var found []netip.Addr
	for {
		var next result
		err := finished(func() error {
			next = call(func(result pointer) { resolveNextAddress(stream, result) })
			return next.code(2)
		}, new(side), func() uint32 { return subscribeResolve(stream) })
		switch {
		case err != nil:
			return nil, err
		case next[2] == 0:
			return found, nil
		case next[4] == 0:
			found = append(found, netip.AddrFrom4([4]byte(next[6:10])))
		default:
			found = append(found, ipv6(next[6:22]))
		}
	}
}
