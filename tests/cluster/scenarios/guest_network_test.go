package scenarios

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// serving runs a pod of a server that says `listening`, or `serving`, and
// returns its address once it has.
func serving(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) string {
	t.Helper()
	create(t, b, namespace, always(pod))
	return listens(t, b, namespace, pod.Name, limit)
}

// listens waits until such a pod is Ready, which takes as long as its image is large,
// and listens.
func listens(t *testing.T, b *bed.Bed, namespace, name string, within time.Duration) string {
	t.Helper()
	ready := awaitReadyWithin(t, b, namespace, name, within)
	b.WaitFor(t, name+" listens", limit, func() error {
		if said := logs(t, b, namespace, name); !strings.Contains(said, "listening") && !strings.Contains(said, "serving") {
			return io.ErrNoProgress
		}
		return nil
	})
	return ready.Status.PodIP
}

// port declares a TCP port, for which a preview 1 module gets a listener.
func port(pod *corev1.Pod, number int32) *corev1.Pod {
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: number}}
	return pod
}

func TestGuestsTalkOverTCP(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	server := serving(t, b, ns, wasmPod("server", image, "tcp-echo", "8080"))

	said := output(t, b, ns, wasmPod("client", image, "tcp-get", server, "8080", "over TCP"))
	same(t, "the echo", said, "over TCP\n")
	said = output(t, b, ns, wasmPod("crowd", image, "connections", "500", server, "8080"))
	same(t, "what the crowd says", said, "500 open\n500 echoed\n")
}

func TestGuestsTalkOverUDP(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	// A guest binds to a low port without a right.
	server := serving(t, b, ns, wasmPod("server", image, "udp-echo", "53"))

	said := output(t, b, ns, wasmPod("client", image, "udp-get", server, "53", "over UDP"))
	same(t, "the echo", said, "over UDP\n")
}

func TestAGuestCallsAnHTTPGuest(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	server := port(always(wasmPod("server", b.Image(t, "http.wasm"))), 8080)
	create(t, b, ns, server)
	address := awaitReady(t, b, ns, "server").Status.PodIP

	url := "http://" + net.JoinHostPort(address, "8080") + "/status?code=418"
	said := output(t, b, ns, wasmPod("client", b.Image(t, "fetch.wasm"), url))
	same(t, "the answer", said, "418\n418\n")
}

func TestGuestsOfWASI03ServeAndCallEachOther(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "net3.wasm")
	tcp := serving(t, b, ns, wasmPod("tcp", image, "tcp-echo", "8080"))
	udp := serving(t, b, ns, wasmPod("udp", image, "udp-echo", "5353"))
	web := port(always(wasmPod("web", b.Image(t, "http3.wasm"))), 8080)
	create(t, b, ns, web)
	http := net.JoinHostPort(awaitReady(t, b, ns, "web").Status.PodIP, "8080")

	said := output(t, b, ns, wasmPod("tcp-client", image, "tcp-get", tcp, "8080", "over TCP"))
	same(t, "the echo", said, "over TCP\n")
	said = output(t, b, ns, wasmPod("crowd", image, "connections", "300", tcp, "8080"))
	same(t, "what the crowd says", said, "300 open\n300 echoed\n")
	said = output(t, b, ns, wasmPod("udp-client", image, "udp-get", udp, "5353", "over UDP"))
	same(t, "the echo", said, "over UDP\n")
	// A guest of 0.2 asks one of 0.3 to ask itself.
	url := "http://" + http + "/fetch?url=http://" + http + "/status?code=418"
	said = output(t, b, ns, wasmPod("http-client", b.Image(t, "fetch.wasm"), url))
	same(t, "the answer", said, "418\n418\n")
}

func TestAModuleInCServesManyConnectionsAtOnce(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	server := serving(t, b, ns, port(wasmPod("server", b.Image(t, "c-echo.wasm")), 8080))

	said := output(t, b, ns, wasmPod("crowd", b.Image(t, "net.wasm"), "connections", "100", server, "8080"))
	same(t, "what the crowd says", said, "100 open\n100 echoed\n")
}

func TestAModuleInGoServesHTTP(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.Registry() + "/go-http:1"
	b.Push(t, bed.GoGuest(t), image)
	create(t, b, ns, on(node, always(port(wasmPod("server", image), 8080))))
	server := listens(t, b, ns, "server", compiled)

	base := "http://" + net.JoinHostPort(server, "8080")
	client := b.Outside().Client(limit)
	body := func(response *http.Response, err error) string {
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	// A request that has not ended holds nobody else up.
	from, to := io.Pipe()
	echo := make(chan string, 1)
	go func() { echo <- body(client.Post(base+"/echo", "text/plain", from)) }()
	if _, err := to.Write([]byte("first ")); err != nil {
		t.Fatal(err)
	}
	same(t, "the answer meanwhile", body(client.Get(base+"/hello")), "Hello from Go!\n")
	if _, err := to.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	to.Close()
	same(t, "the echo", <-echo, "first last")
}
