package scenarios

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// familyCases are what a guest sees of Services of IPv4 and IPv6.
var familyCases = []serviceCase{
	{"each address of a Service of both families leads to endpoints of its own", func(t *testing.T, c *client) {
		c.b.BothFamilies(t)
		four, six := c.b.Answerer(t, "tcp", "four"), c.b.Answerer(t, "tcp6", "six")
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack)
		})
		c.lead(t, service, ends(four, six))
		first, second := service.Spec.ClusterIPs[0], service.Spec.ClusterIPs[1]
		c.hearOnly(t, first, 80, "four")
		c.hearOnly(t, second, 80, "six")
		// Of one family nobody is left: that is no reason to go to the other.
		c.lead(t, service, ends(four))
		c.hear(t, unheard, second, 80)
		c.hearOnly(t, first, 80, "four")
	}},
	{"a Service may be of IPv6 alone", func(t *testing.T, c *client) {
		c.b.BothFamilies(t)
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			spec.Ports = []corev1.ServicePort{
				{Name: "tcp", Port: 80}, {Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP},
			}
		})
		if all := service.Spec.ClusterIPs; len(all) != 1 || !strings.Contains(all[0], ":") {
			t.Fatalf("its addresses are %v", all)
		}
		six, datagrams := c.b.Answerer(t, "tcp6", "six"), c.b.Answerer(t, "udp6", "datagrams")
		c.slice(t, "six", service, append(ports(service.Spec.Ports[0], six.Port), ports(service.Spec.Ports[1], datagrams.Port)...), ends(six)...)
		c.hearOnly(t, cluster(service), 80, "six")
		c.hear(t, unheard, cluster(service), 81)
		c.until(t, "datagrams\n", "udp-get", cluster(service), "80", "x")
		for said := range c.said(t, 1, "connect", cluster(service), "80") {
			if want := "remote [" + cluster(service) + "]:80\n"; !strings.Contains(said, want) {
				t.Errorf("it printed %q, not %q", said, want)
			}
		}
	}},
	{"a Service that gets a second family is reached by that too", func(t *testing.T, c *client) {
		c.b.BothFamilies(t)
		four, six := c.b.Answerer(t, "tcp", "four"), c.b.Answerer(t, "tcp6", "six")
		service := c.service(t, nil)
		c.lead(t, service, ends(four, six))
		c.hear(t, "four", cluster(service), 80)
		same(t, "addresses", len(service.Spec.ClusterIPs), 1)
		service = c.patch(t, service, `{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
		same(t, "addresses", len(service.Spec.ClusterIPs), 2)
		c.hearOnly(t, service.Spec.ClusterIPs[1], 80, "six")
		c.hearOnly(t, service.Spec.ClusterIPs[0], 80, "four")
	}},
	{"a client keeps its endpoint of each family", func(t *testing.T, c *client) {
		c.b.BothFamilies(t)
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack)
			spec.SessionAffinity = corev1.ServiceAffinityClientIP
		})
		var all []bed.Answerer
		for _, kind := range []string{"tcp", "tcp6"} {
			all = append(all, c.b.Answerer(t, kind, kind+" one"), c.b.Answerer(t, kind, kind+" two"))
		}
		c.lead(t, service, ends(all...))
		for number, kind := range []string{"tcp", "tcp6"} {
			address := service.Spec.ClusterIPs[number]
			var first string
			c.b.WaitFor(t, kind+" is heard", limit, func() error {
				said, err := c.hears(t, address, 80)
				if err == nil && !strings.HasPrefix(said, kind+" ") {
					err = fmt.Errorf("it said %q", said)
				}
				first = said
				return err
			})
			c.hearOnly(t, address, 80, first)
		}
	}},
}

// Pods have an address of each family of the cluster, the first in the order of
// their node's ranges, and answer at both.
func TestPodsHaveAnAddressOfEachFamily(t *testing.T) {
	b := bed.Start(t)
	b.BothFamilies(t)
	node, neighbour := b.Node(t), b.StartNode(t, "of-both")
	ns := b.Namespace(t)
	pods := []*corev1.Pod{
		web(t, b, ns, webPodOn(t, b, node, "here")), web(t, b, ns, webPodOn(t, b, neighbour, "there")),
	}
	for number, one := range []*bed.Node{node, neighbour} {
		addresses := bed.PodAddresses(t, pods[number])
		same(t, "addresses", len(addresses), 2)
		for family, podRange := range one.PodRanges(t) {
			if !podRange.Contains(addresses[family]) {
				t.Errorf("%v of %s is not of %v", addresses[family], pods[number].Name, podRange)
			}
		}
	}
	for family := range 2 {
		here, there := bed.PodAddresses(t, pods[0])[family], bed.PodAddresses(t, pods[1])[family]
		b.WaitServes(t, b.Outside(), here.String(), webPort)
		b.WaitServes(t, node.As(here), there.String(), webPort)
		b.WaitServes(t, neighbour.As(there), here.String(), webPort)
	}
	said := output(t, b, ns, on(node, wasmPod("says", b.Image(t, "net.wasm"), "lookup", "says")))
	var want string
	for _, address := range bed.PodAddresses(t, get(t, b, ns, "says")) {
		want += address.String() + "\n"
	}
	same(t, "what a pod finds for its own name", said, want)
}
