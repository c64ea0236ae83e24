package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"

	"krustlet.dev/guests/go-net/wasi"
)

// client is net/http's, on the sockets of package wasi.
var client = &http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		to, err := there(host, port)
		if err != nil {
			return nil, err
		}
		return wasi.Dial(ctx, to)
	},
}}

func serve(at netip.AddrPort) error {
	listener, err := wasi.Listen(at)
	if err != nil {
		return err
	}
	http.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "Hello from Go!")
	})
	http.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// An error is the client's: it has gone.
		_, _ = io.Copy(w, r.Body)
	})
	http.HandleFunc("GET /fetch", func(w http.ResponseWriter, r *http.Request) {
		answer, err := client.Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		_, _ = io.Copy(w, answer.Body)
	})
	fmt.Println("listening on", listener.Addr())
	return http.Serve(listener, nil)
}

func fetch(url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	fmt.Println(answer.StatusCode)
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}
