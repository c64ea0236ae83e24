package scenarios

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// partsOfName are those that an egress port with a name counts as; a policy may have
// 8,192 and a namespace 65,536 (docs/network-policy.md).
const partsOfName = 64

// letsAll lets all in, and out to this many ports that have a name.
func letsAll(ports int) networkingv1.NetworkPolicySpec {
	named := make([]networkingv1.NetworkPolicyPort, ports)
	for number := range named {
		named[number].Port = ptr(intstr.FromString("web"))
	}
	return networkingv1.NetworkPolicySpec{
		PolicyTypes: bothWays,
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{}},
		Egress:      []networkingv1.NetworkPolicyEgressRule{{}, {Ports: named}},
	}
}

// What policies say beyond the bounds closes whom they are about and nobody else, and
// people find out why. Who mends them has pods that are reached again.
func TestPoliciesBeyondTheBoundsCloseWhomTheyAreAboutAndSaySo(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := policed(t, b, "policed-bounds")
	app := map[string]string{"app": "web"}
	type place struct {
		ns, server string
		friend     bed.Place
	}
	settle := func() place {
		ns := b.Namespace(t)
		server := web(t, b, ns, labelled(webPodOn(t, b, node, "server"), app))
		friend := web(t, b, ns, webPodOn(t, b, node, "friend"))
		return place{ns, server.Status.PodIP, node.As(bed.PodAddress(t, friend))}
	}
	one, other := settle(), settle()
	answers := func(from bed.Place, to place) { t.Helper(); b.WaitServes(t, from, to.server, webPort) }
	// One that comes while a policy has too much waits, and says what for.
	late := func(ns, message string) {
		t.Helper()
		create(t, b, ns, labelled(webPodOn(t, b, node, "late"), app))
		awaitEvent(t, b, ns, "late", "NetworkPolicyTooLarge", message)
		same(t, "phase", get(t, b, ns, "late").Status.Phase, corev1.PodPending)
	}
	describes := func(ns, message string) {
		t.Helper()
		awaitEvent(t, b, ns, "server", "NetworkPolicyTooLarge", message)
		said := b.Kubectl(t, "describe", "pod", "--namespace="+ns, "server")
		if !strings.Contains(said, "NetworkPolicyTooLarge") || !strings.Contains(said, message) {
			t.Errorf("kubectl describe does not say %q:\n%s", message, said)
		}
	}
	answers(one.friend, one)

	t.Run("one policy, whose pods are closed", func(t *testing.T) {
		policy(t, b, one.ns, "large", app, letsAll(8192/partsOfName))
		waitRefuses(t, b, one.friend, one.server, webPort)
		const message = "one of them has more than 8192 parts"
		describes(one.ns, message)
		late(one.ns, message)
		// Pods that it does not select are not concerned.
		from := node.As(bed.PodAddress(t, get(t, b, one.ns, "server")))
		b.WaitServes(t, from, get(t, b, one.ns, "friend").Status.PodIP, webPort)

		policy(t, b, one.ns, "large", app, letsAll(8192/partsOfName-1))
		answers(one.friend, one)
		awaitReady(t, b, one.ns, "late")
	})
	t.Run("all of a namespace, which is closed", func(t *testing.T) {
		// About no pod that there is.
		const count = 65_536/(partsOfName*100) + 1
		for number := range count {
			policy(t, b, other.ns, fmt.Sprintf("many-%d", number), map[string]string{"app": "none"}, letsAll(100))
		}
		waitRefuses(t, b, other.friend, other.server, webPort)
		const message = "the NetworkPolicies of the pod's namespace have more than 65536 parts together"
		describes(other.ns, message)
		late(other.ns, message)
		// The node's probes go on, and other namespaces are as they were.
		answers(b.Outside(), other)
		same(t, "Ready", isReady(get(t, b, other.ns, "server")), true)
		answers(one.friend, one)

		policies := b.Client.NetworkingV1().NetworkPolicies(other.ns)
		if err := policies.Delete(t.Context(), "many-0", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		answers(other.friend, other)
		awaitReady(t, b, other.ns, "late")
	})
}
