package scenarios

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
}{
	{"builtin", func(t *testing.T, b *bed.Bed) *bed.Node {
		b.NetworkRights(t)
		return b.StartNode(t, "leading", "--service-proxy=builtin", "--node-labels=topology.kubernetes.io/zone="+zone)
	}},
	{"kube-proxy", func(t *testing.T, b *bed.Bed) *bed.Node {
		node := b.StartNode(t, "proxied", "--node-labels=topology.kubernetes.io/zone="+zone)
		b.KubeProxy(t, node)
		return node
	}},
}

// client runs guests that call Services.
type client struct {
	b     *bed.Bed
	node  *bed.Node
	ns    string
	count int
}

// end is an endpoint of a Service; ready unless it says something else.
type end struct {
	bed.Answerer
	conditions discoveryv1.EndpointConditions
	node       string
	hints      *discoveryv1.EndpointHints
}

func ends(all ...bed.Answerer) []end {
	var list []end
	for _, one := range all {
		list = append(list, end{Answerer: one})
	}
	return list
}

func (e end) in(node string) end { e.node = node; return e }

func (e end) state(ready, serving, terminating bool) end {
	e.conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	return e
}

func (e end) forZone(zone string) end {
	e.hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	return e
}

func (e end) forNode(node string) end {
	e.hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: node}}}
	return e
}

// service creates a Service with port 80, whose endpoints the test says.
func (c *client) service(t *testing.T, change func(*corev1.ServiceSpec)) *corev1.Service {
	t.Helper()
	c.count++
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("service-%d", c.count)},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if change != nil {
		change(&service.Spec)
	}
	made, err := c.b.Client.CoreV1().Services(c.ns).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// lead says who answers for a Service: a slice for each, for each has his own port.
func (c *client) lead(t *testing.T, service *corev1.Service, all []end) {
	t.Helper()
	api := c.b.Client.DiscoveryV1().EndpointSlices(c.ns)
	for number, one := range all {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name:   fmt.Sprintf("%s-%d", service.Name, number),
				Labels: map[string]string{discoveryv1.LabelServiceName: service.Name},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{one.Address.String()}, Conditions: one.conditions, Hints: one.hints,
			}},
		}
		if one.node != "" {
			slice.Endpoints[0].NodeName = &one.node
		}
		port := service.Spec.Ports[0]
		slice.Ports = []discoveryv1.EndpointPort{{Name: &port.Name, Port: &one.Port, Protocol: &port.Protocol}}
		_, err := api.Update(t.Context(), slice, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = api.Create(t.Context(), slice, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for number := len(all); ; number++ {
		err := api.Delete(t.Context(), fmt.Sprintf("%s-%d", service.Name, number), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// pod is one that runs the same program in several containers, once.
func (c *client) pod(t *testing.T, containers int, args ...string) *corev1.Pod {
	t.Helper()
	c.count++
	pod := on(c.node, wasmPod(fmt.Sprintf("client-%d", c.count), c.b.Image(t, "net.wasm"), args...))
	first := pod.Spec.Containers[0]
	for number := 1; number < containers; number++ {
		next := first
		next.Name = fmt.Sprintf("%s-%d", first.Name, number)
		pod.Spec.Containers = append(pod.Spec.Containers, next)
	}
	return pod
}

// said is what each run of a program printed, how often, in one pod.
func (c *client) said(t *testing.T, runs int, args ...string) map[string]int {
	t.Helper()
	pod := c.pod(t, runs, args...)
	create(t, c.b, c.ns, pod)
	await(t, c.b, c.ns, pod.Name, "it has ended", limit, func(pod *corev1.Pod) error {
		if phase := pod.Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return fmt.Errorf("the phase is %s", phase)
		}
		return nil
	})
	all := map[string]int{}
	for _, container := range pod.Spec.Containers {
		all[logs(t, c.b, c.ns, pod.Name, "--container="+container.Name)]++
	}
	return all
}

// until runs a program, each time in another pod, until it prints this: nodes hear
// of a Service in their own time.
func (c *client) until(t *testing.T, want string, args ...string) {
	t.Helper()
	c.b.WaitFor(t, fmt.Sprintf("%v prints %q", args, want), limit, func() error {
		if said := c.said(t, 1, args...); said[want] == 0 {
			return fmt.Errorf("it printed %q", slices.Collect(maps.Keys(said)))
		}
		return nil
	})
}

// only waits until of many runs all, and none else, of these are said.
func (c *client) only(t *testing.T, args []string, want ...string) {
	t.Helper()
	for number, one := range want {
		want[number] = one + "\n"
	}
	c.b.WaitFor(t, fmt.Sprintf("%v prints %q and nothing else", args, want), limit, func() error {
		// Of two, one is said by all with a chance of one in eight million.
		if said := slices.Sorted(maps.Keys(c.said(t, 24, args...))); !slices.Equal(said, want) {
			return fmt.Errorf("they printed %q", said)
		}
		return nil
	})
}

func call(service *corev1.Service) []string {
	return []string{"tcp-get", service.Spec.ClusterIP, "80", "x"}
}

const refused = "connection-refused\n"

// cases are what a guest sees of Services.
var cases = []struct {
	name string
	run  func(*testing.T, *client)
}{
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
		// Who is gone is not kept to.
		c.lead(t, service, ends(two))
		c.until(t, "two\n", call(service)...)
		c.only(t, call(service), "two")
	}},
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
	{"pods of two nodes answer for one Service, by connections and requests", func(t *testing.T, c *client) {
		neighbour := c.b.Node(t)
		labels := map[string]string{"app": "web"}
		for number, node := range []*bed.Node{c.node, neighbour} {
			pod := webPodOn(t, c.b, node, fmt.Sprintf("web-%d", number))
			pod.Labels = labels
			web(t, c.b, c.ns, pod)
		}
		service := c.service(t, func(spec *corev1.ServiceSpec) {
			spec.Selector, spec.Ports[0].TargetPort = labels, intstr.FromInt32(webPort)
		})
		c.b.WaitFor(t, "both are endpoints", limit, func() error {
			return c.isReady(t.Context(), service.Name, 2)
		})
		// Each of these is a client of its own, whose connections are its own.
		for range 4 {
			c.count++
			says(t, c.b, c.node, c.ns, fmt.Sprintf("fetch-%d", c.count), "fetch.wasm", "Hello from WebAssembly!",
				"http://"+net.JoinHostPort(service.Spec.ClusterIP, "80")+"/")
		}
	}},
}

// isReady tells whether a Service has as many endpoints that are ready.
func (c *client) isReady(ctx context.Context, service string, want int) error {
	list, err := c.b.Client.DiscoveryV1().EndpointSlices(c.ns).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	if err != nil {
		return err
	}
	found := 0
	for _, slice := range list.Items {
		for _, endpoint := range slice.Endpoints {
			if ready := endpoint.Conditions.Ready; ready == nil || *ready {
				found++
			}
		}
	}
	if found != want {
		return errors.New(strconv.Itoa(found) + " are ready")
	}
	return nil
}

func TestServices(t *testing.T) {
	b := bed.Start(t)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			node := way.start(t, b)
			for _, one := range cases {
				t.Run(one.name, func(t *testing.T) {
					one.run(t, &client{b: b, node: node, ns: b.Namespace(t)})
				})
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
	node := b.StartNodeWith(t, "naming", map[string]any{"clusterDNS": []string{}}, "--service-proxy=builtin")
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
