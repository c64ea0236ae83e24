package scenarios

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// Nobody gives these nodes a podCIDR: pods have the one of the node's configuration,
// or the node's own address.
func TestPodsOfANodeWithoutAPodCIDR(t *testing.T) {
	b := bed.Start(t)
	ns := b.Namespace(t)
	image := b.Image(t, "http.wasm")
	const podRange = "10.245.0.0/24"
	b.PauseControllers(t)
	sharing := b.StartNode(t, "sharing")
	told := b.StartNodeWith(t, "told", map[string]any{"podCIDR": podRange})
	awaitEvent(t, b, metav1.NamespaceDefault, sharing.Name, "PodsShareNodeAddress", "Pods share the node's address: the Node has no podCIDR")

	addresses := map[*bed.Node]netip.Addr{}
	for _, node := range []*bed.Node{sharing, told} {
		pod := always(wasmPod(node.Name, image))
		// By hand: no controller says that the node may have pods.
		pod.Spec.NodeName = node.Name
		pod = web(t, b, ns, pod)
		same(t, "hostIP", pod.Status.HostIP, node.Address.String())
		addresses[node] = bed.PodAddress(t, pod)
		b.WaitServes(t, b.Outside(), addresses[node].String(), webPort)
		remove(t, b, pod)
		awaitGone(t, b, pod)
	}
	same(t, "podIP", addresses[sharing], sharing.Address)
	if !netip.MustParsePrefix(podRange).Contains(addresses[told]) {
		t.Errorf("%v is not of %s", addresses[told], podRange)
	}
}
