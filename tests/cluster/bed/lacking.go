package bed

import "testing"

// StartNodeLacking starts a node for one test that lacks rights, of the cluster or,
// by the program and arguments that start its agent, of the machine. Requests of it
// may be refused, and it need not get Ready.
func (b *Bed) StartNodeLacking(t testing.TB, name string, launch []string, args ...string) *Node {
	t.Helper()
	node, err := b.newNode(name, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	node.launch, node.lacking = launch, true
	b.end(t, node)
	node.Start(t)
	return node
}

// PauseControllers stops the controller manager until the test ends: nobody gives
// nodes their podCIDRs.
func (b *Bed) PauseControllers(t testing.TB) {
	t.Helper()
	if err := b.cluster.PauseControllers(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.cluster.ResumeControllers(); err != nil {
			t.Error(err)
		}
	})
}
