// Package kubelet puts a real kubelet with containerd and runc into a test
// cluster, so that what it shows its users can be recorded. Ordinary test runs do
// not need it.
//
// What cannot be built from Go modules is to be installed by hand: containerd,
// runc and the CNI plugins (Debian: containerd runc containernetworking-plugins).
// All runs in the cluster's namespaces and ends with them. Two things of the
// machine are touched, and put back by the test's end: settings that the kubelet
// makes in /proc/sys, and its control groups.
package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/room"
	"krustlet.dev/tests/cluster/toolchain"
)

// address is the last byte of the node's; krustlet nodes count from 11.
const address = 200

// pods is the range of the pods' addresses behind the node's bridge.
const pods = "10.246.0.0/16"

// readyLimit is for the start of containerd and the kubelet.
const readyLimit = 2 * time.Minute

// Node is a running kubelet.
type Node struct {
	Name    string
	Address netip.Addr
	bed     *bed.Bed
	dir     string
}

// Start starts containerd and a kubelet and waits until the node is Ready. The
// sandbox image must be in the registry; see [Images].
func Start(t testing.TB, b *bed.Bed, name, sandboxImage string) *Node {
	t.Helper()
	program, err := toolchain.BuildKubelet(t.Context(), filepath.Dir(b.Cluster().Program("kubectl")), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	node := &Node{Name: name, bed: b, dir: filepath.Join(b.Dir, name)}
	if node.Address, err = b.Cluster().Room.AddAddress(address); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := b.Cluster().NodeKubeconfig(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.writeFiles(sandboxImage); err != nil {
		t.Fatal(err)
	}
	putBack(t)
	// The shims' sockets and runc's state have fixed places below /run; these
	// are the room's own.
	containerd := node.launch(t, "containerd", "sh", "-c",
		`mount -t tmpfs none /run && exec containerd --config "$0"`, node.file("containerd.toml"))
	socket := node.file("containerd.sock")
	b.WaitFor(t, "containerd listens", readyLimit, func() error {
		if running, err := containerd.Running(); !running {
			t.Fatal(err)
		}
		_, err := os.Stat(socket)
		return err
	})
	kubelet := node.launch(t, "kubelet", program,
		"--kubeconfig="+kubeconfig, "--config="+node.file("kubelet.yaml"), "--hostname-override="+name,
		"--node-ip="+node.Address.String(), "--root-dir="+node.file("root"), "--cert-dir="+node.file("pki"), "--v=2")
	b.WaitFor(t, "the kubelet's node is Ready", readyLimit, func() error {
		if running, err := kubelet.Running(); !running {
			t.Fatal(err)
		}
		found, err := b.Client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ready := bed.NodeCondition(found, corev1.NodeReady); ready.Status != corev1.ConditionTrue {
			return fmt.Errorf("Ready is %q: %s", ready.Status, ready.Message)
		}
		if len(found.Spec.Taints) > 0 {
			return errors.New("it still has a taint")
		}
		return nil
	})
	return node
}

// Versions are what the node says of itself.
func (n *Node) Versions(t testing.TB) map[string]string {
	t.Helper()
	found, err := n.bed.Client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info := found.Status.NodeInfo
	return map[string]string{
		"kubelet": info.KubeletVersion, "runtime": info.ContainerRuntimeVersion,
		"kernel": info.KernelVersion, "system": info.OSImage,
	}
}

// launch starts a program of the node; it is stopped when the test ends, what
// started last first.
func (n *Node) launch(t testing.TB, name, path string, args ...string) *room.Process {
	t.Helper()
	if !strings.Contains(path, "/") {
		path = "/bin/" + path
	}
	process, err := n.bed.Cluster().Room.Start(room.Command{Name: name, Path: path, Args: args, Log: n.file(name + ".log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of %s:\n%s", process.Log, process.Tail())
		}
		if err := process.Stop(30 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return process
}

func (n *Node) file(name string) string { return filepath.Join(n.dir, name) }

func (n *Node) writeFiles(sandboxImage string) error {
	registry := n.bed.Registry()
	hosts := filepath.Join("registries", registry)
	for _, folder := range []string{"root", "pki", "cni", "pods", hosts} {
		if err := os.MkdirAll(n.file(folder), 0o755); err != nil {
			return err
		}
	}
	network, err := json.Marshal(n.network())
	if err != nil {
		return err
	}
	config, err := json.MarshalIndent(n.configuration(), "", "  ")
	if err != nil {
		return err
	}
	server := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+registry, "http://"+registry)
	return errors.Join(
		os.WriteFile(n.file("cni/10-bridge.conflist"), network, 0o644),
		os.WriteFile(n.file("kubelet.yaml"), config, 0o644),
		os.WriteFile(n.file(filepath.Join(hosts, "hosts.toml")), []byte(server), 0o644),
		os.WriteFile(n.file("containerd.toml"), []byte(n.containerd(sandboxImage)), 0o644),
	)
}

// containerd is its configuration, as for a node by kubeadm but for places.
func (n *Node) containerd(sandboxImage string) string {
	return strings.NewReplacer("DIR", n.dir, "SANDBOX", sandboxImage).Replace(`
version = 2
root = "DIR/containerd"
state = "/run/containerd-state"
[grpc]
  address = "DIR/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "SANDBOX"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "DIR/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "DIR/cni"
`)
}

// network is the CNI's: a bridge, as the simplest clusters have.
func (n *Node) network() map[string]any {
	type object = map[string]any
	return object{"cniVersion": "0.4.0", "name": "pods", "plugins": []object{{
		"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
		"ipam": object{
			"type": "host-local", "dataDir": n.file("ipam"),
			"ranges": [][]object{{{"subnet": pods}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
		},
	}}}
}

// configuration is the kubelet's: its defaults wherever a closed room allows.
func (n *Node) configuration() map[string]any {
	type object = map[string]any
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": n.Address.String(), "healthzPort": 0, "podLogsDir": n.file("pods"),
		"containerRuntimeEndpoint": "unix://" + n.file("containerd.sock"),
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": n.bed.Cluster().Authority()},
		},
		"authorization": object{"mode": "Webhook"},
		"cgroupDriver":  "cgroupfs", "failCgroupV1": false, "failSwapOn": false, "oomScoreAdj": 0,
		// Of the cluster's service range; nobody answers, and nobody asks.
		"clusterDNS": []string{"10.96.0.10"}, "clusterDomain": "cluster.local",
		// No iptables is needed where no Service is.
		"makeIPTablesUtilChains": false,
		// A developer's disk may be fuller than a node's should be.
		"evictionHard":                object{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100,
	}
}

// settings are what the kubelet sets in /proc/sys, for the whole machine.
// Source: kubelet, setupKernelTunables in pkg/kubelet/cm/container_manager_linux.go.
var settings = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// putBack restores at the test's end what the kubelet changes on the machine.
func putBack(t testing.TB) {
	t.Helper()
	for _, name := range settings {
		path := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(path, value, 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(removeGroups)
}

// removeGroups removes the kubelet's control groups, which are empty by now.
// Those that are not are another kubelet's.
func removeGroups() {
	var groups []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.Contains(path, "/kubepods") {
			groups = append(groups, path)
		}
		return nil
	})
	for _, group := range slices.Backward(groups) {
		_ = os.Remove(group)
	}
}
