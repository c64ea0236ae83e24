package scenarios

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"krustlet.dev/tests/cluster/bed"
)

// client runs guests that call Services.
type client struct {
	b     *bed.Bed
	node  *bed.Node
	ns    string
	count int
	// relay is a pod that asks others for what it is asked for; see hears.
	relay netip.Addr
}

// calling makes one with its own namespace, for one test.
func calling(t *testing.T, b *bed.Bed, node *bed.Node) *client {
	t.Helper()
	c := &client{b: b, node: node, ns: b.Namespace(t)}
	c.relay = bed.PodAddress(t, web(t, b, c.ns, webPodOn(t, b, node, "relay")))
	return c
}

// end is an endpoint of a Service; ready unless it says something else.
type end struct {
	bed.Answerer
	conditions discoveryv1.EndpointConditions
	node       string
	hints      *discoveryv1.EndpointHints
	hostname   string
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
	for number, one := range all {
		c.slice(t, fmt.Sprintf("%s-%d", service.Name, number), service, ports(service.Spec.Ports[0], one.Port), one)
	}
	for number := len(all); ; number++ {
		api := c.b.Client.DiscoveryV1().EndpointSlices(c.ns)
		err := api.Delete(t.Context(), fmt.Sprintf("%s-%d", service.Name, number), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ports is how a slice names a number for a port of a Service.
func ports(port corev1.ServicePort, number int32) []discoveryv1.EndpointPort {
	return []discoveryv1.EndpointPort{{Name: &port.Name, Port: &number, Protocol: &port.Protocol}}
}

// slice makes an EndpointSlice of a Service, or makes it another.
func (c *client) slice(t *testing.T, name string, of *corev1.Service, ports []discoveryv1.EndpointPort, all ...end) *discoveryv1.EndpointSlice {
	t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       ports,
	}
	for _, one := range all {
		if one.Address.Is6() {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		endpoint := discoveryv1.Endpoint{
			Addresses: []string{one.Address.String()}, Conditions: one.conditions, Hints: one.hints,
		}
		if one.node != "" {
			endpoint.NodeName = &one.node
		}
		if one.hostname != "" {
			endpoint.Hostname = &one.hostname
		}
		slice.Endpoints = append(slice.Endpoints, endpoint)
	}
	return c.put(t, slice)
}

// put creates a slice, or replaces the one of its name.
func (c *client) put(t *testing.T, slice *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	t.Helper()
	api := c.b.Client.DiscoveryV1().EndpointSlices(c.ns)
	made, err := api.Update(t.Context(), slice, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		made, err = api.Create(t.Context(), slice, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
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
	return c.saidBy(t, c.pod(t, runs, args...))
}

// saidBy runs a pod and tells what its containers printed, and how often.
func (c *client) saidBy(t *testing.T, pod *corev1.Pod) map[string]int {
	t.Helper()
	create(t, c.b, c.ns, pod)
	c.ended(t, pod.Name)
	all := map[string]int{}
	for _, container := range pod.Spec.Containers {
		all[c.log(t, pod.Name, container.Name)]++
	}
	return all
}

// ended waits until a pod has.
func (c *client) ended(t *testing.T, pod string) {
	t.Helper()
	await(t, c.b, c.ns, pod, "it has ended", limit, func(pod *corev1.Pod) error {
		if phase := pod.Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return fmt.Errorf("the phase is %s", phase)
		}
		return nil
	})
}

// log is what a container of a pod printed. Not by kubectl, of which so many take long.
func (c *client) log(t *testing.T, pod, container string) string {
	t.Helper()
	options := &corev1.PodLogOptions{Container: container}
	text, err := c.b.Client.CoreV1().Pods(c.ns).GetLogs(pod, options).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hears is what a pod that goes on all the time is answered with at an address, or
// why it is not. Each time it makes another connection.
func (c *client) hears(t *testing.T, address string, port int) (string, error) {
	t.Helper()
	// One that is led to nobody before the node has heard of a change is given up. The
	// kernel tells a client once a second at most that it is refused (`ratelimit` of
	// ICMP), and he asks again a second later.
	return fetched(c.b, c.relay, at(address, port), 3*time.Second)
}

func at(address string, port int) string {
	return "http://" + net.JoinHostPort(address, strconv.Itoa(port)) + "/"
}

// fetched is what an http guest has when it was asked to fetch something.
func fetched(b *bed.Bed, relay netip.Addr, url string, within time.Duration) (string, error) {
	asked := at(relay.String(), webPort) + "fetch?url=" + url
	response, err := b.Outside().Client(within).Get(asked)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return strings.TrimSuffix(string(text), "\n"), err
}

// hear waits until it hears this.
func (c *client) hear(t *testing.T, want, address string, port int) {
	t.Helper()
	c.b.WaitFor(t, fmt.Sprintf("%s port %d is heard to say %q", address, port, want), limit, func() error {
		said, err := c.hears(t, address, port)
		if err == nil && said != want {
			err = fmt.Errorf("it said %q", said)
		}
		return err
	})
}

// hearOnly waits until of many times all, and none else, of these are heard.
func (c *client) hearOnly(t *testing.T, address string, port int, want ...string) {
	t.Helper()
	c.b.WaitFor(t, fmt.Sprintf("%s port %d is heard to say %q and nothing else", address, port, want), limit, func() error {
		heard := map[string]bool{}
		// Of two, one is said by all with a chance of one in eight million.
		for range 24 {
			said, err := c.hears(t, address, port)
			if err != nil {
				return err
			}
			heard[said] = true
		}
		if said := slices.Sorted(maps.Keys(heard)); !slices.Equal(said, want) {
			return fmt.Errorf("they said %q", said)
		}
		return nil
	})
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

// keepsTo waits until of many runs one and the same is said, whichever that is.
func (c *client) keepsTo(t *testing.T, args []string) {
	t.Helper()
	c.b.WaitFor(t, "one pod hears one of them", limit, func() error {
		if said := c.said(t, 24, args...); len(said) != 1 {
			return fmt.Errorf("one pod heard %v", said)
		}
		return nil
	})
}

// silent waits until nothing is heard for a time that is long for an answer.
func (c *client) silent(t *testing.T, address string, port int) {
	t.Helper()
	c.b.WaitFor(t, fmt.Sprintf("%s port %d is silent", address, port), limit, func() error {
		said, err := fetched(c.b, c.relay, at(address, port), 2*time.Second)
		if err == nil {
			return fmt.Errorf("it said %q", said)
		}
		return nil
	})
}

// isReady tells whether a Service has as many endpoints that are ready, of each of
// its families.
func (c *client) isReady(ctx context.Context, service *corev1.Service, want int) error {
	list, err := c.b.Client.DiscoveryV1().EndpointSlices(c.ns).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name,
	})
	if err != nil {
		return err
	}
	found := map[string]int{}
	for _, slice := range list.Items {
		for _, endpoint := range slice.Endpoints {
			if ready := endpoint.Conditions.Ready; ready == nil || *ready {
				found[string(slice.AddressType)]++
			}
		}
	}
	for _, family := range service.Spec.IPFamilies {
		if found[string(family)] != want {
			return fmt.Errorf("of %s %d are ready", family, found[string(family)])
		}
	}
	return nil
}

func ptr[T any](value T) *T { return &value }

func call(service *corev1.Service) []string {
	return []string{"tcp-get", service.Spec.ClusterIP, "80", "x"}
}

// What a guest is told that is refused, by sockets and by requests.
const (
	refused = "connection-refused\n"
	unheard = "ConnectionRefused"
)

// cluster is the address that the cluster gave to a Service.
func cluster(service *corev1.Service) string { return service.Spec.ClusterIP }

// patch changes a Service.
func (c *client) patch(t *testing.T, service *corev1.Service, text string) *corev1.Service {
	t.Helper()
	changed, err := c.b.Client.CoreV1().Services(c.ns).Patch(
		t.Context(), service.Name, types.MergePatchType, []byte(text), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}
