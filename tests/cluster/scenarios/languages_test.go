package scenarios

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// Where the servers of each language listen.
const (
	tcpPort   = "7000"
	udpPort   = "7001"
	greetPort = "8080"
)

// compiled is how long a node may take until guests as large as those of this file
// run: an interpreter of Python is 20 MB of WebAssembly. 9 MB took two minutes on a
// machine that was busy with other builds.
const compiled = 10 * time.Minute

// crowdSize is how many connections a client has open at once.
const crowdSize = "300"

// language is the guests of one language: each a server and a client.
type language struct {
	name     string
	net      string   // image for TCP, UDP and names
	web      string   // image of the HTTP server
	serve    []string // its arguments
	greeting string   // path of its greeting, and what that says
	says     string
	calls    string   // image of the HTTP client
	call     []string // its arguments before the URL
}

func languages(t *testing.T, b *bed.Bed) []language {
	serve, fetch := []string{"http", greetPort}, []string{"fetch"}
	c, inGo := b.Image(t, "c-net.wasm"), b.LargeImage(t, "go-net.wasm")
	python := b.LargeImage(t, "py-net.wasm")
	return []language{
		{"rust", b.Image(t, "net.wasm"), b.Image(t, "http.wasm"), nil, "/", "Hello from WebAssembly!\n", b.Image(t, "fetch.wasm"), nil},
		{"c", c, c, serve, "/hello", "Hello from C!\n", c, fetch},
		{"go", inGo, inGo, serve, "/hello", "Hello from Go!\n", inGo, fetch},
		{"python", python, b.LargeImage(t, "py-http.wasm"), nil, "/hello", "Hello from Python!\n", python, fetch},
	}
}

// url is what a client calls to be greeted by a server.
func (l language) url(host string) string {
	return "http://" + net.JoinHostPort(host, greetPort) + l.greeting
}

// server is a pod that serves TCP, UDP and HTTP.
func (l language) server() *corev1.Pod {
	pod := always(wasmPod(l.name, l.net, "tcp-echo", tcpPort))
	pod.Spec.Containers = append(pod.Spec.Containers,
		corev1.Container{Name: "udp", Image: l.net, Args: []string{"udp-echo", udpPort}},
		corev1.Container{Name: "web", Image: l.web, Args: l.serve, Ports: []corev1.ContainerPort{{ContainerPort: 8080}}},
	)
	return pod
}

// client is a pod with a container for each call, and what each has to print.
func (l language) client(servers []language, addresses map[string]string, crowded string) (*corev1.Pod, map[string]string) {
	pod := wasmPod(l.name+"-client", "")
	pod.Spec.Containers = nil
	want := map[string]string{}
	call := func(name, image, says string, args ...string) {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name, Image: image, Args: args})
		want[name] = says
	}
	for _, server := range servers {
		address, name := addresses[server.name], server.name+".test"
		pod.Spec.HostAliases = append(pod.Spec.HostAliases, corev1.HostAlias{IP: address, Hostnames: []string{name}})
		host := name
		if l.name == "rust" {
			host = address // that guest looks names up by another call only
		}
		text := l.name + " calls " + server.name
		call("tcp-"+server.name, l.net, text+"\n", "tcp-get", host, tcpPort, text)
		call("udp-"+server.name, l.net, text+"\n", "udp-get", host, udpPort, text)
		call("web-"+server.name, l.calls, "200\n"+server.says, append(l.call, server.url(name))...)
		call("lookup-"+server.name, l.net, address+"\n", "lookup", name)
	}
	call("crowd", l.net, crowdSize+" open\n"+crowdSize+" echoed\n", "connections", crowdSize, addresses[crowded], tcpPort)
	return pod, want
}

// TestGuestsOfEachLanguageServeAndCallEachOther has guests in Rust, C, Go and
// Python call those in Rust, C, Go and Python, by TCP, UDP and HTTP, by name. Most of
// the time their node compiles, which it does at a low priority.
func TestGuestsOfEachLanguageServeAndCallEachOther(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	all := languages(t, b)
	for _, language := range all {
		create(t, b, ns, on(node, language.server()))
	}
	addresses := map[string]string{}
	for _, language := range all {
		addresses[language.name] = awaitServer(t, b, ns, language)
	}

	for at, language := range all {
		// Many connections at once: to C, Go, Python, and C again.
		crowded := all[1+at%3].name
		called(t, node, ns, language, all, addresses, crowded)
	}

	// HTTP servers that call others while they answer.
	rust := all[0]
	for _, server := range all[2:] {
		relay := "http://" + net.JoinHostPort(addresses[server.name], greetPort) + "/fetch?url=" + all[1].url(addresses["c"])
		said := output(t, b, ns, on(node, wasmPod(server.name+"-relay", rust.calls, relay)))
		same(t, "what "+server.name+" heard", said, "200\nHello from C!\n")
	}
}

// awaitServer waits until all three containers of a server serve.
func awaitServer(t *testing.T, b *bed.Bed, namespace string, l language) string {
	t.Helper()
	pod := awaitReadyWithin(t, b, namespace, l.name, compiled)
	client := b.Outside().Client(limit)
	b.WaitFor(t, l.name+" serves", limit, func() error {
		for _, container := range []string{containerName, "udp"} {
			if !strings.Contains(logs(t, b, namespace, l.name, "--container="+container), "listening") {
				return errors.New(container + " does not listen")
			}
		}
		answer, err := client.Get(l.url(pod.Status.PodIP))
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})
	return pod.Status.PodIP
}

// called runs the clients of a language and compares what they print.
func called(t *testing.T, node *bed.Node, namespace string, l language, servers []language, addresses map[string]string, crowded string) {
	t.Helper()
	b := node.Bed()
	pod, want := l.client(servers, addresses, crowded)
	create(t, b, namespace, on(node, pod))
	await(t, b, namespace, pod.Name, "has ended", compiled, func(pod *corev1.Pod) error {
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			return nil
		}
		return fmt.Errorf("it is %s", pod.Status.Phase)
	})
	for container, says := range want {
		same(t, pod.Name+"'s "+container, logs(t, b, namespace, pod.Name, "--container="+container), says)
	}
}

// TestAServerInGoHoldsManyConnections has net/http of go-net.wasm read the bodies
// of many requests at once, none of which ends before all have begun.
func TestAServerInGoHoldsManyConnections(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := on(node, always(wasmPod("server", b.LargeImage(t, "go-net.wasm"), "http", greetPort)))
	create(t, b, ns, pod)
	address := listens(t, b, ns, "server", compiled)

	const requests = 300
	client := b.Outside().Client(compiled)
	url := "http://" + net.JoinHostPort(address, greetPort) + "/echo"
	bodies := make([]*io.PipeWriter, requests)
	answers := make(chan string, requests)
	for at := range bodies {
		from, to := io.Pipe()
		bodies[at] = to
		go func() {
			response, err := client.Post(url, "text/plain", from)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			answers <- fmt.Sprint(string(text), err)
		}()
	}
	// A pipe takes what its reader has read: each request is under way then.
	for _, body := range bodies {
		if _, err := io.WriteString(body, "first "); err != nil {
			t.Fatal(err)
		}
	}
	for _, body := range bodies {
		if _, err := io.WriteString(body, "last"); err != nil {
			t.Fatal(err)
		}
		body.Close()
	}
	for range bodies {
		same(t, "the echo", <-answers, "first last<nil>")
	}
}
