package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// Labels in the cases: of the pod that policies are about, of those that it calls,
// of some that call it, and of a namespace.
var (
	subject  = map[string]string{"app": "subject"}
	database = map[string]string{"app": "db"}
	friendly = map[string]string{"role": "friend"}
	teamB    = map[string]string{"team": "b"}
)

// policyCase is what policies of one namespace let through.
type policyCase struct {
	name string
	// all are for the subject, or for all pods.
	all []networkingv1.NetworkPolicySpec
	// in is who comes in, out is where the subject comes to; empty for nobody and
	// nowhere, beside the node, which always comes in.
	in, out  string
	isForAll bool
}

// bothWays are all types of policies that there are.
var bothWays = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}

// Everybody and everywhere. `x` is the pod x, `x*` the same by a Service, `x6` by
// IPv6, `x~` by datagrams; far is on another node, guest and visitor are of another
// namespace, and guest and far are friends as well. `db!` is db by its name. `x?` is
// never among them: whose connection is taken, though nothing is answered.
const (
	everybody  = "far friend friend* friend6 friend~ guest stranger stranger* stranger~ visitor"
	everywhere = "db db! db* db6 far"
	friends    = "far friend friend* friend6 friend~"
)

func peer(namespace, pod map[string]string) networkingv1.NetworkPolicyPeer {
	var peer networkingv1.NetworkPolicyPeer
	if namespace != nil {
		peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: namespace}
	}
	if pod != nil {
		peer.PodSelector = &metav1.LabelSelector{MatchLabels: pod}
	}
	return peer
}

// sends lets out to these peers, at these ports of them; of any without peers or ports.
func sends(peers []networkingv1.NetworkPolicyPeer, ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
	return networkingv1.NetworkPolicySpec{
		PolicyTypes: outOnly, Egress: []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}},
	}
}

func numbered(protocol corev1.Protocol, first int32, last ...int32) networkingv1.NetworkPolicyPort {
	port := networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: ptr(intstr.FromInt32(first))}
	if len(last) > 0 {
		port.EndPort = &last[0]
	}
	return port
}

// policyCases say what comes through. The addresses are those of a stage.
func (s *stage) cases() []policyCase {
	type specs = []networkingv1.NetworkPolicySpec
	type peers = []networkingv1.NetworkPolicyPeer
	names := sends(peers{block(s.server + "/32")}, numbered(corev1.ProtocolUDP, 53), numbered(corev1.ProtocolTCP, 53))
	toDatabase := sends(peers{peer(nil, database)})
	return []policyCase{
		{"without a policy all comes through", nil, everybody, everywhere, false},
		{
			name: "nothing does by one for all pods of the namespace that has no rules",
			all:  specs{{PolicyTypes: bothWays}}, isForAll: true,
		},
		{"names alone are of no use", specs{{PolicyTypes: bothWays}, names}, "", "", false},
		{"what is let out is reached by its name only if name servers are too", specs{
			{PolicyTypes: inOnly}, toDatabase,
		}, "", "db db* db6", false},
		{"and is then", specs{{PolicyTypes: inOnly}, toDatabase, names}, "", "db db! db* db6", false},
		{"one that names no direction is of what comes in", specs{
			{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers{peer(nil, friendly)}}}},
		}, friends, everywhere, false},
		{"one that names none and says where to go is of both", specs{
			{Egress: []networkingv1.NetworkPolicyEgressRule{{To: peers{peer(nil, database)}}}},
		}, "", "db db* db6", false},
		{"a peer of two selectors has to fit both", specs{lets(peer(teamB, friendly))}, "guest", everywhere, false},
		{"two peers of one selector each let through what fits either", specs{
			lets(peer(teamB, nil), peer(nil, friendly)),
		}, friends + " guest visitor", everywhere, false},
		{"expressions select too", specs{lets(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "role", Operator: metav1.LabelSelectorOpDoesNotExist}},
		}})}, "stranger stranger* stranger~", everywhere, false},
		{"a range has exceptions", specs{lets(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
			CIDR: "0.0.0.0/0", Except: []string{s.address("friend") + "/32", s.address("guest") + "/32"},
		}})}, "far stranger stranger* stranger~ visitor", everywhere, false},
		{"what counts of a Service is where it leads", specs{
			{PolicyTypes: inOnly}, sends(peers{block(s.services["db"].Spec.ClusterIP + "/32")}),
		}, "", "", false},
		{"a range of addresses is gone to, by a Service too", specs{
			{PolicyTypes: inOnly}, sends(peers{block(s.address("db") + "/32")}),
		}, "", "db db*", false},
		{"a port's name is that of who is gone to", specs{
			{PolicyTypes: inOnly},
			sends(peers{peer(nil, database)}, networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromString("web"))}),
		}, "", "db db* db6", false},
		{"a range of ports is of its protocol", specs{
			{PolicyTypes: bothWays, Ingress: []networkingv1.NetworkPolicyIngressRule{
				{Ports: []networkingv1.NetworkPolicyPort{numbered(corev1.ProtocolUDP, 8000, webPort)}},
			}},
			sends(nil, numbered(corev1.ProtocolUDP, 8000, webPort)),
		}, "friend~ stranger~", "", false},
		{"and has an end", specs{
			{PolicyTypes: inOnly}, sends(nil, numbered(corev1.ProtocolTCP, 8000, webPort-1)),
		}, "", "", false},
	}
}

// stage is who calls whom in the cases.
type stage struct {
	b         *bed.Bed
	node      *bed.Node
	neighbour *bed.Node
	ns, other string
	server    string // the name server's address
	pods      map[string]*corev1.Pod
	services  map[string]*corev1.Service
}

// newStage makes all that there is.
func newStage(t *testing.T, b *bed.Bed) *stage {
	t.Helper()
	b.NetworkRights(t)
	s := &stage{b: b, server: b.DNS(t).String(), pods: map[string]*corev1.Pod{}, services: map[string]*corev1.Service{}}
	s.node = b.StartNodeWith(t, "policed", map[string]any{
		"clusterDNS": []string{s.server}, "networkPolicy": true, "serviceProxy": "builtin",
	})
	s.ns, s.other = b.Namespace(t), b.Namespace(t)
	patch := []byte(`{"metadata":{"labels":{"team":"b"}}}`)
	if _, err := b.Client.CoreV1().Namespaces().Patch(t.Context(), s.other, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.neighbour = b.Node(t)
	for _, one := range []struct {
		namespace, name string
		node            *bed.Node
		labels          map[string]string
	}{
		{s.ns, "subject", s.node, subject},
		{s.ns, "db", s.node, database},
		{s.ns, "friend", s.node, friendly},
		{s.ns, "stranger", s.node, nil},
		{s.ns, "far", s.neighbour, friendly},
		{s.other, "guest", s.neighbour, friendly},
		{s.other, "visitor", s.node, nil},
	} {
		pod := labelled(webPodOn(t, b, one.node, one.name), one.labels)
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: webPort}}
		pod.Annotations = map[string]string{
			// Guests keep connections for their next request, and who is let in stays in.
			"http.krustlet.dev/idle-timeout": "20ms",
			// One who hears nothing is not to go on asking.
			"http.krustlet.dev/request-timeout": "2s",
		}
		s.pods[one.name] = create(t, b, one.namespace, pod)
	}
	datagrams := on(s.node, wasmPod("datagrams", b.Image(t, "net.wasm"), "udp-echo", strconv.Itoa(webPort)))
	s.pods["datagrams"] = create(t, b, s.ns, always(labelled(datagrams, subject)))
	for name, labels := range map[string]map[string]string{"subject": subject, "db": database} {
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.ServiceSpec{
				Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("web")}},
			},
		}
		var err error
		if s.services[name], err = b.Client.CoreV1().Services(s.ns).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, pod := range s.pods {
		s.pods[name] = awaitReady(t, b, pod.Namespace, name)
	}
	return s
}

// apply has these be all policies of the namespace.
func (s *stage) apply(t *testing.T, all ...networkingv1.NetworkPolicySpec) {
	t.Helper()
	api := s.b.Client.NetworkingV1().NetworkPolicies(s.ns)
	if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for number, spec := range all {
		made := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("policy-%d", number)}, Spec: spec}
		if _, err := api.Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// here leaves out who goes by IPv6 where the machine has none.
func (s *stage) here(who string) string {
	if len(s.b.Families()) == 2 {
		return who
	}
	isElsewhere := func(one string) bool { return strings.HasSuffix(one, "6") }
	return strings.Join(slices.DeleteFunc(strings.Fields(who), isElsewhere), " ")
}

// until waits until this comes through and nothing else.
func (s *stage) until(t *testing.T, in, out string) {
	t.Helper()
	in, out = s.here(in), s.here(out)
	s.b.WaitFor(t, "what comes through is as it should be", limit, func() error {
		if seenIn, seenOut := s.seen(t); seenIn != in || seenOut != out {
			return fmt.Errorf("in come %q, not %q; out goes %q, not %q", seenIn, in, seenOut, out)
		}
		return nil
	})
}

func TestPoliciesLetThroughWhatTheySay(t *testing.T) {
	b := bed.Start(t)
	s := newStage(t, b)
	closed := networkingv1.NetworkPolicySpec{PolicyTypes: bothWays}
	// Of another namespace, and so about none of these pods.
	policy(t, b, s.other, "none", subject, closed)
	for _, one := range s.cases() {
		one.in, one.out = s.here(one.in), s.here(one.out)
		t.Run(one.name, func(t *testing.T) {
			// What was before is not what is to come, so that this is not seen too early.
			if one.in == "" && one.out == "" {
				s.apply(t)
				s.until(t, everybody, everywhere)
			} else {
				s.apply(t, closed)
				s.until(t, "", "")
			}
			for number := range one.all {
				if !one.isForAll {
					one.all[number].PodSelector.MatchLabels = subject
				}
			}
			s.apply(t, one.all...)
			s.until(t, one.in, one.out)
			b.WaitServes(t, b.Outside(), s.address("subject"), webPort)
		})
	}
	t.Run("connections that are open stay, and who comes later obeys", s.open)
}

// open holds a connection over the coming and going of a policy.
func (s *stage) open(t *testing.T) {
	s.apply(t)
	echo := on(s.node, port(wasmPod("echo", s.b.Image(t, "net.wasm"), "tcp-echo", strconv.Itoa(webPort)), webPort))
	to := net.JoinHostPort(serving(t, s.b, s.ns, labelled(echo, subject)), strconv.Itoa(webPort))
	from := s.node.As(bed.PodAddress(t, s.pods["friend"]))
	// says is whether what is sent comes back.
	says := func(conn net.Conn, text string) error {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, len(text)))
		return err
	}
	open := func() (net.Conn, error) {
		within, cancel := context.WithTimeout(t.Context(), answerTime)
		defer cancel()
		conn, err := from.Dial(within, "tcp", to)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			err = says(conn, "first")
		}
		return conn, err
	}
	var before net.Conn
	s.b.WaitFor(t, "it is let in", limit, func() (err error) { before, err = open(); return err })
	s.apply(t, networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: subject}, PolicyTypes: inOnly})
	s.b.WaitFor(t, "others are not", limit, func() error {
		if _, err := open(); err == nil {
			return errors.New("it is let in")
		}
		return nil
	})
	if err := says(before, "second"); err != nil {
		t.Error("a connection that was open: ", err)
	}
	s.apply(t)
	s.b.WaitFor(t, "it is let in again", limit, func() error { _, err := open(); return err })
	if err := says(before, "third"); err != nil {
		t.Error("a connection that was open: ", err)
	}
}

func (s *stage) address(name string) string { return s.pods[name].Status.PodIP }

// reach is whether a pod is answered where it asks.
func (s *stage) reach(t *testing.T, from string, url string) bool {
	said, err := fetched(s.b, bed.PodAddress(t, s.pods[from]), url, answerTime)
	return err == nil && strings.HasPrefix(said, "Hello")
}

// isTaken is whether a pod connects where nothing is answered, which nobody may who is
// not let in.
func (s *stage) isTaken(t *testing.T, from string, family int) bool {
	pod := s.pods[from]
	node := s.node
	if pod.Spec.NodeName != node.Name {
		node = s.neighbour
	}
	address := func(name string) netip.Addr { return bed.PodAddresses(t, s.pods[name])[family] }
	place, url := node.As(address(from)), at(address("subject").String(), webPort)
	return connects(t, place, address("subject").String(), webPort) == nil && !s.reach(t, from, url)
}

// echoes is whether a datagram of a pod comes back.
func (s *stage) echoes(t *testing.T, from string) bool {
	to := net.JoinHostPort(s.address("datagrams"), strconv.Itoa(webPort))
	conn, err := s.node.As(bed.PodAddress(t, s.pods[from])).Dial(t.Context(), "udp", to)
	if err != nil {
		t.Error(err)
		return false
	}
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	err = errors.Join(err, conn.SetDeadline(time.Now().Add(answerTime)))
	if err == nil {
		_, err = conn.Read(make([]byte, 16))
	}
	return err == nil
}

// seen is who comes in and where the subject comes to now.
func (s *stage) seen(t *testing.T) (in, out string) {
	t.Helper()
	service := func(name string) string { return at(s.services[name].Spec.ClusterIP, 80) }
	direct := func(name string, family int) string {
		return at(bed.PodAddresses(t, s.pods[name])[family].String(), webPort)
	}
	ask := map[string]func() bool{
		"in friend*":   func() bool { return s.reach(t, "friend", service("subject")) },
		"in stranger*": func() bool { return s.reach(t, "stranger", service("subject")) },
		"out db*":      func() bool { return s.reach(t, "subject", service("db")) },
		"out db!":      func() bool { return s.reach(t, "subject", "http://db/") },
		"in friend~":   func() bool { return s.echoes(t, "friend") },
		"in stranger~": func() bool { return s.echoes(t, "stranger") },
		"in friend6?":  func() bool { return s.isTaken(t, "friend", 1) },
	}
	if s.here("friend6") != "" {
		ask["in friend6"] = func() bool { return s.reach(t, "friend", direct("subject", 1)) }
		ask["out db6"] = func() bool { return s.reach(t, "subject", direct("db", 1)) }
	}
	for _, from := range []string{"far", "friend", "guest", "stranger", "visitor"} {
		ask["in "+from] = func() bool { return s.reach(t, from, direct("subject", 0)) }
		ask["in "+from+"?"] = func() bool { return s.isTaken(t, from, 0) }
	}
	for _, to := range []string{"db", "far"} {
		ask["out "+to] = func() bool { return s.reach(t, "subject", direct(to, 0)) }
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var ins, outs []string
	for what, answers := range ask {
		group.Go(func() {
			if !answers() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if name, isIn := strings.CutPrefix(what, "in "); isIn {
				ins = append(ins, name)
			} else {
				outs = append(outs, strings.TrimPrefix(what, "out "))
			}
		})
	}
	group.Wait()
	slices.Sort(ins)
	slices.Sort(outs)
	return strings.Join(ins, " "), strings.Join(outs, " ")
}
