// Command go-net is servers and clients in Go for WASI 0.2, chosen by its first
// argument. It is built for preview 1, which gives Go its files and its clock,
// and made a component, which gives it sockets (package wasi).
//
// What the host refuses is printed as the name of the WASI error code, alone on
// a line; the exit code is then 1.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"krustlet.dev/guests/go-net/wasi"
)

const usage = `Servers say "listening on ADDRESS:PORT" and serve all at once, for ever.

go-net tcp-echo PORT                  send back what arrives, and end when the client does
go-net udp-echo PORT                  send each datagram back
go-net http PORT                      net/http: GET /hello, GET /fetch?url=URL, POST /echo

go-net tcp-get HOST PORT TEXT         send TEXT, half-close, print what comes until the end
go-net connections COUNT HOST PORT    open that many, hold all, echo on each, close them
go-net udp-get HOST PORT TEXT         send a datagram, print the one that comes within 5 s
go-net fetch URL                      net/http: print the status and the body
go-net lookup NAME                    print the addresses of a name, one a line
`

// A component has exports instead of a start: nothing calls this.
func main() {}

//go:wasmexport wasi:cli/run@0.2.12#run
func start() (failed uint32) {
	err := run(os.Args[1:])
	if err == nil {
		return 0
	}
	var code wasi.Code
	if errors.As(err, &code) {
		fmt.Println(code)
	} else {
		fmt.Println(err)
	}
	return 1
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New(usage)
	}
	switch call := args[0]; {
	case call == "tcp-echo":
		return tcpEcho(here(args[1]))
	case call == "udp-echo":
		return udpEcho(here(args[1]))
	case call == "http":
		return serve(here(args[1]))
	case call == "fetch":
		return fetch(args[1])
	case call == "lookup":
		return lookup(args[1])
	case call == "tcp-get" && len(args) == 4:
		return tcpGet(args[1], args[2], args[3])
	case call == "udp-get" && len(args) == 4:
		return udpGet(args[1], args[2], args[3])
	case call == "connections" && len(args) == 4:
		return connections(args[1], args[2], args[3])
	default:
		return errors.New(usage)
	}
}

func lookup(name string) error {
	addresses, err := wasi.Lookup(name)
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

// here is that port on every address of the pod. What is no port is port 0.
func here(port string) netip.AddrPort {
	number, _ := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(number))
}

// there is the first address of a host.
func there(host, port string) (netip.AddrPort, error) {
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addresses, err := wasi.Lookup(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addresses[0], uint16(number)), nil
}
