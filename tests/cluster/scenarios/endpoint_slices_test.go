package scenarios

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// sliceCases are what a guest sees of EndpointSlices that no controller made, or
// that a controller makes of something else.
var sliceCases = []serviceCase{
	{"a port leads to what each slice calls by its name", func(t *testing.T, c *client) {
		one, two, three := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two"), c.b.Answerer(t, "tcp", "three")
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80}, {Name: "admin", Port: 81}}
		})
		web, admin := service.Spec.Ports[0], service.Spec.Ports[1]
		// All are at one address.
		c.slice(t, "both", service, append(ports(web, one.Port), ports(admin, two.Port)...), ends(one)...)
		c.slice(t, "other", service, ports(web, three.Port), ends(three)...)
		c.hearOnly(t, cluster(service), 80, "one", "three")
		c.hearOnly(t, cluster(service), 81, "two")
	}},
	{"a number is two ports, one for connections and one for datagrams", func(t *testing.T, c *client) {
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Ports = []corev1.ServicePort{
				{Name: "tcp", Port: 53}, {Name: "udp", Port: 53, Protocol: corev1.ProtocolUDP},
			}
		})
		for number, kind := range []string{"tcp", "udp"} {
			one := c.b.Answerer(t, kind, kind)
			c.slice(t, "by-"+kind, service, ports(service.Spec.Ports[number], one.Port), ends(one)...)
		}
		c.hearOnly(t, cluster(service), 53, "tcp")
		c.until(t, "udp\n", "udp-get", cluster(service), "53", "x")
	}},
	{"what a slice does not say of an endpoint is good", func(t *testing.T, c *client) {
		one, two, three := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two"), c.b.Answerer(t, "tcp", "three")
		yes, no := true, false
		said := func(answerer end, conditions discoveryv1.EndpointConditions) end {
			answerer.conditions = conditions
			return answerer
		}
		service := c.service(t, nil)
		c.lead(t, service, []end{
			{Answerer: one},
			// Ready, though it ends: a person may say so.
			said(end{Answerer: two}, discoveryv1.EndpointConditions{Terminating: &yes}),
			said(end{Answerer: three}, discoveryv1.EndpointConditions{Ready: &no}),
		})
		c.hearOnly(t, cluster(service), 80, "one", "two")
		// It ends and is not said not to serve.
		c.lead(t, service, []end{said(end{Answerer: three}, discoveryv1.EndpointConditions{Ready: &no, Terminating: &yes})})
		c.hearOnly(t, cluster(service), 80, "three")
	}},
	{"an endpoint of two slices is called though it ends by one of them", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		service := c.service(t, nil)
		ends := end{Answerer: one}.state(false, true, true)
		for _, all := range [][]end{
			{ends, {Answerer: one}, {Answerer: two}}, {{Answerer: one}, ends, {Answerer: two}},
		} {
			c.lead(t, service, all)
			c.hearOnly(t, cluster(service), 80, "one", "two")
		}
	}},
	// kube-proxy leads to it by the first Service too: it does not ask whose a slice was.
	{"a slice is of the Service that its label names, and leads nowhere when it is gone", func(t *testing.T, c *client) {
		one := c.b.Answerer(t, "tcp", "one")
		first, second := c.service(t, nil), c.service(t, nil)
		slice := c.slice(t, "moves", first, ports(first.Spec.Ports[0], one.Port), ends(one)...)
		c.hear(t, "one", cluster(first), 80)
		c.hear(t, unheard, cluster(second), 80)
		slice.Labels[discoveryv1.LabelServiceName] = second.Name
		c.put(t, slice)
		c.hear(t, "one", cluster(second), 80)
		if err := c.b.Client.DiscoveryV1().EndpointSlices(c.ns).Delete(t.Context(), slice.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.hear(t, unheard, cluster(second), 80)
	}},
	{"nobody is led by a slice of names, or of a headless Service", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		service := c.service(t, nil)
		// Whether it is headless its address says, not this.
		service = c.patch(t, service, fmt.Sprintf(`{"metadata":{"labels":{%q:""}}}`, corev1.IsHeadlessService))
		at := ports(service.Spec.Ports[0], one.Port)
		c.put(t, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "of-names", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name}},
			AddressType: discoveryv1.AddressTypeFQDN,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"one.example"}}},
			Ports:       at,
		})
		c.put(t, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "headless", Labels: map[string]string{
				discoveryv1.LabelServiceName: service.Name, corev1.IsHeadlessService: "",
			}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{one.Address.String()}}},
			Ports:       at,
		})
		c.slice(t, "of-both", service, ports(service.Spec.Ports[0], two.Port), ends(two)...)
		c.hearOnly(t, cluster(service), 80, "two")
	}},
	{"a Service has the ports that it has now", func(t *testing.T, c *client) {
		service := c.service(t, nil)
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one")))
		c.hear(t, "one", cluster(service), 80)
		c.patch(t, service, `{"spec":{"ports":[{"port":81,"protocol":"TCP"}]}}`)
		c.hear(t, "one", cluster(service), 81)
		c.hear(t, unheard, cluster(service), 80)
	}},
	{"Endpoints that a person wrote are slices too", func(t *testing.T, c *client) {
		one := c.b.Answerer(t, "tcp", "one")
		service := c.service(t, nil)
		api := c.b.Client.CoreV1().Endpoints(c.ns)
		written := &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Name: service.Name},
			Subsets: []corev1.EndpointSubset{{
				Addresses: []corev1.EndpointAddress{{IP: one.Address.String()}},
				Ports:     []corev1.EndpointPort{{Port: one.Port}},
			}},
		}
		if _, err := api.Create(t.Context(), written, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.hear(t, "one", cluster(service), 80)
		if err := api.Delete(t.Context(), service.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.hear(t, unheard, cluster(service), 80)
	}},
	{"a pod that is not ready is called where that is asked for", func(t *testing.T, c *client) {
		labels := map[string]string{"app": "late"}
		create(t, c.b, c.ns, neverReady(labelled(webPodOn(t, c.b, c.node, "late"), labels)))
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Selector, spec.Ports[0].TargetPort = labels, intstr.FromInt32(webPort)
		})
		awaitPhase(t, c.b, c.ns, "late", corev1.PodRunning)
		c.hear(t, unheard, cluster(service), 80)
		c.patch(t, service, `{"spec":{"publishNotReadyAddresses":true}}`)
		c.hear(t, "Hello from WebAssembly!", cluster(service), 80)
	}},
}

// neverReady has a pod run and not be Ready.
func neverReady(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		PeriodSeconds: 1,
		ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/status?code=500", Port: intstr.FromInt32(webPort)},
		},
	}
	return pod
}
