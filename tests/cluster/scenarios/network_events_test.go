package scenarios

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// What a pod's network lacks, and what of its wishes was cut, is an event of the pod.
func TestPodsSayWhatTheirNetworkLacks(t *testing.T) {
	b := bed.Start(t)
	// A range that somebody gave it before it came: of four addresses one is for a pod.
	const podRange = "10.244.255.252/30"
	_, err := b.Client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "narrow"},
		Spec:       corev1.NodeSpec{PodCIDR: podRange, PodCIDRs: []string{podRange}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := b.StartNodeWith(t, "narrow", map[string]any{"clusterDNS": []string{}})
	ns := b.Namespace(t)
	one := web(t, b, ns, webPodOn(t, b, node, "one"))
	same(t, "podIP", one.Status.PodIP, "10.244.255.254")
	awaitEvent(t, b, ns, one.Name, "MissingClusterDNS", `Falling back to "Default" policy`)
	create(t, b, ns, webPodOn(t, b, node, "two"))
	awaitEvent(t, b, ns, "two", "FailedCreatePodSandBox",
		"no address left in "+podRange+": 1 pod has one; give the node a larger podCIDR, or let it have at most 1 (maxPods)")

	// Beside that of the cluster three are one too many.
	many := on(b.Node(t), wasmPod("many", b.Image(t, "hello.wasm"), "args", "said"))
	many.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53", "192.0.2.54", "192.0.2.55"}}
	create(t, b, ns, many)
	awaitEvent(t, b, ns, many.Name, "DNSConfigForming",
		"some nameservers have been omitted, the applied nameserver line is: ")
	awaitPhase(t, b, ns, many.Name, corev1.PodSucceeded)
}
