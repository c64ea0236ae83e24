package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/room"
)

// Limits on what an agent may take, for a loaded machine with two cores.
const (
	readyLimit = 60 * time.Second
	stopLimit  = 30 * time.Second
)

// firstNode is the last byte of the first node's address; .1 is the control plane's.
const firstNode = 11

// clusterDNS is the address of the cluster's name server by kubeadm's rule: the
// tenth of the services' range.
const clusterDNS = "10.96.0.10"

// port of the nodes' HTTPS API: the kubelet's. Each node has its own address.
const port = 10250

// Node is a krustlet agent that was started at least once.
type Node struct {
	Name    string
	Address netip.Addr
	Root    string // --root-dir
	Logs    string // podLogsDir
	Port    int32
	// Addresses are all of its InternalIPs, if it was started by StartNodeOf.
	Addresses []netip.Addr

	bed     *Bed
	network string   // the file of its network namespace; empty: the room's
	lacking bool     // refusals are what its test is about
	launch  []string // what the agent is started by, if not by itself
	args    []string
	process *room.Process // of the last start
	started time.Time     // before the last start
}

// User is who the node is to the API server.
func (n *Node) User() string { return "system:node:" + n.Name }

// Node is the node that tests share which do nothing to the node itself.
func (b *Bed) Node(t testing.TB) *Node {
	t.Helper()
	node := b.sharedNode(t)
	node.WaitReady(t)
	t.Cleanup(func() { node.tell(t) })
	return node
}

// sharedNode starts the shared node if it does not run.
func (b *Bed) sharedNode(t testing.TB) *Node {
	t.Helper()
	// Tests that are parallel start it once.
	b.starting.Lock()
	defer b.starting.Unlock()
	if b.shared == nil {
		node, err := b.newNode("wasm-1", nil)
		if err != nil {
			t.Fatal(err)
		}
		b.shared = node
	}
	if running, _ := b.shared.running(); !running {
		b.shared.Start(t)
	}
	return b.shared
}

// StartNode starts a node for one test, with further arguments for `krustlet
// node`, and waits until it is Ready. When the test ends it is stopped and its
// Node object deleted.
func (b *Bed) StartNode(t testing.TB, name string, args ...string) *Node {
	t.Helper()
	return b.StartNodeWith(t, name, nil, args...)
}

// StartNodeWith is StartNode with more fields of the KubeletConfiguration.
func (b *Bed) StartNodeWith(t testing.TB, name string, more map[string]any, args ...string) *Node {
	t.Helper()
	node, err := b.newNode(name, more, args...)
	if err != nil {
		t.Fatal(err)
	}
	b.begin(t, node)
	return node
}

// begin starts a node for one test.
func (b *Bed) begin(t testing.TB, node *Node) {
	t.Helper()
	b.end(t, node)
	node.Start(t)
	node.WaitReady(t)
}

// end has a node and its object be gone when the test ends.
func (b *Bed) end(t testing.TB, node *Node) {
	t.Cleanup(func() {
		node.tell(t)
		if err := node.stop(); err != nil {
			t.Error(err)
		}
		node.unlink(t)
		err := b.Client.CoreV1().Nodes().Delete(context.Background(), node.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// newNode prepares what a node needs: an address, a kubeconfig, a configuration.
func (b *Bed) newNode(name string, more map[string]any, args ...string) (*Node, error) {
	node, last := b.addNode(name)
	if _, err := b.cluster.Room.AddAddress(last); err != nil {
		return nil, err
	}
	return node, node.prepare(more, args...)
}

// addNode gives a node the next address, which is not anywhere yet, and its last byte.
func (b *Bed) addNode(name string) (*Node, byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := byte(firstNode + len(b.nodes))
	node := &Node{
		Name: name, Address: b.cluster.Room.Address(last), Port: port, bed: b,
		Root: filepath.Join(b.Dir, name), Logs: filepath.Join(b.Dir, name+"-pods"),
	}
	b.nodes = append(b.nodes, node)
	return node, last
}

// prepare writes the node's files and makes its command line.
func (n *Node) prepare(more map[string]any, args ...string) error {
	kubeconfig, err := n.bed.cluster.NodeKubeconfig(n.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(n.Root, 0o755), os.MkdirAll(n.Logs, 0o755)); err != nil {
		return err
	}
	config := filepath.Join(n.bed.Dir, n.Name+".yaml")
	fields := n.configuration()
	maps.Copy(fields, more)
	text, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	n.args = append([]string{
		"node",
		"--kubeconfig=" + kubeconfig,
		"--config=" + config,
		"--hostname-override=" + n.Name,
		"--node-ip=" + n.nodeIP(),
		"--root-dir=" + n.Root,
	}, args...)
	if !slices.ContainsFunc(args, isRegistryFlag) {
		n.args = append(n.args, n.bed.RegistryFlag())
	}
	return nil
}

// configuration is a KubeletConfiguration as kubeadm writes it.
func (n *Node) configuration() map[string]any {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    n.Address.String(),
		"port":       n.Port,
		"podLogsDir": n.Logs,
		// Where nobody answers, unless a test starts a name server and says so.
		"clusterDNS":    []string{clusterDNS},
		"clusterDomain": Domain,
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": n.bed.cluster.Authority()},
		},
		"authorization": object{"mode": "Webhook"},
		// A developer's disk may be fuller than a node's should be.
		"evictionHard": object{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
	}
}

// Start starts the agent, which must not run. It does not wait.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	if running, _ := n.running(); running {
		t.Fatalf("%s runs already", n.Name)
	}
	command := slices.Concat(n.launch, []string{n.bed.program}, n.args)
	if n.network != "" {
		command = slices.Concat([]string{"nsenter", "--net=" + n.network}, command)
	}
	started := time.Now()
	process, err := n.bed.cluster.Room.Start(room.Command{
		Name: n.Name, Path: command[0], Args: command[1:],
		Env: []string{"RUST_BACKTRACE=1"}, Log: filepath.Join(n.bed.Dir, n.Name+".log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.bed.mu.Lock()
	n.process, n.started = process, started
	n.bed.mu.Unlock()
}

// Without has the agent lack an argument from its next start on.
func (n *Node) Without(t testing.TB, argument string) {
	t.Helper()
	at := slices.Index(n.args, argument)
	if at < 0 {
		t.Fatalf("%s is not started with %s", n.Name, argument)
	}
	n.args = slices.Delete(n.args, at, at+1)
}

// Bed is where the node was started.
func (n *Node) Bed() *Bed { return n.bed }

// Ask runs a krustlet command that speaks to this node's agent, as a person with
// a shell on the node does, and returns its standard output.
func (n *Node) Ask(args ...string) (string, error) {
	args = append([]string{args[0], "--root-dir=" + n.Root}, args[1:]...)
	return n.bed.cluster.Room.Run(room.Command{Name: "krustlet " + args[0], Path: n.bed.program, Args: args})
}

// Kill ends the agent with SIGKILL. Its pods go on.
func (n *Node) Kill(t testing.TB) {
	t.Helper()
	if running, err := n.running(); !running {
		t.Fatal("nothing to kill: ", err)
	}
	n.last().Kill()
}

// Stop ends the agent with SIGTERM and waits for its end.
func (n *Node) Stop(t testing.TB) {
	t.Helper()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
}

// WaitReady waits until the agent that runs now says that the node is Ready. Which of
// the pods of an agent before it has already taken over, [Node.WaitHolds] tells.
func (n *Node) WaitReady(t testing.TB) {
	t.Helper()
	n.bed.mu.Lock()
	started := n.started
	n.bed.mu.Unlock()
	if running, err := n.running(); !running {
		t.Fatal(err)
	}
	n.bed.WaitFor(t, "node "+n.Name+" is Ready", readyLimit, func() error {
		if running, err := n.running(); !running {
			t.Fatal(err)
		}
		node, err := n.bed.Client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		condition := NodeCondition(node, corev1.NodeReady)
		if condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("Ready is %q: %s: %s", condition.Status, condition.Reason, condition.Message)
		}
		// An agent writes what it finds as soon as it begins; the API keeps seconds.
		if condition.LastHeartbeatTime.Time.Before(started.Truncate(time.Second)) {
			return fmt.Errorf("Ready is what an agent said at %v", condition.LastHeartbeatTime)
		}
		// No pod would be scheduled, and each test would wait for its own in vain.
		if pressure := NodeCondition(node, corev1.NodeDiskPressure); pressure.Status == corev1.ConditionTrue {
			t.Fatalf("the disk that holds %s is nearly full: make room there, or set TMPDIR to a folder on another", n.Root)
		}
		lease, err := n.bed.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		// The API keeps microseconds. A lease that is older is a dead agent's.
		if renewed := lease.Spec.RenewTime; renewed == nil || renewed.Time.Before(started.Truncate(time.Microsecond)) {
			return fmt.Errorf("the lease was renewed at %v", lease.Spec.RenewTime)
		}
		return nil
	})
}

// WaitHolds waits until the agent that runs now has these running pods in hand: it
// tells what they use only of those whose sandboxes answer it.
func (n *Node) WaitHolds(t testing.TB, namespace string, pods ...string) {
	t.Helper()
	n.bed.WaitFor(t, fmt.Sprintf("%s has %v in hand", n.Name, pods), readyLimit, func() error {
		return n.Holds(namespace, pods...)
	})
}

// Holds is what [Node.WaitHolds] waits for.
func (n *Node) Holds(namespace string, pods ...string) error {
	told, err := n.Ask("stats")
	if err != nil {
		return err
	}
	for _, pod := range pods {
		isIts := func(line string) bool {
			words := strings.Fields(line)
			return len(words) > 1 && words[0] == namespace && words[1] == pod
		}
		if !slices.ContainsFunc(strings.Split(told, "\n"), isIts) {
			return fmt.Errorf("%s is not in\n%s", pod, told)
		}
	}
	return nil
}

// Sandboxes are the processes that run guests, of all nodes: those of the
// krustlet program that are neither root's nor a compiler.
func (b *Bed) Sandboxes(t testing.TB) []int {
	t.Helper()
	program, err := os.Stat(b.program)
	if err != nil {
		t.Fatal(err)
	}
	residents, err := b.cluster.Room.Residents()
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, resident := range residents {
		if resident.UID != 0 && os.SameFile(resident.Program, program) && !slices.Contains(resident.Arguments, "compile") {
			found = append(found, resident.Pid)
		}
	}
	return found
}

func (n *Node) last() *room.Process {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	return n.process
}

func (n *Node) running() (bool, error) {
	process := n.last()
	if process == nil {
		return false, fmt.Errorf("%s was not started", n.Name)
	}
	return process.Running()
}

func (n *Node) stop() error {
	if running, _ := n.running(); !running {
		return nil
	}
	return n.last().Stop(stopLimit)
}

// tell shows what the agent had to say if the test failed.
func (n *Node) tell(t testing.TB) {
	if process := n.last(); t.Failed() && process != nil {
		t.Logf("the end of %s:\n%s", process.Log, process.Tail())
	}
}

// Says tells whether the agent's log has this text.
func (n *Node) Says(text string) error {
	log, err := os.ReadFile(n.last().Log)
	if err == nil && !strings.Contains(string(log), text) {
		err = fmt.Errorf("the log of %s does not say %q", n.Name, text)
	}
	return err
}

// NodeCondition is the condition of this type, or an empty one.
func NodeCondition(node *corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, condition := range node.Status.Conditions {
		if condition.Type == kind {
			return condition
		}
	}
	return corev1.NodeCondition{}
}
