package bed

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/room"
	"krustlet.dev/tests/cluster/toolchain"
)

// NetworkRights gives all nodes the rights that the project asks for besides their
// own, in the manifest that people apply.
func (b *Bed) NetworkRights(t testing.TB) {
	t.Helper()
	root, err := toolchain.Root()
	if err != nil {
		t.Fatal(err)
	}
	b.Kubectl(t, "apply", "-f", filepath.Join(root, "deploy", "network-rbac.yaml"))
}

// NoNetworkRights takes these from all nodes, and waits until the API server refuses
// what they allow.
func (b *Bed) NoNetworkRights(t testing.TB) {
	t.Helper()
	b.Kubectl(t, "delete", "clusterrolebinding", "krustlet:network", "--ignore-not-found")
	for _, resource := range []string{"nodes", "namespaces", "networkpolicies.networking.k8s.io", "endpointslices.discovery.k8s.io"} {
		b.WaitFor(t, "nodes may not list "+resource, readyLimit, func() error {
			// Its exit code says so, too.
			said, _ := b.TryKubectl(t, "auth", "can-i", "list", resource, "--all-namespaces",
				"--as=system:node:nobody", "--as-group=system:nodes")
			if !strings.HasPrefix(said, "no") {
				return errors.New(said)
			}
			return nil
		})
	}
}

// Answerer is somebody outside the cluster's pods, on the network of the nodes, who
// says his name to each who connects or sends to him, in HTTP to who asks in that.
type Answerer struct {
	Name    string
	Address netip.Addr
	Port    int32
}

// Answerer starts one for a test. The network is tcp or udp, for IPv4, or tcp6 or
// udp6.
func (b *Bed) Answerer(t testing.TB, network, name string) Answerer {
	t.Helper()
	namespace, address := b.cluster.Room.Network(), b.cluster.Room.Address(1)
	if strings.HasSuffix(network, "6") {
		b.BothFamilies(t)
		address = b.cluster.Room.Address6(1)
	}
	var at net.Addr
	switch strings.TrimSuffix(network, "6") {
	case "tcp":
		listener, err := room.Listen(namespace, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		at = listener.Addr()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go answer(conn, name)
			}
		}()
	case "udp":
		conn, err := room.ListenPacket(namespace, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		at = conn.LocalAddr()
		go func() {
			buffer := make([]byte, 2048)
			for {
				_, from, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = conn.WriteTo([]byte(name), from) // who is gone is gone
			}
		}()
	default:
		t.Fatalf("nobody answers by %s", network)
	}
	where, err := netip.ParseAddrPort(at.String())
	if err != nil {
		t.Fatal(err)
	}
	return Answerer{Name: name, Address: where.Addr(), Port: int32(where.Port())}
}

// answer says a name. A request of HTTP is told by its first word; all else is
// read to its end first, for else the end is a reset.
func answer(conn net.Conn, name string) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	if first, _ := reader.Peek(4); string(first) != "GET " {
		if _, err := io.Copy(io.Discard, reader); err == nil {
			fmt.Fprintln(conn, name)
		}
		return
	}
	if _, err := http.ReadRequest(reader); err == nil {
		// No connection is used twice: the next request may be led elsewhere.
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s\n", len(name)+1, name)
	}
}

// LedTo is where the node's sandboxes are led to at an address of a Service, at its
// only port.
func (n *Node) LedTo(address string) ([]netip.AddrPort, error) {
	text, err := os.ReadFile(filepath.Join(n.Root, "run", "services", "addresses", address))
	if err != nil {
		return nil, err
	}
	var of struct {
		Ports []struct {
			Endpoints []netip.AddrPort `json:"endpoints"`
		} `json:"ports"`
	}
	if err := json.Unmarshal(text, &of); err != nil {
		return nil, err
	}
	if len(of.Ports) != 1 {
		return nil, fmt.Errorf("it has %d ports", len(of.Ports))
	}
	return of.Ports[0].Endpoints, nil
}

// ProxyMode is by which of the kernel's rules a kube-proxy leads.
type ProxyMode string

const (
	NFTables ProxyMode = "nftables"
	IPTables ProxyMode = "iptables"
)

// clear removes what a kube-proxy of that mode leaves in its namespace.
func (m ProxyMode) clear() string {
	if m == IPTables {
		// Tables that are given without anything in them are emptied.
		return `for program in iptables-restore ip6tables-restore; do
			printf '*%s\nCOMMIT\n' nat filter mangle | $program || exit; done`
	}
	return "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy"
}

// KubeProxy starts a kube-proxy for a node's pods, for one test. All nodes are on
// one network here, so there is one at a time.
func (b *Bed) KubeProxy(t testing.TB, node *Node, mode ProxyMode) {
	t.Helper()
	// A node has a way to anywhere, so that packets for a Service come as far as the
	// rules that reject them; the room has none.
	for _, services := range b.cluster.ServiceRanges() {
		way := []string{services, "dev", "node0"}
		b.IP(t, append([]string{"route", "replace"}, way...)...)
		t.Cleanup(func() { b.IP(t, append([]string{"route", "delete"}, way...)...) })
	}
	log := filepath.Join(b.Dir, "kube-proxy.log")
	args := []string{
		"--kubeconfig=" + b.cluster.AdminKubeconfig(),
		"--hostname-override=" + node.Name,
		"--proxy-mode=" + string(mode),
		// It would set the kernel to take packets of others for the loopback, and leave
		// it so.
		"--iptables-localhost-nodeports=false",
		// By this it tells pods from clients elsewhere, to whom other policies apply.
		"--cluster-cidr=" + strings.Join(b.cluster.PodRanges(), ","),
		// Of nftables' rules too; a second otherwise, for each change that a test waits for.
		"--iptables-min-sync-period=100ms",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
	}
	process, err := b.cluster.Room.Start(room.Command{
		Name: "kube-proxy", Path: b.cluster.Program("kube-proxy"), Args: args, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log)
			lines := strings.Split(string(text), "\n")
			t.Logf("kube-proxy: %s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		process.Kill()
		// Its rules would go on without it.
		if _, err := b.cluster.Room.Run(room.Command{Name: "clear", Path: "sh", Args: []string{"-c", mode.clear()}}); err != nil {
			t.Error("rules of kube-proxy are left: ", err)
		}
	})
}
