package scenarios

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// nodeCases are what guests see of Services whose endpoints are pods of their own
// node.
var nodeCases = []serviceCase{
	{"pods of the node itself answer, of each family, and see who calls", func(t *testing.T, c *client) {
		c.b.BothFamilies(t)
		for number, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			wildcard := []string{"0.0.0.0", "::"}[number]
			server := func(kind string) end {
				name := fmt.Sprintf("%s-%d", kind, number)
				program := wasmPod(name, c.b.Image(t, "net.wasm"), kind, strconv.Itoa(webPort), wildcard)
				serving(t, c.b, c.ns, on(c.node, program))
				address := bed.PodAddresses(t, get(t, c.b, c.ns, name))[number]
				return end{Answerer: bed.Answerer{Address: address, Port: webPort}}.in(c.node.Name)
			}
			service := c.service(t, func(spec *corev1.ServiceSpec) {
				spec.IPFamilies = []corev1.IPFamily{family}
				spec.Ports = []corev1.ServicePort{
					{Name: "tcp", Port: 80}, {Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP},
				}
			})
			holds, echoes := server("tcp-hold"), server("udp-echo")
			c.slice(t, service.Name+"-holds", service, ports(service.Spec.Ports[0], webPort), holds)
			c.slice(t, service.Name+"-echoes", service, ports(service.Spec.Ports[1], webPort), echoes)
			c.until(t, "x\n", "udp-get", cluster(service), "80", "x")
			var caller string
			c.b.WaitFor(t, "the service is reached", limit, func() error {
				for said := range c.said(t, 1, "connect", cluster(service), "80") {
					if !strings.HasPrefix(said, "ok\nlocal ") {
						return errors.New(said)
					}
					caller = strings.TrimPrefix(strings.Split(said, "\n")[1], "local ")
				}
				return nil
			})
			c.b.WaitFor(t, caller+" is seen", limit, func() error {
				held := c.log(t, fmt.Sprintf("tcp-hold-%d", number), containerName)
				if !strings.Contains(held, "holding "+caller+"\n") {
					return errors.New(held)
				}
				return nil
			})
		}
	}},
}

// The proxy of a node leaves clients their addresses, so that policies know them.
func TestPoliciesHoldWhereAKubeProxyLeads(t *testing.T) {
	b := bed.Start(t)
	node := policed(t, b, "policed-proxied")
	b.KubeProxy(t, node, bed.NFTables)
	c := &client{b: b, node: node, ns: b.Namespace(t)}
	app, role := map[string]string{"app": "web"}, map[string]string{"role": "friend"}
	web(t, b, c.ns, labelled(webPodOn(t, b, node, "server"), app))
	service := c.service(t, func(spec *corev1.ServiceSpec) {
		spec.Selector, spec.Ports[0].TargetPort = app, intstr.FromInt32(webPort)
	})
	friend := bed.PodAddress(t, web(t, b, c.ns, labelled(webPodOn(t, b, node, "friend"), role)))
	stranger := bed.PodAddress(t, web(t, b, c.ns, webPodOn(t, b, node, "stranger")))
	b.WaitServes(t, node.As(friend), cluster(service), 80)
	b.WaitServes(t, node.As(stranger), cluster(service), 80)

	policy(t, b, c.ns, "in", app, lets(pods(role)))
	waitRefuses(t, b, node.As(stranger), cluster(service), 80)
	b.WaitServes(t, node.As(friend), cluster(service), 80)
	policy(t, b, c.ns, "in", app, networkingv1.NetworkPolicySpec{PolicyTypes: inOnly})
	waitRefuses(t, b, node.As(friend), cluster(service), 80)
}
