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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// nothing is what a guest is told of a name without an address.
const nothing = "name-unresolvable"

// nameCase is a name that guests ask for, and the addresses it has.
type nameCase struct {
	name string
	want []string
	// known is what a node says that knows the Services itself, if that is not the same, and why.
	known []string
	why   string
}

// namedThings are the objects whose names are asked for.
type namedThings struct {
	ns, other                string
	both, one, far, six, api []string // addresses of Services
	named, unnamed, late     []string // of pods
	v4, v6                   string   // of endpoints that a person wrote
}

// cases are the questions, and what a cluster's name server answers.
func (n namedThings) cases() []nameCase {
	domain := "." + n.ns + ".svc." + bed.Domain
	backend := slices.Concat(n.named, n.unnamed)
	return []nameCase{
		// Services with addresses of their own, in all ways to write the name.
		{name: "both", want: n.both},
		{name: "BoTh", want: n.both},
		{name: "both." + n.ns, want: n.both},
		{name: "both." + n.ns + ".svc", want: n.both},
		{name: "both" + domain, want: n.both},
		{name: "both" + domain + ".", want: n.both},
		{name: "one", want: n.one},
		{name: "six", want: n.six},
		{name: "kubernetes.default", want: n.api},
		{name: "far"},
		{name: "far." + n.other, want: n.far},
		{name: "far." + n.other + ".svc." + bed.Domain, want: n.far},

		// Those that stand for their pods.
		{name: "backend", want: backend},
		{name: "named.backend", want: n.named},
		{name: "named.backend" + domain, want: n.named},
		{name: dashed(n.unnamed[0]) + ".backend", want: n.unnamed[:1]},
		{name: dashed(n.unnamed[1]) + ".backend", want: n.unnamed[1:]},
		{name: "unnamed.backend"},
		{name: "deeper.named.backend" + domain},
		{name: "patient"},
		{name: "late.patient"},
		{name: "early", want: n.late},
		{name: "late.early", want: n.late},
		{name: "empty"},
		{name: "written", want: []string{n.v4, n.v6}},
		{name: "first.written", want: []string{n.v4, n.v6}},

		// Those that stand for other names.
		{name: "to-both", want: n.both},
		{name: "to-backend", want: backend},
		{name: "to-out", want: []string{bed.OutsideV4, bed.OutsideV6}},
		{name: "to-to-both", want: n.both},
		{name: "to-nobody"},
		{name: "to-address"},

		// What there is not.
		{name: "nobody" + domain},
		{name: "both.nowhere.svc." + bed.Domain},
		{name: n.ns + ".svc." + bed.Domain},
		{name: "svc." + bed.Domain},
		{name: bed.Domain},
		{name: "named.both"},
		{name: dashed(n.named[0]) + "." + n.ns + ".pod." + bed.Domain},

		// Outside: as it is, by the node's own search list, and not at all.
		{name: bed.OutsideName, want: []string{bed.OutsideV4, bed.OutsideV6}},
		{name: bed.Gate, want: []string{bed.GateV4}},
		{name: "nobody.example.test"},

		{
			name: dashed(n.unnamed[0]) + ".selecting", want: n.unnamed[:1], known: []string{},
			why: "CoreDNS names endpoints of Services with addresses of their own too; the DNS specification does not, " +
				"and each file of a Service would have to hold all its endpoints twice",
		},
	}
}

func texts(addresses []netip.Addr) []string {
	var all []string
	for _, address := range addresses {
		all = append(all, address.String())
	}
	return all
}

// dashed is how an endpoint without a name is called.
func dashed(address string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(address) }

// A node that knows the cluster's names itself answers as the cluster's name server does.
func TestNamesAreThoseOfTheClustersNameServer(t *testing.T) {
	b := bed.Start(t)
	b.BothFamilies(t)
	b.NetworkRights(t)
	server := b.DNS(t).String()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+server+"\nsearch "+bed.GateDomain+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	asks := b.StartNodeWith(t, "asks", map[string]any{"clusterDNS": []string{server}, "resolvConf": file})
	knows := b.StartNodeWith(t, "knows", map[string]any{"clusterDNS": []string{}, "resolvConf": file}, "--service-proxy=builtin")
	things := nameThings(t, b, asks)
	cases := things.cases()
	for _, kind := range []struct {
		name   string
		change func(*corev1.PodSpec)
	}{
		{"a pod", func(*corev1.PodSpec) {}},
		// The node has an address of IPv4 alone; such a pod calls both.
		{"a pod of the node's network", func(spec *corev1.PodSpec) {
			spec.HostNetwork, spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		}},
	} {
		for _, node := range []*bed.Node{asks, knows} {
			t.Run(kind.name+" of a node that "+node.Name, func(t *testing.T) {
				c := &client{b: b, node: node, ns: things.ns}
				// Nodes and name servers hear of what there is in their own time.
				b.WaitFor(t, "all names are known", limit, func() error {
					return c.lookUp(t, cases, node == knows, kind.change)
				})
			})
		}
	}
}

// lookUp asks for all names in one pod and compares what is said.
func (c *client) lookUp(t *testing.T, cases []nameCase, isKnown bool, change func(*corev1.PodSpec)) error {
	t.Helper()
	c.count++
	pod := c.pod(t, 1)
	pod.Name, pod.GenerateName = "", "looks-up-"
	change(&pod.Spec)
	first := pod.Spec.Containers[0]
	pod.Spec.Containers = nil
	for number, one := range cases {
		next := first
		next.Name, next.Args = fmt.Sprintf("name-%d", number), []string{"lookup", one.name}
		pod.Spec.Containers = append(pod.Spec.Containers, next)
	}
	pod = create(t, c.b, c.ns, pod)
	c.ended(t, pod.Name)
	var wrong []string
	for number, one := range cases {
		want := one.want
		if isKnown && one.known != nil {
			want = one.known
		}
		want = slices.Clone(want)
		if len(want) == 0 {
			want = []string{nothing}
		}
		said := strings.Fields(c.log(t, pod.Name, pod.Spec.Containers[number].Name))
		slices.Sort(want)
		if slices.Sort(said); !slices.Equal(said, want) {
			wrong = append(wrong, fmt.Sprintf("%s is %v, not %v", one.name, said, want))
		}
	}
	if wrong != nil {
		return fmt.Errorf("%s", strings.Join(wrong, "\n"))
	}
	return nil
}

// nameThings makes what has names, and returns it once its addresses are known.
func nameThings(t *testing.T, b *bed.Bed, node *bed.Node) namedThings {
	t.Helper()
	n := namedThings{ns: b.Namespace(t), other: b.Namespace(t)}
	service := func(namespace, name string, change func(*corev1.ServiceSpec)) *corev1.Service {
		made := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
		made.Spec.Ports = []corev1.ServicePort{{Port: webPort}}
		change(&made.Spec)
		made, err := b.Client.CoreV1().Services(namespace).Create(t.Context(), made, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	both := func(spec *corev1.ServiceSpec) { spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack) }
	headless := func(selector map[string]string) func(*corev1.ServiceSpec) {
		return func(spec *corev1.ServiceSpec) {
			both(spec)
			spec.ClusterIP, spec.Selector = corev1.ClusterIPNone, selector
		}
	}
	alias := func(name, target string) {
		service(n.ns, name, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.ExternalName = corev1.ServiceTypeExternalName, target
		})
	}
	backend, late := map[string]string{"app": "backend"}, map[string]string{"app": "late"}
	pod := func(name, hostname, subdomain string, labels map[string]string) *corev1.Pod {
		made := labelled(webPodOn(t, b, node, name), labels)
		made.Spec.Hostname, made.Spec.Subdomain = hostname, subdomain
		return made
	}
	create(t, b, n.ns, pod("named", "named", "backend", backend))
	create(t, b, n.ns, pod("unnamed", "", "", backend))
	create(t, b, n.ns, neverReady(pod("late", "late", "early", late)))

	n.both = service(n.ns, "both", both).Spec.ClusterIPs
	n.one = service(n.ns, "one", func(*corev1.ServiceSpec) {}).Spec.ClusterIPs
	n.six = service(n.ns, "six", func(spec *corev1.ServiceSpec) {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	}).Spec.ClusterIPs
	n.far = service(n.other, "far", both).Spec.ClusterIPs
	kubernetes, err := b.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.api = kubernetes.Spec.ClusterIPs
	service(n.ns, "selecting", func(spec *corev1.ServiceSpec) { spec.Selector = backend })
	service(n.ns, "backend", headless(backend))
	service(n.ns, "patient", headless(late))
	service(n.ns, "early", func(spec *corev1.ServiceSpec) {
		headless(late)(spec)
		spec.PublishNotReadyAddresses = true
	})
	service(n.ns, "empty", headless(map[string]string{"app": "nobody"}))
	written := service(n.ns, "written", headless(nil))
	c := &client{b: b, node: node, ns: n.ns}
	n.v4, n.v6 = "192.0.2.7", "2001:db8::7"
	for number, address := range []string{n.v4, n.v6} {
		one := end{Answerer: bed.Answerer{Address: netip.MustParseAddr(address)}, hostname: "first"}
		c.slice(t, fmt.Sprintf("written-%d", number), written, ports(written.Spec.Ports[0], webPort), one)
	}
	domain := "." + n.ns + ".svc." + bed.Domain
	alias("to-both", "both"+domain)
	alias("to-backend", "backend"+domain)
	alias("to-to-both", "to-both"+domain)
	alias("to-out", bed.OutsideName)
	alias("to-nobody", "nobody.example.test")
	alias("to-address", "192.0.2.1")

	n.named = texts(bed.PodAddresses(t, awaitReady(t, b, n.ns, "named")))
	n.unnamed = texts(bed.PodAddresses(t, awaitReady(t, b, n.ns, "unnamed")))
	n.late = texts(bed.PodAddresses(t, awaitPhase(t, b, n.ns, "late", corev1.PodRunning)))
	return n
}
