package bed

import (
	"path/filepath"
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
	node.network = filepath.Join(b.Dir, name+"-net")
	address, link := node.Address.String(), "to-"+name
	inside := func(command ...string) []string {
		return append([]string{"nsenter", "--net=" + node.network}, command...)
	}
	for _, command := range [][]string{
		{"touch", node.network},
		// Mounted in the room only, and gone with it.
		{"unshare", "--net=" + node.network, "true"},
		{"ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", node.network},
		{"ip", "link", "set", link, "up"},
		{"ip", "route", "add", address + "/32", "dev", link},
		inside("ip", "link", "set", "lo", "up"),
		inside("ip", "address", "add", address+"/32", "dev", "eth0"),
		inside("ip", "link", "set", "eth0", "up"),
		inside("ip", "route", "add", "default", "via", b.cluster.Room.Address(1).String(), "dev", "eth0", "onlink"),
	} {
		b.inRoom(t, command...)
	}
	t.Cleanup(func() { b.inRoom(t, "ip", "link", "delete", link) })
	if err := node.prepare(nil, args...); err != nil {
		t.Fatal(err)
	}
	b.begin(t, node)
	// A node before it may have had the range, and another node a route to it.
	b.inRoom(t, "ip", "route", "replace", node.PodRange(t).String(), "via", address, "dev", link)
	return node
}

// Itself is the network of the node, where its own programs are.
func (n *Node) Itself() Place {
	if n.network == "" {
		return n.bed.Outside()
	}
	return Place{name: n.Name, namespace: n.bed.cluster.Room.Path(n.network)}
}

func (b *Bed) inRoom(t testing.TB, command ...string) {
	t.Helper()
	if _, err := b.cluster.Room.Run(room.Command{Name: command[0], Path: command[0], Args: command[1:]}); err != nil {
		t.Fatalf("%v: %v", command, err)
	}
}
