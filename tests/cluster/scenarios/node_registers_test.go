package scenarios

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

func theNode(t *testing.T, b *bed.Bed, name string) *corev1.Node {
	t.Helper()
	node, err := b.Client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func TestANodeHasTheLabelsOfItsPlatform(t *testing.T) {
	b := bed.Start(t)
	labels := theNode(t, b, b.Node(t).Name).Labels
	for name, want := range map[string]string{
		corev1.LabelHostname:      b.Node(t).Name,
		corev1.LabelOSStable:      architecture,
		corev1.LabelArchStable:    architecture,
		"beta.kubernetes.io/os":   architecture,
		"beta.kubernetes.io/arch": architecture,
	} {
		same(t, "label "+name, labels[name], want)
	}
}

const ownTaints = "kubernetes.io/arch=wasm32-wasi:NoExecute kubernetes.io/arch=wasm32-wasi:NoSchedule"

// The taints keep pods away that say nothing of Wasm. Both effects are those of
// the first Krustlet.
func TestANodeIsTainted(t *testing.T) {
	b := bed.Start(t)
	same(t, "taints", sorted(theNode(t, b, b.Node(t).Name).Spec.Taints), ownTaints)
}

func TestANodeHasTheCapacityOfItsMachine(t *testing.T) {
	b := bed.Start(t)
	status := theNode(t, b, b.Node(t).Name).Status
	same(t, "cpu", status.Capacity.Cpu().Value(), int64(runtime.NumCPU()))
	same(t, "memory", status.Capacity.Memory().Value(), memoryOfTheMachine(t))
	same(t, "pods", status.Capacity.Pods().Value(), 110)
	if status.Capacity.StorageEphemeral().IsZero() {
		t.Error("no ephemeral-storage")
	}
	for name, capacity := range status.Capacity {
		allocatable, ok := status.Allocatable[name]
		if !ok || allocatable.Cmp(capacity) > 0 || allocatable.Sign() < 0 {
			t.Errorf("allocatable %s is %v of %v", name, allocatable.String(), capacity.String())
		}
	}
}

func memoryOfTheMachine(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "MemTotal:" {
			kibibytes, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kibibytes << 10
		}
	}
	t.Fatal("no MemTotal in /proc/meminfo")
	return 0
}

func TestANodeTellsWhatItIs(t *testing.T) {
	b := bed.Start(t)
	info := theNode(t, b, b.Node(t).Name).Status.NodeInfo
	same(t, "operating system", info.OperatingSystem, architecture)
	same(t, "architecture", info.Architecture, architecture)
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "kernel", info.KernelVersion, strings.TrimSpace(string(kernel)))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "boot", info.BootID, strings.TrimSpace(string(boot)))
	for what, check := range map[string]struct{ got, want string }{
		"kubelet version": {info.KubeletVersion, `^v1\.37\.\d+\+krustlet\.\d+\.\d+\.\d+`},
		"runtime version": {info.ContainerRuntimeVersion, `^wasmtime://\d+\.\d+\.\d+`},
	} {
		if !regexp.MustCompile(check.want).MatchString(check.got) {
			t.Errorf("%s: %q does not match %s", what, check.got, check.want)
		}
	}
}

func TestANodeTellsWhereItIs(t *testing.T) {
	b := bed.Start(t)
	shared := b.Node(t)
	status := theNode(t, b, shared.Name).Status
	found := map[corev1.NodeAddressType]string{}
	for _, address := range status.Addresses {
		found[address.Type] = address.Address
	}
	same(t, "InternalIP", found[corev1.NodeInternalIP], shared.Address.String())
	same(t, "Hostname", found[corev1.NodeHostName], shared.Name)
	same(t, "port", status.DaemonEndpoints.KubeletEndpoint.Port, shared.Port)
}

func TestANodeNamesItsRuntimeHandlers(t *testing.T) {
	b := bed.Start(t)
	var names []string
	for _, handler := range theNode(t, b, b.Node(t).Name).Status.RuntimeHandlers {
		names = append(names, handler.Name)
	}
	for _, want := range []string{"wasm", "wasm-dense"} {
		if !slices.Contains(names, want) {
			t.Errorf("%q is not among %q", want, names)
		}
	}
}

func TestANodeReportsTheKubeletsConditions(t *testing.T) {
	b := bed.Start(t)
	node := theNode(t, b, b.Node(t).Name)
	for kind, want := range map[corev1.NodeConditionType]string{
		corev1.NodeReady:          "True KubeletReady",
		corev1.NodeMemoryPressure: "False KubeletHasSufficientMemory",
		corev1.NodeDiskPressure:   "False KubeletHasNoDiskPressure",
		corev1.NodePIDPressure:    "False KubeletHasSufficientPID",
	} {
		found := bed.NodeCondition(node, kind)
		same(t, string(kind), string(found.Status)+" "+found.Reason, want)
		if found.LastHeartbeatTime.IsZero() || found.LastTransitionTime.IsZero() {
			t.Errorf("%s has no times: %v", kind, found)
		}
	}
}

func TestTheLeaseIsTheNodesAndIsRenewed(t *testing.T) {
	b := bed.Start(t)
	node := theNode(t, b, b.Node(t).Name)
	leases := b.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	first, err := leases.Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if first.Spec.HolderIdentity == nil || *first.Spec.HolderIdentity != node.Name {
		t.Errorf("holder: %v", first.Spec.HolderIdentity)
	}
	if first.Spec.LeaseDurationSeconds == nil || *first.Spec.LeaseDurationSeconds != 40 {
		t.Errorf("duration: %v", first.Spec.LeaseDurationSeconds)
	}
	if len(first.OwnerReferences) != 1 || first.OwnerReferences[0].UID != node.UID {
		t.Errorf("owner: %v, want node %s", first.OwnerReferences, node.UID)
	}
	b.WaitFor(t, "the lease is renewed", limit, func() error {
		now, err := leases.Get(t.Context(), node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !now.Spec.RenewTime.After(first.Spec.RenewTime.Time) {
			return fmt.Errorf("renewed at %s", now.Spec.RenewTime)
		}
		return nil
	})
}

func TestADeletedNodeRegistersAgain(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "deleted")
	before := theNode(t, b, node.Name)
	if err := b.Client.CoreV1().Nodes().Delete(t.Context(), node.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var now *corev1.Node
	b.WaitFor(t, "the node is back", limit, func() error {
		found, err := b.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if found.UID == before.UID {
			return errors.New("it is still the old one")
		}
		if ready := bed.NodeCondition(found, corev1.NodeReady); ready.Status != corev1.ConditionTrue {
			return fmt.Errorf("it is not Ready: %s", ready.Message)
		}
		// Of a node that comes, the controllers say for a moment that it is not ready.
		if taints := sorted(found.Spec.Taints); taints != ownTaints {
			return fmt.Errorf("its taints are %s", taints)
		}
		now = found
		return nil
	})
	same(t, "labels", fmt.Sprint(now.Labels), fmt.Sprint(before.Labels))
	same(t, "addresses", fmt.Sprint(now.Status.Addresses), fmt.Sprint(before.Status.Addresses))
	b.WaitFor(t, "the lease is the new node's", limit, func() error {
		lease, err := b.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		owners := lease.OwnerReferences
		if len(owners) != 1 || owners[0].Kind != "Node" || owners[0].Name != node.Name || owners[0].UID != now.UID {
			return fmt.Errorf("its owners are %v, the node is %s", owners, now.UID)
		}
		return nil
	})
	// And it takes pods again.
	same(t, "output", output(t, b, b.Namespace(t), on(node, wasmPod("new", b.Image(t, "hello.wasm"), "args", "hello"))), "hello\n")
}

// sorted are taints as a text, in no order of theirs.
func sorted(taints []corev1.Taint) string {
	var texts []string
	for _, taint := range taints {
		texts = append(texts, taint.ToString())
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}
