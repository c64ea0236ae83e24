package wasi

import "unsafe"

// The component model has the host place lists into the guest's memory, by
// calling these functions. Both give out pieces of fixed arrays and run nothing
// of Go's runtime, which may be in the middle of anything at that moment.

// given holds what the host hands over in one call. The largest is a datagram.
var given [160 << 10]byte

// used of given, in bytes.
var used uintptr

// forget lets the next call use all of given. What the one before returned has
// to be copied by then.
func forget() { used = 0 }

//go:nosplit
//go:wasmexport cabi_realloc
func realloc(_, _, align, size uint32) uint32 {
	from := up(uintptr(unsafe.Pointer(&given))+used, align)
	to := from + uintptr(size)
	if to > uintptr(unsafe.Pointer(&given))+unsafe.Sizeof(given) {
		return none
	}
	used = to - uintptr(unsafe.Pointer(&given))
	return uint32(from)
}

// kept is the memory of the adapter that stands between preview 1 and 0.2: a
// stack and its state, 64 KiB each. It asks for them once, before Go's runtime
// is up. Without this function it would grow the memory, and Go would take what
// has grown for its own.
var kept [256 << 10]byte

var keptUsed uintptr

//go:nosplit
//go:wasmexport cabi_realloc_adapter
func reallocAdapter(_, _, align, size uint32) uint32 {
	from := up(uintptr(unsafe.Pointer(&kept))+keptUsed, align)
	to := from + uintptr(size)
	if to > uintptr(unsafe.Pointer(&kept))+unsafe.Sizeof(kept) {
		return none
	}
	keptUsed = to - uintptr(unsafe.Pointer(&kept))
	return uint32(from)
}

// none is outside of every memory: the host stops the guest.
const none = ^uint32(0)

//go:nosplit
func up(at uintptr, align uint32) uintptr {
	mask := uintptr(align) - 1
	return (at + mask) &^ mask
}
