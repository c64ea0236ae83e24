package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"

	"krustlet.dev/guests/go-net/wasi"
)

func tcpEcho(at netip.AddrPort) error {
	listener, err := wasi.Listen(at)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go echo(conn.(*wasi.Conn))
	}
}

func echo(conn *wasi.Conn) {
	defer conn.Close()
	_, err := io.Copy(conn, conn)
	if err == nil {
		err = conn.CloseWrite()
	}
	if err != nil {
		fmt.Println(err)
	}
}

func dial(host, port string) (*wasi.Conn, error) {
	to, err := there(host, port)
	if err != nil {
		return nil, err
	}
	return wasi.Dial(context.Background(), to)
}

func tcpGet(host, port, text string) error {
	conn, err := dial(host, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := exchange(conn, text)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, answer)
	return err
}

// exchange sends a text and its end, and reads until the other side's end.
func exchange(conn *wasi.Conn, text string) (string, error) {
	if _, err := conn.Write([]byte(text)); err != nil {
		return "", err
	}
	if err := conn.CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func connections(count, host, port string) error {
	number, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	open := make([]*wasi.Conn, number)
	for at := range open {
		if open[at], err = dial(host, port); err != nil {
			return err
		}
		defer open[at].Close()
	}
	fmt.Println(number, "open")
	failed := make(chan error)
	for at, conn := range open {
		go func() {
			answer, err := exchange(conn, strconv.Itoa(at))
			if err == nil && answer != strconv.Itoa(at) {
				err = fmt.Errorf("connection %d: not an echo: %q", at, answer)
			}
			failed <- err
		}()
	}
	for range open {
		if err := <-failed; err != nil {
			return err
		}
	}
	fmt.Println(number, "echoed")
	return nil
}
