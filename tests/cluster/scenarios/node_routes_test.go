package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// families are arguments of `ip`, in the order of the cluster's ranges.
var families = []string{"-4", "-6"}

// Two nodes on one network, each a machine of its own, lead to each other's pods
// because they are asked to, and for as long as there is such a node.
func TestNodesLeadToEachOthersPods(t *testing.T) {
	b := bed.Start(t)
	b.NetworkRights(t)
	near := b.StartNodeOf(t, "near", b.Families(), "--node-routes")
	far := b.StartNodeBeside(t, near, "far", "--node-routes")
	leads := func(from, to *bed.Node, is bool) {
		t.Helper()
		for number, podRange := range to.PodRanges(t) {
			route := fmt.Sprintf("%s via %s dev ", podRange, to.Addresses[number])
			b.WaitFor(t, fmt.Sprintf("a route of %s leads to %v: %v", from.Name, podRange, is), limit, func() error {
				found := from.Routes(t, families[number])
				if is != slices.ContainsFunc(found, func(one string) bool { return strings.HasPrefix(one, route) }) {
					return fmt.Errorf("its routes are %q", found)
				}
				return nil
			})
		}
	}
	leads(near, far, true)
	leads(far, near, true)

	ns := b.Namespace(t)
	here, there := web(t, b, ns, webPodOn(t, b, near, "here")), web(t, b, ns, webPodOn(t, b, far, "there"))
	for number := range b.Families() {
		one, other := bed.PodAddresses(t, here)[number], bed.PodAddresses(t, there)[number]
		b.WaitServes(t, near.As(one), other.String(), webPort)
		b.WaitServes(t, far.As(other), one.String(), webPort)
	}

	// An agent that is not asked to removes what the one before it made.
	far.Stop(t)
	leads(far, near, true)
	far.Without(t, "--node-routes")
	far.Start(t)
	far.WaitReady(t)
	leads(far, near, false)
	leads(near, far, true)

	// Nobody is led to a node that is no more. Its agent would register it again.
	ranges := far.PodRanges(t)
	remove(t, b, there)
	awaitGone(t, b, there)
	far.Stop(t)
	if err := b.Client.CoreV1().Nodes().Delete(t.Context(), far.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for number, podRange := range ranges {
		b.WaitFor(t, fmt.Sprintf("no route of near leads to %v", podRange), limit, func() error {
			for _, route := range near.Routes(t, families[number]) {
				if strings.HasPrefix(route, podRange.String()+" ") {
					return fmt.Errorf("there is %q", route)
				}
			}
			return nil
		})
	}
	same(t, "phase of the other pod", get(t, b, ns, "here").Status.Phase, corev1.PodRunning)
}
