package scenarios

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// zone is where the node with the clients is.
const zone = "a"

// ways are those by which a pod can be led to a Service. What it sees is the same.
var ways = []struct {
	name  string
	start func(*testing.T, *bed.Bed) *bed.Node
	cases []serviceCase
}{
	{"builtin", func(t *testing.T, b *bed.Bed) *bed.Node {
		b.NetworkRights(t)
		return b.StartNode(t, "leading", "--service-proxy=builtin", "--node-labels=topology.kubernetes.io/zone="+zone)
	}, allCases},
	{"kube-proxy", func(t *testing.T, b *bed.Bed) *bed.Node {
		node := b.StartNode(t, "proxied", "--node-labels=topology.kubernetes.io/zone="+zone)
		b.KubeProxy(t, node, bed.NFTables)
		return node
	}, allCases},
	// Its rules are of another kind, what it chooses is the same. It rejects nobody who
	// calls a port that a Service does not have.
	{"kube-proxy by iptables", func(t *testing.T, b *bed.Bed) *bed.Node {
		node := b.StartNode(t, "proxied-by-iptables")
		b.KubeProxy(t, node, bed.IPTables)
		return node
	}, slices.Concat(baseCases, nodeCases)},
}

var allCases = slices.Concat(baseCases, cases, nodeCases, sliceCases, familyCases)

// serviceCase is something that a guest sees of Services.
type serviceCase struct {
	name string
	run  func(*testing.T, *client)
}

// baseCases are what people first ask of Services: connections and datagrams, to the
// cluster's address and the node's, and to the same endpoint where that is asked for.
var baseCases = []serviceCase{
	{"each endpoint that is ready is called", func(t *testing.T, c *client) {
		one, two, three := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two"), c.b.Answerer(t, "tcp", "three")
		service := c.service(t, nil)
		c.lead(t, service, append(ends(one), end{Answerer: three}.state(false, false, false)))
		c.until(t, "one\n", call(service)...)
		c.lead(t, service, append(ends(one, two), end{Answerer: three}.state(false, false, false)))
		c.until(t, "two\n", call(service)...)
		c.only(t, call(service), "one", "two")
	}},
	{"a guest believes to be at the Service", func(t *testing.T, c *client) {
		service := c.service(t, nil)
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one")))
		c.until(t, "one\n", call(service)...)
		for said := range c.said(t, 1, "connect", service.Spec.ClusterIP, "80") {
			if want := "remote " + service.Spec.ClusterIP + ":80\n"; !strings.Contains(said, want) {
				t.Errorf("it printed %q, not %q", said, want)
			}
		}
	}},
	{"a pod is led to the same endpoint where that is asked for", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		service := c.service(t, func(spec *corev1.ServiceSpec) { spec.SessionAffinity = corev1.ServiceAffinityClientIP })
		c.lead(t, service, ends(one, two))
		// Either is a sign that both are known: they came together.
		c.b.WaitFor(t, "the service answers", limit, func() error {
			if said := c.said(t, 1, call(service)...); said["one\n"]+said["two\n"] == 0 {
				return fmt.Errorf("it printed %q", slices.Collect(maps.Keys(said)))
			}
			return nil
		})
		if said := c.said(t, 24, call(service)...); len(said) != 1 {
			t.Errorf("one pod heard %v", said)
		}
		// Others have theirs.
		c.until(t, "one\n", call(service)...)
		c.until(t, "two\n", call(service)...)
		// Who is gone is not kept to.
		c.lead(t, service, ends(two))
		c.until(t, "two\n", call(service)...)
		c.only(t, call(service), "two")
	}},
	{"datagrams go to those that are there, and of one pod to the same where that is asked for", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "udp", "one"), c.b.Answerer(t, "udp", "two")
		service := c.service(t, func(spec *corev1.ServiceSpec) { spec.Ports[0].Protocol = corev1.ProtocolUDP })
		ask := []string{"udp-get", cluster(service), "80", "x"}
		c.lead(t, service, ends(one, two))
		c.until(t, "one\n", ask...)
		c.only(t, ask, "one", "two")
		c.patch(t, service, `{"spec":{"sessionAffinity":"ClientIP"}}`)
		c.keepsTo(t, ask)
		c.lead(t, service, ends(two))
		c.until(t, "two\n", ask...)
		c.only(t, ask, "two")
	}},
	{"a Service is reached by its port at the node's address, and that keeps to one endpoint where asked", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		local := corev1.ServiceExternalTrafficPolicyLocal
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, local
		})
		ask := []string{"tcp-get", c.node.Address.String(), fmt.Sprint(service.Spec.Ports[0].NodePort), "x"}
		// As by its other addresses, pods go to others' endpoints too.
		c.lead(t, service, []end{end{Answerer: one}.in("elsewhere"), end{Answerer: two}.in("elsewhere")})
		c.until(t, "one\n", ask...)
		c.until(t, "two\n", ask...)
		c.only(t, ask, "one", "two")
		c.patch(t, service, `{"spec":{"sessionAffinity":"ClientIP"}}`)
		c.keepsTo(t, ask)
	}},
}

// cases are the others of Services themselves.
var cases = []serviceCase{
	{"a local policy keeps to the node, and is silent if only others could answer", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		local := corev1.ServiceInternalTrafficPolicyLocal
		service := c.service(t, func(spec *corev1.ServiceSpec) { spec.InternalTrafficPolicy = &local })
		here, there := end{Answerer: one}.in(c.node.Name), end{Answerer: two}.in("elsewhere")
		c.lead(t, service, []end{here, there})
		c.until(t, "one\n", call(service)...)
		c.only(t, call(service), "one")

		c.lead(t, service, nil)
		c.until(t, refused, call(service)...)
		c.lead(t, service, []end{there})
		// From now on nobody is told. One that was before that is refused; another
		// Service that is written after this one says when that is over.
		later := c.service(t, nil)
		c.lead(t, later, ends(two))
		c.until(t, "two\n", call(later)...)
		silent := create(t, c.b, c.ns, c.pod(t, 1, call(service)...))
		awaitPhase(t, c.b, c.ns, silent.Name, corev1.PodRunning)
		c.until(t, "two\n", call(later)...)
		same(t, "phase of who hears nothing", get(t, c.b, c.ns, silent.Name).Status.Phase, corev1.PodRunning)
		remove(t, c.b, silent)
	}},
	{"a pod is led anew when it has not called for as long as the Service says", func(t *testing.T, c *client) {
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.SessionAffinity = corev1.ServiceAffinityClientIP
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(1))},
			}
		})
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")))
		heard := map[string]bool{}
		c.b.WaitFor(t, "both are heard", limit, func() error {
			said, err := c.hears(t, cluster(service), 80)
			if heard[said] = true; heard["one"] && heard["two"] {
				return nil
			}
			// Who calls goes on with the one that it has.
			time.Sleep(1100 * time.Millisecond)
			return errors.Join(err, fmt.Errorf("heard: %v", heard))
		})
	}},
	{"a pod calls itself through its Service", func(t *testing.T, c *client) {
		service := c.service(t, nil)
		c.lead(t, service, ends(bed.Answerer{Address: c.relay, Port: webPort}))
		c.hear(t, "Hello from WebAssembly!", cluster(service), 80)
	}},
	{"one that ends on the node is called before others, where a local policy says so", func(t *testing.T, c *client) {
		local := corev1.ServiceInternalTrafficPolicyLocal
		service := c.service(t, func(spec *corev1.ServiceSpec) { spec.InternalTrafficPolicy = &local })
		here, there := c.b.Answerer(t, "tcp", "here"), c.b.Answerer(t, "tcp", "there")
		c.lead(t, service, []end{
			end{Answerer: here}.in(c.node.Name).state(false, true, true), end{Answerer: there}.in("elsewhere"),
		})
		c.hearOnly(t, cluster(service), 80, "here")
	}},
	{"one that ends is called if it still answers and nobody is ready", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		service := c.service(t, nil)
		ending := end{Answerer: one}.state(false, true, true)
		c.lead(t, service, []end{ending})
		c.until(t, "one\n", call(service)...)
		c.lead(t, service, []end{ending, {Answerer: two}})
		c.until(t, "two\n", call(service)...)
		c.only(t, call(service), "two")
		c.lead(t, service, []end{end{Answerer: one}.state(false, false, true)})
		c.until(t, refused, call(service)...)
	}},
	{"hints for the node and its zone are followed", func(t *testing.T, c *client) {
		one, two := c.b.Answerer(t, "tcp", "one"), c.b.Answerer(t, "tcp", "two")
		service := c.service(t, nil)
		c.lead(t, service, []end{end{Answerer: one}.forZone(zone), end{Answerer: two}.forZone("b")})
		c.until(t, "one\n", call(service)...)
		c.only(t, call(service), "one")
		c.lead(t, service, []end{end{Answerer: one}.forNode("elsewhere"), end{Answerer: two}.forNode(c.node.Name)})
		c.until(t, "two\n", call(service)...)
		c.only(t, call(service), "two")
		// As long as one of them has none, they count for nothing.
		c.lead(t, service, []end{{Answerer: one}, end{Answerer: two}.forZone(zone)})
		c.until(t, "one\n", call(service)...)
		c.only(t, call(service), "one", "two")
	}},
	{"nobody answers where there is no endpoint, or no such port", func(t *testing.T, c *client) {
		service := c.service(t, nil)
		c.until(t, refused, call(service)...)
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one")))
		c.until(t, "one\n", call(service)...)
		c.until(t, refused, "tcp-get", service.Spec.ClusterIP, "81", "x")
		c.lead(t, service, nil)
		c.until(t, refused, call(service)...)
	}},
	{"datagrams go to an endpoint, and answers come from the Service", func(t *testing.T, c *client) {
		service := c.service(t, func(spec *corev1.ServiceSpec) { spec.Ports[0].Protocol = corev1.ProtocolUDP })
		c.lead(t, service, ends(c.b.Answerer(t, "udp", "one")))
		c.until(t, "one\n", "udp-get", service.Spec.ClusterIP, "80", "x")
	}},
	{"pods of the node's network and of WASI 0.3 are led to Services too", func(t *testing.T, c *client) {
		service := c.service(t, nil)
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one")))
		c.hear(t, "one", cluster(service), 80)
		host, next := c.pod(t, 1, call(service)...), c.pod(t, 1, call(service)...)
		host.Spec.HostNetwork = true
		next.Spec.Containers[0].Image = c.b.Image(t, "net3.wasm")
		for _, pod := range []*corev1.Pod{host, next} {
			// The guest of 0.3 ends what it prints with a line's end of its own.
			for said := range c.saidBy(t, pod) {
				same(t, "what "+pod.Name+" printed", strings.TrimSpace(said), "one")
			}
		}
	}},
	{"a port's name stands for a number of each pod", func(t *testing.T, c *client) {
		labels := map[string]string{"app": "numbers"}
		for _, number := range []int32{8081, 8082} {
			pod := labelled(webPodOn(t, c.b, c.node, fmt.Sprintf("at-%d", number)), labels)
			pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: number}}
			web(t, c.b, c.ns, pod)
		}
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Selector, spec.Ports[0].TargetPort = labels, intstr.FromString("web")
		})
		// Of pods, each of which is a client of its own: one keeps its connection to a
		// server of HTTP.
		heard := ""
		c.b.WaitFor(t, "both are heard", limit, func() error {
			pod := c.pod(t, 1, at(cluster(service), 80)+"env")
			pod.Spec.Containers[0].Image = c.b.Image(t, "fetch.wasm")
			for said := range c.saidBy(t, pod) {
				heard += said
			}
			if strings.Contains(heard, "HOSTNAME=at-8081\n") && strings.Contains(heard, "HOSTNAME=at-8082\n") {
				return nil
			}
			return fmt.Errorf("heard so far: %q", heard)
		})
	}},
	{"what another proxy or the balancer itself looks after is left to it", func(t *testing.T, c *client) {
		real, led := c.b.Answerer(t, "tcp", "real"), c.b.Answerer(t, "tcp", "led")
		address, port := real.Address.String(), int(real.Port)
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.Ports[0].Port = corev1.ServiceTypeLoadBalancer, real.Port
		})
		c.lead(t, service, ends(led))
		c.hear(t, "led", cluster(service), port)
		balanced := func(mode corev1.LoadBalancerIPMode) {
			service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address, IPMode: &mode}}
			var err error
			if service, err = c.b.Client.CoreV1().Services(c.ns).UpdateStatus(t.Context(), service, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		balanced(corev1.LoadBalancerIPModeVIP)
		c.hear(t, "led", address, port)
		balanced(corev1.LoadBalancerIPModeProxy)
		c.hear(t, "real", address, port)
		balanced(corev1.LoadBalancerIPModeVIP)
		c.hear(t, "led", address, port)
		// Others are told nothing, and these pods are among them.
		service = c.patch(t, service, `{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24"]}}`)
		c.silent(t, address, port)
		c.hear(t, "led", cluster(service), port)
		service = c.patch(t, service, `{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24","`+c.relay.String()+`/32"]}}`)
		c.hear(t, "led", address, port)
		c.patch(t, service, `{"metadata":{"labels":{"service.kubernetes.io/service-proxy-name":"other"}}}`)
		c.hear(t, "real", address, port)
	}},
	{"a Service is reached by its other addresses too", func(t *testing.T, c *client) {
		one := c.b.Answerer(t, "tcp", "one")
		local := corev1.ServiceExternalTrafficPolicyLocal
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.ExternalIPs, spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, []string{"198.51.100.7"}, local
		})
		vip := corev1.LoadBalancerIPModeVIP
		service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.8", IPMode: &vip}}
		_, err := c.b.Client.CoreV1().Services(c.ns).UpdateStatus(t.Context(), service, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// The policy is about clients from elsewhere: pods go where they go otherwise.
		c.lead(t, service, []end{end{Answerer: one}.in("elsewhere")})
		for _, address := range []string{"198.51.100.7", "198.51.100.8", service.Spec.ClusterIP} {
			c.until(t, "one\n", "tcp-get", address, "80", "x")
		}
	}},
	{"the API server is reached by its Service", func(t *testing.T, c *client) {
		kubernetes, err := c.b.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		address := kubernetes.Spec.ClusterIP
		c.b.WaitFor(t, "the API server is reached", limit, func() error {
			for said := range c.said(t, 1, "connect", address, "443") {
				if !strings.Contains(said, "remote "+address+":443\n") {
					return fmt.Errorf("it printed %q", said)
				}
			}
			return nil
		})
	}},
	{"pods of two nodes answer for one Service, by connections and requests of each family", func(t *testing.T, c *client) {
		neighbour := c.b.Node(t)
		labels := map[string]string{"app": "web"}
		for number, node := range []*bed.Node{c.node, neighbour} {
			pod := webPodOn(t, c.b, node, fmt.Sprintf("web-%d", number))
			pod.Labels = labels
			web(t, c.b, c.ns, pod)
		}
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Selector, spec.Ports[0].TargetPort = labels, intstr.FromInt32(webPort)
			spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack)
		})
		c.b.WaitFor(t, "both are endpoints", limit, func() error {
			return c.isReady(t.Context(), service, 2)
		})
		// Each of these is a client of its own, whose connections are its own.
		var urls []string
		for _, address := range service.Spec.ClusterIPs {
			urls = append(urls, "http://"+net.JoinHostPort(address, "80")+"/")
		}
		for range 4 {
			c.count++
			says(t, c.b, c.node, c.ns, fmt.Sprintf("fetch-%d", c.count), "fetch.wasm",
				strings.Repeat("200\nHello from WebAssembly!\n", len(urls)), urls...)
		}
	}},
	{"a Service is what it is after its type has changed", func(t *testing.T, c *client) {
		atNode := func(service *corev1.Service) []string {
			return []string{"tcp-get", c.node.Address.String(), fmt.Sprint(service.Spec.Ports[0].NodePort), "x"}
		}
		service := c.service(t, nil)
		c.lead(t, service, ends(c.b.Answerer(t, "tcp", "one")))
		c.until(t, "one\n", call(service)...)
		service = c.patch(t, service, `{"spec":{"type":"NodePort"}}`)
		before := atNode(service)
		c.until(t, "one\n", before...)
		// Nothing of it leads anywhere but its name.
		c.patch(t, service, `{"spec":{"type":"ExternalName","externalName":"elsewhere.example.test"}}`)
		c.until(t, refused, before...)
		service = c.patch(t, service, `{"spec":{"type":"NodePort","externalName":null}}`)
		c.until(t, "one\n", call(service)...)
		c.until(t, "one\n", atNode(service)...)
	}},
	{"datagrams reach a Service by its port at the node's address", func(t *testing.T, c *client) {
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.Ports[0].Protocol = corev1.ServiceTypeNodePort, corev1.ProtocolUDP
		})
		c.lead(t, service, ends(c.b.Answerer(t, "udp", "one")))
		c.until(t, "one\n", "udp-get", c.node.Address.String(), fmt.Sprint(service.Spec.Ports[0].NodePort), "x")
	}},
}

func TestServices(t *testing.T) {
	b := bed.Start(t)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			c := calling(t, b, way.start(t, b))
			for _, one := range way.cases {
				t.Run(one.name, func(t *testing.T) { one.run(t, c) })
			}
		})
	}
}

// A guest that goes on while there is no agent is led as before; the next agent
// leads it anew.
func TestServicesOutliveTheAgent(t *testing.T) {
	b := bed.Start(t)
	b.NetworkRights(t)
	node := b.StartNode(t, "left", "--service-proxy=builtin", "--node-labels=topology.kubernetes.io/zone="+zone)
	ns := b.Namespace(t)
	c := &client{b: b, node: node, ns: ns}
	target := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "target")))
	relay := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "relay")))
	one := bed.Answerer{Name: "target", Address: target, Port: webPort}
	first, second := c.service(t, nil), c.service(t, nil)
	c.lead(t, first, ends(one))
	b.WaitFor(t, "the first service is known", limit, func() error {
		for said := range c.said(t, 1, "connect", first.Spec.ClusterIP, "80") {
			if !strings.HasPrefix(said, "ok\n") {
				return errors.New(said)
			}
		}
		return nil
	})
	calls := func(service *corev1.Service) error {
		return b.Outside().GetTarget(t.Context(), relay.String(), webPort, "/fetch?url=http://"+service.Spec.ClusterIP+"/")
	}
	node.Kill(t)
	if err := calls(first); err != nil {
		t.Error("while there is no agent: ", err)
	}
	c.lead(t, second, ends(one))
	node.Start(t)
	node.WaitReady(t)
	b.WaitFor(t, "the next agent leads to what is new", limit, func() error { return calls(second) })
}

// Where no name server is configured, names of Services are known nevertheless.
func TestServicesHaveNamesWithoutANameServer(t *testing.T) {
	b := bed.Start(t)
	b.NetworkRights(t)
	node := b.StartNodeWith(t, "naming", map[string]any{"clusterDNS": []string{}, "serviceProxy": "builtin"})
	ns := b.Namespace(t)
	c := &client{b: b, node: node, ns: ns}
	pod := webPodOn(t, b, node, "web")
	pod.Labels = map[string]string{"app": "web"}
	pod.Spec.Hostname, pod.Spec.Subdomain = "web-0", "backend"
	address := web(t, b, ns, pod).Status.PodIP
	headless(t, b, ns, "backend", pod.Labels)
	service := c.service(t, func(spec *corev1.ServiceSpec) {
		spec.Selector, spec.Ports[0].TargetPort = pod.Labels, intstr.FromInt32(webPort)
	})
	alias := c.service(t, func(spec *corev1.ServiceSpec) {
		spec.Type, spec.ExternalName = corev1.ServiceTypeExternalName, service.Name+"."+ns+".svc."+bed.Domain
	})
	own := service.Spec.ClusterIP
	for name, want := range map[string]string{
		service.Name: own, service.Name + "." + ns: own, service.Name + "." + ns + ".svc." + bed.Domain: own,
		alias.Name: own, "backend": address, "web-0.backend": address,
	} {
		c.until(t, want+"\n", "lookup", name)
	}
	c.until(t, "name-unresolvable\n", "lookup", "nobody."+ns+".svc."+bed.Domain)
	says(t, b, node, ns, "by-name", "fetch.wasm", "200", "http://"+service.Name+"/")

	// Also by the next agent, and by a pod that the first one made.
	relay := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "relay")))
	node.Kill(t)
	node.Start(t)
	node.WaitReady(t)
	b.WaitFor(t, "a pod of the agent before knows names", limit, func() error {
		return b.Outside().GetTarget(t.Context(), relay.String(), webPort, "/fetch?url=http://backend:8080/")
	})
}
