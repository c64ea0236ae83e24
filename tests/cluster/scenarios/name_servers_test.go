package scenarios

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// Where name servers answer: at an address that pods reach as any other, and at the
// one of a NodeLocal DNSCache, which is link-local.
var (
	farServer   = netip.MustParseAddr("192.0.2.53")
	localServer = netip.MustParseAddr("169.254.20.10")
)

// manyAddresses is how many big.test has: more than a datagram of 512 bytes holds.
const manyAddresses = 60

// corefile has CoreDNS answer at both addresses. Each says by where.test which it
// was. Names below long.test hold for ten minutes, those below short.test for a
// second, and what nobody knows does not exist.
func corefile() string {
	text := &strings.Builder{}
	for number, server := range []netip.Addr{farServer, localServer} {
		fmt.Fprintf(text, ".:53 {\n    bind %s\n    errors\n    log\n", server)
		zone := func(name string, ttl int, addresses ...string) {
			fmt.Fprintf(text, "    template IN A %s {\n", name)
			for _, address := range addresses {
				fmt.Fprintf(text, "        answer \"{{ .Name }} %d IN A %s\"\n", ttl, address)
			}
			fmt.Fprintf(text, "    }\n    template IN AAAA %s {\n        rcode NOERROR\n    }\n", name)
		}
		var many []string
		for last := range manyAddresses {
			many = append(many, fmt.Sprintf("192.0.2.%d", 100+last))
		}
		zone("big.test", 60, many...)
		zone("where.test", 60, fmt.Sprintf("192.0.2.%d", 1+number))
		zone("short.test", 1, "192.0.2.3")
		zone("long.test", 600, "192.0.2.4")
		zone("found.test", 60, "192.0.2.5")
		fmt.Fprint(text, "    template IN ANY . {\n        rcode NXDOMAIN\n    }\n}\n")
	}
	return text.String()
}

// asker is a pod whose program can be run again and again, with its one memory of
// names.
type asker struct {
	node    *bed.Node
	pod     *corev1.Pod
	address netip.Addr
}

func (a asker) says(args ...string) string {
	command := []string{"exec", "--namespace=" + a.pod.Namespace, a.pod.Name, "--", "net"}
	// Its exit code tells nothing more than what it prints.
	out, _ := a.node.Ask(append(command, args...)...)
	return out
}

func TestPodsAskNameServersAsTheirPolicySays(t *testing.T) {
	b := bed.Start(t)
	servers := b.NameServers(t, corefile(), farServer, localServer)
	conf := filepath.Join(b.Dir, "asking-resolv.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "nameserver %s\nsearch node.test\n", farServer), 0o644); err != nil {
		t.Fatal(err)
	}
	node := b.StartNodeWith(t, "asking", map[string]any{
		"clusterDNS": []string{localServer.String()}, "resolvConf": conf,
	})
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	// All of them at once.
	begin := func(name string, policy corev1.DNSPolicy, config *corev1.PodDNSConfig) {
		pod := on(node, always(wasmPod(name, image, "tcp-echo", "8080")))
		pod.Spec.DNSPolicy, pod.Spec.DNSConfig = policy, config
		create(t, b, ns, pod)
	}
	one := "1"
	begin("cluster", corev1.DNSClusterFirst, nil)
	begin("config", corev1.DNSClusterFirst, &corev1.PodDNSConfig{
		Searches: []string{"found.test"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &one}},
	})
	begin("default", corev1.DNSDefault, nil)
	begin("none", corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{farServer.String()}})
	begin("curious", corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{localServer.String()}})
	ready := func(name string) asker {
		pod := awaitReady(t, b, ns, name)
		return asker{node, pod, bed.PodAddress(t, pod)}
	}
	cluster, config := ready("cluster"), ready("config")
	b.WaitFor(t, "the name server answers", limit, func() error {
		if said := cluster.says("lookup", "where.test."); said != "192.0.2.2\n" {
			return fmt.Errorf("the pod printed %q", said)
		}
		return nil
	})

	t.Run("whom a pod asks", func(t *testing.T) {
		same(t, "by Default", ready("default").says("lookup", "where.test."), "192.0.2.1\n")
		same(t, "by None", ready("none").says("lookup", "where.test."), "192.0.2.1\n")
		// What the pod names itself is no more trusted than the pod, and the pod's own
		// packets go nowhere that only its look-ups may.
		curious := ready("curious")
		same(t, "of a link-local server of its own", curious.says("lookup", "where.test."), "temporary-resolver-failure\n")
		same(t, "questions of it", len(servers.Asked(t, curious.address)), 0)
		same(t, "of a connection", cluster.says("connect", localServer.String(), "53"), "access-denied\n")
		same(t, "of a datagram", cluster.says("udp-get", localServer.String(), "53", "x"), "access-denied\n")
	})
	t.Run("an answer that does not fit comes by TCP", func(t *testing.T) {
		lines := strings.Fields(cluster.says("lookup", "big.test."))
		slices.Sort(lines)
		same(t, "addresses", len(slices.Compact(lines)), manyAddresses)
		b.WaitFor(t, "both questions are in the log", limit, func() error {
			asked := servers.Asked(t, cluster.address)
			for _, by := range []string{"udp", "tcp"} {
				if !slices.Contains(asked, bed.Question{Name: "big.test", By: by}) {
					return fmt.Errorf("not by %s: %v", by, asked)
				}
			}
			return nil
		})
	})
	t.Run("an answer holds as long as its server says", func(t *testing.T) {
		asked := func(name string) int {
			count := 0
			for _, question := range servers.Asked(t, cluster.address) {
				if question.Name == name {
					count++
				}
			}
			return count
		}
		b.WaitFor(t, "what holds for a second is asked for again", limit, func() error {
			same(t, "the one", cluster.says("lookup", "a.short.test."), "192.0.2.3\n")
			same(t, "the other", cluster.says("lookup", "a.long.test."), "192.0.2.4\n")
			if count := asked("a.short.test"); count < 3 {
				return fmt.Errorf("it was asked for %d times", count)
			}
			return nil
		})
		same(t, "questions for what holds longer", asked("a.long.test"), 1)
	})
	t.Run("the search list is that of the pod", func(t *testing.T) {
		tries := func(asker asker, name string, want ...string) {
			t.Helper()
			same(t, name, asker.says("lookup", name), "192.0.2.5\n")
			slices.Sort(want)
			b.WaitFor(t, fmt.Sprintf("%s is asked for as %v and nothing else", name, want), limit, func() error {
				var seen []string
				for _, question := range servers.Asked(t, asker.address) {
					if strings.HasPrefix(question.Name, name+".") || question.Name == name {
						seen = append(seen, question.Name)
					}
				}
				slices.Sort(seen)
				if !slices.Equal(seen, want) {
					return fmt.Errorf("it was asked for %v", seen)
				}
				return nil
			})
		}
		below := []string{ns + ".svc." + bed.Domain, "svc." + bed.Domain, bed.Domain, "node.test"}
		under := func(name string, more ...string) []string {
			var all []string
			for _, domain := range below {
				all = append(all, name+"."+domain)
			}
			return append(all, more...)
		}
		// The list first, for it has fewer dots than five.
		tries(cluster, "x.found.test", under("x.found.test", "x.found.test")...)
		// As it is first, and found by that.
		tries(config, "x.found.test", "x.found.test")
		// The pod's own domains come last.
		tries(config, "y", under("y", "y.found.test")...)
	})
}
