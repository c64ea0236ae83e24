package bed

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/room"
)

// StartNodeApart is StartNode for a node whose network is a namespace of its own,
// as another machine's is: a veth pair joins it to that of the other nodes, which
// is its way to everything. The others are told where its pods are as a
// network's router tells machines.
func (b *Bed) StartNodeApart(t testing.TB, name string, args ...string) *Node {
	t.Helper()
	node, _ := b.addNode(name)
	link := b.separate(t, node)
	if err := node.prepare(nil, args...); err != nil {
		t.Fatal(err)
	}
	b.begin(t, node)
	// A node before it may have had the range, and another node a route to it.
	b.inRoom(t, "ip", "route", "replace", node.PodRange(t).String(), "via", node.Address.String(), "dev", link)
	return node
}

// StartNodeBeside is StartNodeApart for a node with an address of each family that
// another has, on one network with that one. Nobody is told where its pods are.
func (b *Bed) StartNodeBeside(t testing.TB, other *Node, name string, args ...string) *Node {
	t.Helper()
	node, last := b.addNode(name)
	link := b.separate(t, node)
	node.Addresses = []netip.Addr{node.Address}
	node.inside(t, "ip", "route", "add", netip.PrefixFrom(node.Address, 24).Masked().String(), "dev", "eth0")
	for _, theirs := range other.Addresses {
		if theirs.Is4() {
			continue
		}
		own := b.cluster.Room.Address6(last)
		node.Addresses = append(node.Addresses, own)
		b.inRoom(t, "ip", "route", "add", own.String()+"/128", "dev", link)
		// Of IPv6 an interface answers for its own addresses alone. Nobody else has
		// these, so that they need not be asked for first.
		b.inRoom(t, "ip", "address", "add", theirs.String()+"/128", "dev", link, "nodad")
		node.inside(t, "ip", "address", "add", own.String()+"/128", "dev", "eth0", "nodad")
		node.inside(t, "ip", "route", "add", netip.PrefixFrom(own, 64).Masked().String(), "dev", "eth0")
	}
	if err := node.prepare(nil, args...); err != nil {
		t.Fatal(err)
	}
	b.begin(t, node)
	return node
}

// separate gives a node a network of its own until the test ends, and returns the
// link that leads there.
func (b *Bed) separate(t testing.TB, node *Node) string {
	t.Helper()
	node.network = filepath.Join(b.Dir, node.Name+"-net")
	address, link := node.Address.String(), "to-"+node.Name
	for _, command := range [][]string{
		{"touch", node.network},
		// Mounted in the room only, and gone with it.
		{"unshare", "--net=" + node.network, "true"},
		{"ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", node.network},
		{"ip", "link", "set", link, "up"},
		{"ip", "route", "add", address + "/32", "dev", link},
	} {
		b.inRoom(t, command...)
	}
	t.Cleanup(func() { b.inRoom(t, "ip", "link", "delete", link) })
	for _, command := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "address", "add", address + "/32", "dev", "eth0"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", b.cluster.Room.Address(1).String(), "dev", "eth0", "onlink"},
	} {
		node.inside(t, command...)
	}
	return link
}

// Itself is the network of the node, where its own programs are.
func (n *Node) Itself() Place {
	if n.network == "" {
		return n.bed.Outside()
	}
	return Place{name: n.Name, namespace: n.bed.cluster.Room.Path(n.network)}
}

// Routes are those of a family, `-4` or `-6`, that the node's agent made to other
// nodes' pods, as the program `ip` shows them.
func (n *Node) Routes(t testing.TB, family string) []string {
	t.Helper()
	// The number of docs/network.md.
	shown := n.inside(t, "ip", family, "route", "show", "proto", "107")
	return strings.FieldsFunc(shown, func(c rune) bool { return c == '\n' })
}

// inside runs a command on the node's own network and returns its standard output.
func (n *Node) inside(t testing.TB, command ...string) string {
	t.Helper()
	if n.network != "" {
		command = append([]string{"nsenter", "--net=" + n.network}, command...)
	}
	return n.bed.inRoom(t, command...)
}

func (b *Bed) inRoom(t testing.TB, command ...string) string {
	t.Helper()
	out, err := b.cluster.Room.Run(room.Command{Name: command[0], Path: command[0], Args: command[1:]})
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return out
}
