package bed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/room"
)

// Place is where a connection begins: on a node's own network or among the pods
// of one.
type Place struct {
	name      string
	namespace string
	source    netip.Addr
}

// Outside is the network of the nodes themselves, which in the test bed is one.
func (b *Bed) Outside() Place { return Place{name: "the node", namespace: b.cluster.Room.Network()} }

// As is where a pod of the node with this address is: as a guest's, connections
// come from it.
func (n *Node) As(pod netip.Addr) Place {
	return Place{"a pod of " + n.Name, n.bed.cluster.Room.Path(n.Root + "/run/netns"), pod}
}

// Client is an HTTP client whose requests begin here, each on a connection of its own.
func (p Place) Client(limit time.Duration) *http.Client {
	return &http.Client{
		Timeout: limit,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       p.Dial,
		},
	}
}

// Dial connects from here.
func (p Place) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return room.Dial(ctx, p.namespace, p.source, network, address)
}

// Get asks for / of an HTTP server at an address and port. A connection is made
// for each request.
func (p Place) Get(ctx context.Context, address string, port int) error {
	return p.GetTarget(ctx, address, port, "/")
}

// GetTarget is Get for another path and query.
func (p Place) GetTarget(ctx context.Context, address string, port int, target string) error {
	url := "http://" + net.JoinHostPort(address, strconv.Itoa(port)) + target
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := p.Client(10 * time.Second).Do(request)
	if err != nil {
		return fmt.Errorf("from %s: %w", p.name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("from %s: %s: %s: %.200s", p.name, url, response.Status, body)
	}
	return nil
}

// WaitServes waits until an HTTP server answers at an address and port.
func (b *Bed) WaitServes(t testing.TB, from Place, address string, port int) {
	t.Helper()
	what := fmt.Sprintf("%s port %d answers to %s", address, port, from.name)
	b.WaitFor(t, what, readyLimit, func() error { return from.Get(t.Context(), address, port) })
}

// PodRange is the podCIDR of the node.
func (n *Node) PodRange(t testing.TB) netip.Prefix {
	t.Helper()
	return n.PodRanges(t)[0]
}

// PodRanges are all of its podCIDRs, one of each family of the cluster.
func (n *Node) PodRanges(t testing.TB) []netip.Prefix {
	t.Helper()
	node, err := n.bed.Client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []netip.Prefix
	for _, text := range node.Spec.PodCIDRs {
		podRange, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatalf("podCIDRs of %s: %v", n.Name, err)
		}
		all = append(all, podRange)
	}
	if want := len(n.bed.cluster.PodRanges()); len(all) != want {
		t.Fatalf("%s has the podCIDRs %v, not %d", n.Name, all, want)
	}
	return all
}

// Link is the name of the link that leads to the node's pods.
func (n *Node) Link(t testing.TB) string {
	t.Helper()
	route := n.bed.IP(t, "route", "show", n.PodRange(t).String())
	_, after, _ := strings.Cut(route, " dev ")
	link, _, found := strings.Cut(after, " ")
	if !found {
		t.Fatalf("no link leads to the pods of %s: %q", n.Name, route)
	}
	return link
}

// unlink removes the link that an agent leaves for its pods to go on, when the node is
// no more: another node may get its range. By its end among the pods: what the Node
// says of its range, and whether there is a Node, does not matter.
func (n *Node) unlink(t testing.TB) {
	pods := filepath.Join(n.Root, "run", "netns")
	if _, err := os.Stat(pods); err != nil {
		return // its pods never had addresses of their own
	}
	inside := []string{"nsenter", "--net=" + pods, "ip", "link"}
	if strings.Contains(n.bed.inRoom(t, append(inside, "show")...), ": eth0@") {
		n.bed.inRoom(t, append(inside, "delete", "eth0")...)
	}
}

// IP runs the program `ip` on the network of the nodes.
func (b *Bed) IP(t testing.TB, args ...string) string {
	t.Helper()
	out, err := b.cluster.Room.Run(room.Command{Name: "ip " + args[0], Path: "ip", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// PodAddress is the pod's first address.
func PodAddress(t testing.TB, pod *corev1.Pod) netip.Addr {
	t.Helper()
	return PodAddresses(t, pod)[0]
}

// PodAddresses are all of a pod's, one of each family that it has.
func PodAddresses(t testing.TB, pod *corev1.Pod) []netip.Addr {
	t.Helper()
	var all []netip.Addr
	for _, one := range pod.Status.PodIPs {
		address, err := netip.ParseAddr(one.IP)
		if err != nil {
			t.Fatalf("podIPs of %s: %v", pod.Name, err)
		}
		all = append(all, address)
	}
	if len(all) == 0 || len(all) > 2 || pod.Status.PodIPs[0].IP != pod.Status.PodIP || len(all) == 2 && all[0].Is4() == all[1].Is4() {
		t.Fatalf("podIPs of %s: %v, podIP: %q", pod.Name, pod.Status.PodIPs, pod.Status.PodIP)
	}
	return all
}

// BothFamilies skips a test where the machine has no IPv6, and says why.
func (b *Bed) BothFamilies(t testing.TB) {
	t.Helper()
	if err := b.cluster.Room.NoIPv6(); err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
}
