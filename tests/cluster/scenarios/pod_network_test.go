package scenarios

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// webPort is where an http guest listens whose container declares no port.
const webPort = 8080

// web creates an http pod and waits until it is Ready.
func web(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	create(t, b, namespace, pod)
	return awaitReady(t, b, namespace, pod.Name)
}

func webPodOn(t *testing.T, b *bed.Bed, node *bed.Node, name string) *corev1.Pod {
	t.Helper()
	return on(node, always(wasmPod(name, b.Image(t, "http.wasm"))))
}

func TestPodsHaveAddressesOfTheirOwn(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	one := web(t, b, ns, webPodOn(t, b, node, "one"))
	// Among pods a low port needs no right.
	two := web(t, b, ns, port(webPodOn(t, b, node, "two"), 80))
	ports := map[string]int{"one": webPort, "two": 80}

	podRange := node.PodRange(t)
	first, second := bed.PodAddress(t, one), bed.PodAddress(t, two)
	if first == second {
		t.Errorf("both pods have %v", first)
	}
	for _, pod := range []*corev1.Pod{one, two} {
		address := bed.PodAddress(t, pod)
		if !podRange.Contains(address) || address == podRange.Addr() || address == podRange.Addr().Next() {
			t.Errorf("%v is not for a pod of %v", address, podRange)
		}
		same(t, "hostIP", pod.Status.HostIP, node.Address.String())
		b.WaitServes(t, b.Outside(), address.String(), ports[pod.Name])
		b.WaitServes(t, node.As(first), address.String(), ports[pod.Name])
	}
	// What listens for one pod does not for the node or for others.
	if err := b.Outside().Get(t.Context(), node.Address.String(), webPort); err == nil {
		t.Error("a pod answers at the node's address")
	}
}

func TestAPodOfTheHostsNetworkHasTheNodesAddress(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := webPodOn(t, b, node, "host")
	pod.Spec.HostNetwork = true
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8082}}
	ready := web(t, b, ns, pod)
	same(t, "podIP", bed.PodAddress(t, ready), node.Address)
	same(t, "hostIP", ready.Status.HostIP, node.Address.String())
	b.WaitServes(t, b.Outside(), node.Address.String(), 8082)
	// Pods with addresses of their own reach it there.
	other := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "other")))
	b.WaitServes(t, node.As(other), node.Address.String(), 8082)

	// The node's loopback is the pod's, and nobody else's.
	b.WaitServes(t, b.Outside(), "127.0.0.1", 8082)
	client := func(name string) *corev1.Pod {
		return on(node, wasmPod(name, b.Image(t, "net.wasm"), "connect", "127.0.0.1", "8082"))
	}
	ofHost := client("of-host")
	ofHost.Spec.HostNetwork = true
	if said := output(t, b, ns, ofHost); !strings.HasPrefix(said, "ok\n") {
		t.Errorf("a pod of the host's network hears at its loopback: %q", said)
	}
	create(t, b, ns, client("ordinary"))
	awaitPhase(t, b, ns, "ordinary", corev1.PodFailed)
	same(t, "what another pod hears", logs(t, b, ns, "ordinary"), refused)
}

func TestAddressesOutliveTheAgent(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "addressed")
	ns := b.Namespace(t)
	kept := web(t, b, ns, webPodOn(t, b, node, "kept"))
	address := bed.PodAddress(t, kept)
	b.WaitServes(t, b.Outside(), address.String(), webPort)
	calls := accepted(t, b, node, ns, "kept")
	history := b.WatchPod(t, ns, "kept")

	node.Kill(t)
	b.WaitServes(t, b.Outside(), address.String(), webPort)
	node.Start(t)
	node.WaitReady(t)
	node.WaitHolds(t, ns, "kept")
	b.WaitServes(t, b.Outside(), address.String(), webPort)
	node.Stop(t)
	node.Start(t)
	node.WaitReady(t)
	node.WaitHolds(t, ns, "kept")
	other := web(t, b, ns, webPodOn(t, b, node, "other"))
	if bed.PodAddress(t, other) == address {
		t.Errorf("%v was given twice", address)
	}
	b.WaitServes(t, b.Outside(), address.String(), webPort)
	for _, version := range history.Seen(t) {
		same(t, "address", bed.PodAddress(t, version), address)
		same(t, "Ready", isReady(version), true)
	}
	same(t, "container", status(get(t, b, ns, "kept")).ContainerID, status(kept).ContainerID)
	// What is counted goes on too: those of before, and three since.
	if now := accepted(t, b, node, ns, "kept"); calls == 0 || now < calls+3 {
		t.Errorf("%d connections were accepted before, %d with the next agents", calls, now)
	}
}

func TestAnAddressIsNotGivenAgainAtOnce(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "resting")
	ns := b.Namespace(t)
	seen := map[string]string{}
	for number := range 3 {
		pod := web(t, b, ns, webPodOn(t, b, node, fmt.Sprintf("pod-%d", number)))
		address := bed.PodAddress(t, pod).String()
		if other := seen[address]; other != "" {
			t.Errorf("%s has the address of %s", pod.Name, other)
		}
		seen[address] = pod.Name
		remove(t, b, pod)
		awaitGone(t, b, pod)
		// A new agent knows what this one let go.
		node.Kill(t)
		node.Start(t)
		node.WaitReady(t)
	}
}

func TestALinkThatIsRemovedComesBack(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "unplugged")
	ns := b.Namespace(t)
	address := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "web"))).String()
	b.WaitServes(t, b.Outside(), address, webPort)
	b.IP(t, "link", "delete", node.Link(t))
	b.WaitServes(t, b.Outside(), address, webPort)
}

func TestPodsOfTwoNodesReachEachOther(t *testing.T) {
	b := bed.Start(t)
	first, second := b.Node(t), b.StartNode(t, "neighbour")
	ns := b.Namespace(t)
	here := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, first, "here")))
	there := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, second, "there")))
	b.WaitServes(t, first.As(here), there.String(), webPort)
	b.WaitServes(t, second.As(there), here.String(), webPort)
}

func TestPodsShareTheNodesAddressWhereThatIsAskedFor(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "shared", "--pod-network=host")
	ns := b.Namespace(t)
	one := web(t, b, ns, webPodOn(t, b, node, "one"))
	same(t, "podIP", bed.PodAddress(t, one), node.Address)
	b.WaitServes(t, b.Outside(), node.Address.String(), webPort)

	// Nothing is lost in silence: the second says what it waits for.
	create(t, b, ns, webPodOn(t, b, node, "two"))
	two := awaitWaiting(t, b, ns, "two", "CreateContainerError")
	want := fmt.Sprintf("port %d of %s is in use on this node", webPort, node.Address)
	if message := waiting(two).Message; !strings.Contains(message, want) {
		t.Errorf("the message does not tell of %q: %q", want, message)
	}

	// So it is with all guests, also at ports that only root may have.
	for _, guest := range []struct {
		name, program, client string
		protocol              corev1.Protocol
		args                  []string
	}{
		{"c", "c-echo", "tcp-get", corev1.ProtocolTCP, nil},
		{"rust", "net", "tcp-get", corev1.ProtocolTCP, []string{"tcp-echo", "80"}},
		{"datagrams", "net", "udp-get", corev1.ProtocolUDP, []string{"udp-echo", "80"}},
	} {
		server := func(name string) *corev1.Pod {
			image := b.Image(t, guest.program+".wasm")
			pod := on(node, port(wasmPod(name+"-"+guest.name, image, guest.args...), 80))
			pod.Spec.Containers[0].Ports[0].Protocol = guest.protocol
			return pod
		}
		first, second := server("first"), server("second")
		serving(t, b, ns, first)
		create(t, b, ns, always(second))
		clash := awaitWaiting(t, b, ns, second.Name, "CreateContainerError")
		want := fmt.Sprintf("port 80 of %s is in use on this node", node.Address)
		if message := waiting(clash).Message; !strings.Contains(message, want) {
			t.Errorf("%s: the message does not tell of %q: %q", guest.name, want, message)
		}
		client := wasmPod("asks-"+guest.name, b.Image(t, "net.wasm"), guest.client, node.Address.String(), "80", "hello")
		same(t, "the echo of "+guest.name, output(t, b, ns, on(node, client)), "hello\n")
		// The second has the port once the first is gone.
		remove(t, b, get(t, b, ns, first.Name))
		last := awaitReady(t, b, ns, second.Name)
		remove(t, b, last)
		awaitGone(t, b, last)
	}
}
