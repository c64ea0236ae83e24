package scenarios

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// A node without the rights that it needs says which, each in an event, and goes on
// when it has those of the cluster. Without those of the machine its pods share its
// address, and an event says that too.
func TestANodeSaysWhatItLacks(t *testing.T) {
	b := bed.Start(t)
	b.NoNetworkRights(t)
	node := b.StartNodeLacking(t, "lacking", []string{"setpriv", "--bounding-set=-net_admin"},
		"--node-routes", "--service-proxy=builtin", "--network-policy")
	told := func(reason, text string) {
		t.Helper()
		b.WaitFor(t, "the event "+reason, limit, func() error {
			events, err := b.Client.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{
				FieldSelector: "involvedObject.kind=Node,involvedObject.name=" + node.Name,
			})
			if err != nil {
				return err
			}
			var seen []string
			for _, event := range events.Items {
				if event.Reason == reason && strings.Contains(event.Message, text) {
					return nil
				}
				seen = append(seen, event.Reason+": "+event.Message)
			}
			return fmt.Errorf("there are %q", seen)
		})
	}
	told("PodsShareNodeAddress", "CAP_NET_ADMIN")
	for _, reason := range []string{"NodeRoutesForbidden", "ServiceEndpointsForbidden", "NetworkPoliciesForbidden"} {
		told(reason, "deploy/network-rbac.yaml")
	}
	// One that lacks only what policies need gets no pods either, for they would wait.
	unsure := b.StartNodeLacking(t, "unsure", nil, "--network-policy")
	b.WaitFor(t, "node "+unsure.Name+" says why it is not Ready", limit, func() error {
		seen, err := b.Client.CoreV1().Nodes().Get(t.Context(), unsure.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ready := bed.NodeCondition(seen, corev1.NodeReady)
		if ready.Status == corev1.ConditionFalse &&
			strings.Contains(ready.Message, "network is not ready: Network policies cannot be enforced") {
			return nil
		}
		return fmt.Errorf("Ready is %s: %s", ready.Status, ready.Message)
	})
	ns := b.Namespace(t)
	// Bound by hand: the scheduler leaves out a node that is not Ready.
	early := wasmPod("early", b.Image(t, "hello.wasm"), "args", "said")
	early.Spec.NodeName = node.Name
	create(t, b, ns, early)
	awaitEvent(t, b, ns, early.Name, "NetworkNotReady", "network is not ready: ")
	b.NetworkRights(t)
	awaitPhase(t, b, ns, early.Name, corev1.PodSucceeded)
	node.WaitReady(t)
	unsure.WaitReady(t)
	pod := web(t, b, ns, webPodOn(t, b, node, "web"))
	same(t, "podIP", bed.PodAddress(t, pod), node.Address)
	b.WaitServes(t, b.Outside(), node.Address.String(), webPort)
}
