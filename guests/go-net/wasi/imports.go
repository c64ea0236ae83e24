package wasi

import "unsafe"

// The functions of WASI 0.2 that this package calls, in the form in which the
// component model hands them to a module: numbers, and where the result goes.

type pointer = unsafe.Pointer

//go:wasmimport wasi:io/poll@0.2.12 poll
func pollList(handles pointer, count uint32, result pointer)

//go:wasmimport wasi:io/poll@0.2.12 [resource-drop]pollable
func dropPollable(pollable uint32)

//go:wasmimport wasi:clocks/monotonic-clock@0.2.12 subscribe-duration
func subscribeDuration(nanoseconds uint64) uint32

//go:wasmimport wasi:io/error@0.2.12 [resource-drop]error
func dropError(err uint32)

//go:wasmimport wasi:io/streams@0.2.12 [method]input-stream.read
func read(stream uint32, most uint64, result pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]input-stream.subscribe
func subscribeInput(stream uint32) uint32

//go:wasmimport wasi:io/streams@0.2.12 [resource-drop]input-stream
func dropInput(stream uint32)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.check-write
func checkWrite(stream uint32, result pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.write
func write(stream uint32, bytes pointer, count uint32, result pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.flush
func flush(stream uint32, result pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.subscribe
func subscribeOutput(stream uint32) uint32

//go:wasmimport wasi:io/streams@0.2.12 [resource-drop]output-stream
func dropOutput(stream uint32)

//go:wasmimport wasi:sockets/instance-network@0.2.12 instance-network
func instanceNetwork() uint32

//go:wasmimport wasi:sockets/ip-name-lookup@0.2.12 resolve-addresses
func resolveAddresses(network uint32, name pointer, length uint32, result pointer)

//go:wasmimport wasi:sockets/ip-name-lookup@0.2.12 [method]resolve-address-stream.resolve-next-address
func resolveNextAddress(stream uint32, result pointer)

//go:wasmimport wasi:sockets/ip-name-lookup@0.2.12 [method]resolve-address-stream.subscribe
func subscribeResolve(stream uint32) uint32

//go:wasmimport wasi:sockets/ip-name-lookup@0.2.12 [resource-drop]resolve-address-stream
func dropResolve(stream uint32)

//go:wasmimport wasi:sockets/tcp-create-socket@0.2.12 create-tcp-socket
func createTCP(family uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.start-bind
func startBindTCP(socket, network, kind, a, b, c, d, e, f, g, h, i, j, k uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.finish-bind
func finishBindTCP(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.start-listen
func startListen(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.finish-listen
func finishListen(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.accept
func accept(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.start-connect
func startConnect(socket, network, kind, a, b, c, d, e, f, g, h, i, j, k uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.finish-connect
func finishConnect(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.local-address
func localAddressTCP(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.remote-address
func remoteAddressTCP(socket uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.shutdown
func shutdown(socket, direction uint32, result pointer)

//go:wasmimport wasi:sockets/tcp@0.2.12 [method]tcp-socket.subscribe
func subscribeTCP(socket uint32) uint32

//go:wasmimport wasi:sockets/tcp@0.2.12 [resource-drop]tcp-socket
func dropTCP(socket uint32)

//go:wasmimport wasi:sockets/udp-create-socket@0.2.12 create-udp-socket
func createUDP(family uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]udp-socket.start-bind
func startBindUDP(socket, network, kind, a, b, c, d, e, f, g, h, i, j, k uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]udp-socket.finish-bind
func finishBindUDP(socket uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]udp-socket.local-address
func localAddressUDP(socket uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]udp-socket.stream
func streamUDP(socket, some, kind, a, b, c, d, e, f, g, h, i, j, k uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]udp-socket.subscribe
func subscribeUDP(socket uint32) uint32

//go:wasmimport wasi:sockets/udp@0.2.12 [resource-drop]udp-socket
func dropUDP(socket uint32)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]incoming-datagram-stream.receive
func receive(stream uint32, most uint64, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]incoming-datagram-stream.subscribe
func subscribeIncoming(stream uint32) uint32

//go:wasmimport wasi:sockets/udp@0.2.12 [resource-drop]incoming-datagram-stream
func dropIncoming(stream uint32)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]outgoing-datagram-stream.check-send
func checkSend(stream uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]outgoing-datagram-stream.send
func send(stream uint32, datagrams pointer, count uint32, result pointer)

//go:wasmimport wasi:sockets/udp@0.2.12 [method]outgoing-datagram-stream.subscribe
func subscribeOutgoing(stream uint32) uint32

//go:wasmimport wasi:sockets/udp@0.2.12 [resource-drop]outgoing-datagram-stream
func dropOutgoing(stream uint32)
