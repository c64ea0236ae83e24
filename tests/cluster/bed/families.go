package bed

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// StartNodeOf is StartNode for a node with an address of each of these families, the
// main one first. Its API listens at all addresses of the room, on a port of its own.
// The test is skipped where the machine has not all of them.
func (b *Bed) StartNodeOf(t testing.TB, name string, families []corev1.IPFamily, args ...string) *Node {
	t.Helper()
	if slices.Contains(families, corev1.IPv6Protocol) {
		b.BothFamilies(t)
	}
	node, last := b.addNode(name)
	add := map[corev1.IPFamily]func(byte) (netip.Addr, error){
		corev1.IPv4Protocol: b.cluster.Room.AddAddress, corev1.IPv6Protocol: b.cluster.Room.AddAddress6,
	}
	for _, family := range families {
		address, err := add[family](last)
		if err != nil {
			t.Fatal(err)
		}
		node.Addresses = append(node.Addresses, address)
	}
	node.Address = node.Addresses[0]
	// Nobody else may have the port at any address of the room.
	node.Port = port + int32(last)
	if err := node.prepare(object{"address": "::"}, args...); err != nil {
		t.Fatal(err)
	}
	b.begin(t, node)
	return node
}

// Families are those of the cluster, the main one first.
func (b *Bed) Families() []corev1.IPFamily {
	all := []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	return all[:len(b.cluster.PodRanges())]
}

// nodeIP is what the agent is told of its addresses.
func (n *Node) nodeIP() string {
	if len(n.Addresses) == 0 {
		return n.Address.String()
	}
	var all []string
	for _, address := range n.Addresses {
		all = append(all, address.String())
	}
	return strings.Join(all, ",")
}
