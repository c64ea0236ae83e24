package scenarios

import (
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// showsItself checks that the Node and a pod on it show the node's addresses.
func showsItself(t *testing.T, b *bed.Bed, node *bed.Node, pod *corev1.Pod) {
	t.Helper()
	object, err := b.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var inner, host []string
	for _, address := range object.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			inner = append(inner, address.Address)
		}
	}
	for _, one := range pod.Status.HostIPs {
		host = append(host, one.IP)
	}
	for what, got := range map[string][]string{"InternalIPs of the Node": inner, "hostIPs of the pod": host} {
		if want := texts(node.Addresses); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	same(t, "hostIP", pod.Status.HostIP, node.Address.String())
}

func TestANodeIsReachedByBothFamilies(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNodeOf(t, "both", []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol})
	ns := b.Namespace(t)
	pod := webPodOn(t, b, node, "ported")
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8084, HostPort: 18084}}
	host := webPodOn(t, b, node, "host")
	host.Spec.HostNetwork = true
	host.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8085}}
	showsItself(t, b, node, web(t, b, ns, pod))
	atHost := web(t, b, ns, host)
	showsItself(t, b, node, atHost)
	if got := bed.PodAddresses(t, atHost); !slices.Equal(got, node.Addresses) {
		t.Errorf("podIPs of the host's network: got %v, want %v", got, node.Addresses)
	}
	serving(t, b, ns, hosted(echoPodOn(t, b, node, "four", "0.0.0.0"), echoPort, 18086, "", corev1.ProtocolUDP))
	serving(t, b, ns, hosted(echoPodOn(t, b, node, "six", "::"), echoPort, 18087, "", corev1.ProtocolUDP))
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, address := range slices.Concat(node.Addresses, loopback) {
		b.WaitServes(t, b.Outside(), address.String(), 18084)
		number := 18086
		if address.Is6() {
			number = 18087
		}
		waitEchoed(t, b, address.String(), number)
	}
	for _, address := range texts(node.Addresses) {
		b.WaitServes(t, b.Outside(), address, 8085)
		// The node's own API is there too, with a certificate that says so.
		conn, err := b.Outside().Dial(t.Context(), "tcp", net.JoinHostPort(address, strconv.Itoa(int(node.Port))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// Nobody signed it but the node.
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Fatalf("the node's API at %s: %v", address, err)
		}
		if err := client.ConnectionState().PeerCertificates[0].VerifyHostname(address); err != nil {
			t.Error(err)
		}
	}
}

func TestANodeMayBeOfIPv6Alone(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNodeOf(t, "six", []corev1.IPFamily{corev1.IPv6Protocol})
	ns := b.Namespace(t)
	pod := web(t, b, ns, webPodOn(t, b, node, "web"))
	showsItself(t, b, node, pod)
	// The family of the node goes first.
	first := bed.PodAddresses(t, pod)[0]
	if !first.Is6() {
		t.Errorf("podIP is %v", first)
	}
	b.WaitServes(t, b.Outside(), first.String(), webPort)
	// The API server calls the node by the one address that it has.
	talker := on(node, wasmPod("talker", b.Image(t, "hello.wasm"), "args", "said"))
	same(t, "log", output(t, b, ns, talker), "said\n")
}

// The machine's network may change under the agent, which keeps its addresses.
func TestANodeSaysThatItLostItsAddress(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "moved")
	b.IP(t, "address", "delete", node.Address.String()+"/24", "dev", "node0")
	b.WaitFor(t, "the agent says so", limit, func() error { return node.Says("the node's address is gone") })
}
