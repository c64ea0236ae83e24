package main

import (
	"fmt"
	"net/netip"
	"time"

	"krustlet.dev/guests/go-net/wasi"
)

func udpEcho(at netip.AddrPort) error {
	socket, err := wasi.Packets(at)
	if err != nil {
		return err
	}
	fmt.Println("listening on", socket.Addr())
	buffer := make([]byte, 64<<10)
	for {
		count, from, err := socket.Receive(buffer)
		if err != nil {
			return err
		}
		if err := socket.Send(buffer[:count], from); err != nil {
			fmt.Println(err)
		}
	}
}

func udpGet(host, port, text string) error {
	to, err := there(host, port)
	if err != nil {
		return err
	}
	own := netip.IPv4Unspecified()
	if to.Addr().Is6() {
		own = netip.IPv6Unspecified()
	}
	socket, err := wasi.Packets(netip.AddrPortFrom(own, 0))
	if err != nil {
		return err
	}
	if err := socket.Send([]byte(text), to); err != nil {
		return err
	}
	socket.SetReadDeadline(time.Now().Add(5 * time.Second))
	buffer := make([]byte, 64<<10)
	count, _, err := socket.Receive(buffer)
	if err != nil {
		return err
	}
	fmt.Println(string(buffer[:count]))
	return nil
}
