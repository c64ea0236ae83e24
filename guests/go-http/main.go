// Command go-http is an HTTP server for WASI preview 1: net/http on a listener
// that was opened for it.
//
//	LISTEN_FDS_FIRST   the listener's descriptor (3 if it is not set)
//
//	GET  /hello        greets
//	GET  /slow?ms=N    waits first; others are answered meanwhile
//	POST /echo         sends the request's body back
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	log.SetFlags(0)
	listener, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "Hello from Go!")
	})
	http.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		milliseconds, err := strconv.Atoi(r.FormValue("ms"))
		if err != nil {
			http.Error(w, "ms must be a number", http.StatusBadRequest)
			return
		}
		time.Sleep(time.Duration(milliseconds) * time.Millisecond)
		fmt.Fprintln(w, "slept")
	})
	http.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// An error is the client's: it has gone.
		_, _ = io.Copy(w, r.Body)
	})
	fmt.Println("serving")
	log.Fatal(http.Serve(listener, nil))
}

// listen takes the listener that was opened before the start. net.Listen would
// succeed too, but with a network that exists within this process only.
func listen() (net.Listener, error) {
	first := os.Getenv("LISTEN_FDS_FIRST")
	if first == "" {
		first = "3"
	}
	fd, err := strconv.ParseUint(first, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS_FIRST is not a descriptor: %w", err)
	}
	return net.FileListener(os.NewFile(uintptr(fd), "listener"))
}
