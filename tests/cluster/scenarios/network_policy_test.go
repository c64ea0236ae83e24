package scenarios

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

const networkRights = "../../../deploy/network-rbac.yaml"

// policed starts a node that enforces the cluster's policies.
func policed(t *testing.T, b *bed.Bed, name string) *bed.Node {
	t.Helper()
	rights, err := os.ReadFile(networkRights)
	if err != nil {
		t.Fatal(err)
	}
	b.Apply(t, "default", string(rights))
	return b.StartNode(t, name, "--network-policy")
}

// policy creates a policy for the pods with these labels, or replaces it.
func policy(t *testing.T, b *bed.Bed, namespace, name string, selected map[string]string, spec networkingv1.NetworkPolicySpec) {
	t.Helper()
	spec.PodSelector = metav1.LabelSelector{MatchLabels: selected}
	policies := b.Client.NetworkingV1().NetworkPolicies(namespace)
	made := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	_ = policies.Delete(t.Context(), name, metav1.DeleteOptions{})
	if _, err := policies.Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

var (
	inOnly  = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	outOnly = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
)

func labelled(pod *corev1.Pod, labels map[string]string) *corev1.Pod {
	pod.Labels = labels
	return pod
}

func lets(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
	return networkingv1.NetworkPolicySpec{
		PolicyTypes: inOnly, Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers}},
	}
}

func pods(labels map[string]string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
}

func block(cidr string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}
}

// answerTime is as long as is long enough to be answered: one who is not let in is not
// told of it.
const answerTime = time.Second

// connects is why no connection is made, though nothing is asked for on it.
func connects(t *testing.T, from bed.Place, address string, port int) error {
	t.Helper()
	within, cancel := context.WithTimeout(t.Context(), answerTime)
	defer cancel()
	conn, err := from.Dial(within, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err == nil {
		conn.Close()
	}
	return err
}

// waitRefuses waits until nobody who connects from there is taken. Twice in a row: a
// machine that is busy for a moment does not answer either.
func waitRefuses(t *testing.T, b *bed.Bed, from bed.Place, address string, port int) {
	t.Helper()
	b.WaitFor(t, fmt.Sprintf("%s port %d refuses", address, port), limit, func() error {
		for range 2 {
			if err := connects(t, from, address, port); err == nil {
				return fmt.Errorf("it is connected to")
			}
		}
		return nil
	})
}

func TestPoliciesSayWhoComesIn(t *testing.T) {
	b := bed.Start(t)
	node := policed(t, b, "policed-in")
	ns, other := b.Namespace(t), b.Namespace(t)
	app, role := map[string]string{"app": "web"}, map[string]string{"role": "friend"}

	server := labelled(webPodOn(t, b, node, "server"), app)
	server.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: webPort}}
	server.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		PeriodSeconds:    1,
		FailureThreshold: 1,
		// A busy machine is no policy.
		TimeoutSeconds: 10,
		ProbeHandler:   corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("web")}},
	}
	// One probe that fails is seen at the end, by a restart.
	server.Spec.Containers[0].LivenessProbe = server.Spec.Containers[0].ReadinessProbe
	address := bed.PodAddress(t, web(t, b, ns, server)).String()
	place := func(namespace, name string, labels map[string]string) (bed.Place, string) {
		pod := web(t, b, namespace, labelled(webPodOn(t, b, node, name), labels))
		at := bed.PodAddress(t, pod)
		return node.As(at), at.String()
	}
	friend, _ := place(ns, "friend", role)
	stranger, strangers := place(ns, "stranger", nil)
	guest, _ := place(other, "guest", role)
	history := b.WatchPod(t, ns, "server")
	answers := func(from bed.Place) { t.Helper(); b.WaitServes(t, from, address, webPort) }
	refuses := func(from bed.Place) { t.Helper(); waitRefuses(t, b, from, address, webPort) }

	answers(friend)
	answers(guest)
	policy(t, b, ns, "in", app, networkingv1.NetworkPolicySpec{PolicyTypes: inOnly})
	for _, from := range []bed.Place{friend, stranger, guest} {
		refuses(from)
	}
	answers(b.Outside())

	policy(t, b, ns, "in", app, lets(pods(role)))
	answers(friend)
	refuses(stranger)
	refuses(guest)
	// One that comes later is let in as well.
	late, _ := place(ns, "late", role)
	answers(late)

	// Several policies add up.
	policy(t, b, ns, "more", app, lets(networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}},
	}))
	refuses(guest)
	patch := []byte(`{"metadata":{"labels":{"team":"b"}}}`)
	_, err := b.Client.CoreV1().Namespaces().Patch(t.Context(), other, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	answers(guest)
	answers(friend)
	policy(t, b, ns, "more", app, lets(block(strangers+"/32")))
	answers(stranger)
	refuses(guest)

	// By the port's name, and by a range of numbers.
	ports := func(port networkingv1.NetworkPolicyPort) {
		policy(t, b, ns, "more", app, networkingv1.NetworkPolicySpec{
			PolicyTypes: inOnly,
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{port}}},
		})
	}
	named, low := intstr.FromString("web"), intstr.FromInt32(8000)
	below, above := int32(webPort-1), int32(webPort)
	ports(networkingv1.NetworkPolicyPort{Port: &named})
	answers(guest)
	ports(networkingv1.NetworkPolicyPort{Port: &low, EndPort: &below})
	refuses(guest)
	ports(networkingv1.NetworkPolicyPort{Port: &low, EndPort: &above})
	answers(guest)
	// The node's own probes went on all the time.
	for _, version := range append(history.Seen(t), get(t, b, ns, "server")) {
		same(t, "Ready", isReady(version), true)
		same(t, "restarts", status(version).RestartCount, 0)
	}
}

// until runs a program again and again, each time in a pod of its own, until it
// prints what is wanted: a policy is heard of in its own time.
func until(t *testing.T, b *bed.Bed, namespace, want string, pod func(name string) *corev1.Pod) {
	t.Helper()
	number := 0
	b.WaitFor(t, fmt.Sprintf("a pod prints %q", want), limit, func() error {
		number++
		made := pod(fmt.Sprintf("try-%d-%d", number, len(want)))
		made.GenerateName, made.Name = made.Name+"-", ""
		made = create(t, b, namespace, made)
		ended := await(t, b, namespace, made.Name, "the end", limit, func(pod *corev1.Pod) error {
			if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
				return fmt.Errorf("it is %s", pod.Status.Phase)
			}
			return nil
		})
		if text := logs(t, b, namespace, ended.Name); !strings.Contains(text, want) {
			return fmt.Errorf("it printed %q", text)
		}
		return nil
	})
}

func TestPoliciesSayWherePodsGo(t *testing.T) {
	b := bed.Start(t)
	node := policed(t, b, "policed-out")
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	app, sealed := map[string]string{"app": "echo"}, map[string]string{"sealed": "yes"}
	serverPod := func(name string, args ...string) string {
		pod := on(node, port(wasmPod(name, image, args...), 8080))
		return serving(t, b, ns, labelled(pod, app))
	}
	server, datagrams := serverPod("server", "tcp-echo", "8080"), serverPod("datagrams", "udp-echo", "8080")
	client := func(args ...string) func(string) *corev1.Pod {
		return func(name string) *corev1.Pod {
			return labelled(on(node, wasmPod(name, image, args...)), sealed)
		}
	}
	// Neither in nor out, but to those pods.
	both := networkingv1.NetworkPolicySpec{
		PolicyTypes: append(outOnly, inOnly...),
		Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{pods(map[string]string{"app": "none"})}}},
	}
	policy(t, b, ns, "out", sealed, both)
	until(t, b, ns, "access-denied", client("connect", server, "8080"))
	until(t, b, ns, "access-denied", client("udp-get", datagrams, "8080", "hello"))
	both.Egress[0].To[0] = pods(app)
	policy(t, b, ns, "out", sealed, both)
	until(t, b, ns, "hello", client("tcp-get", server, "8080", "hello"))
	until(t, b, ns, "hello", client("udp-get", datagrams, "8080", "hello"))
}

func TestPoliciesOutliveTheAgent(t *testing.T) {
	b := bed.Start(t)
	node := policed(t, b, "policed-kept")
	ns := b.Namespace(t)
	app, role := map[string]string{"app": "web"}, map[string]string{"role": "friend"}
	server := web(t, b, ns, labelled(webPodOn(t, b, node, "server"), app))
	address := bed.PodAddress(t, server).String()
	friend := node.As(bed.PodAddress(t, web(t, b, ns, labelled(webPodOn(t, b, node, "friend"), role))))
	stranger := node.As(bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "stranger"))))
	policy(t, b, ns, "in", app, lets(pods(role)))
	waitRefuses(t, b, stranger, address, webPort)
	b.WaitServes(t, friend, address, webPort)

	check := func(when string) {
		t.Helper()
		if err := connects(t, stranger, address, webPort); err == nil {
			t.Errorf("%s the stranger is let in", when)
		}
		if err := friend.Get(t.Context(), address, webPort); err != nil {
			t.Errorf("%s the friend is not let in: %v", when, err)
		}
	}
	node.Kill(t)
	check("without an agent")
	node.Start(t)
	b.WaitFor(t, "another agent has the server in hand", limit, func() error {
		check("while another agent begins")
		return node.Holds(ns, "server", "friend", "stranger")
	})
	node.WaitReady(t)
	check("with another agent")
	// It hears of what changes.
	policy(t, b, ns, "in", app, networkingv1.NetworkPolicySpec{PolicyTypes: inOnly})
	waitRefuses(t, b, friend, address, webPort)
	same(t, "container", status(get(t, b, ns, "server")).ContainerID, status(server).ContainerID)
}

func TestAPodsOwnListSaysWhereItGoes(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	address := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "web"))).String()
	const list = "network.krustlet.dev/allowed-outbound-hosts"
	ask := func(name, allowed, url string) *corev1.Pod {
		pod := on(node, wasmPod(name, b.Image(t, "fetch.wasm"), url))
		pod.Annotations = map[string]string{list: allowed}
		pod.Spec.HostAliases = []corev1.HostAlias{{IP: address, Hostnames: []string{"db.internal", "other.internal"}}}
		create(t, b, ns, pod)
		return await(t, b, ns, name, "the end", limit, func(pod *corev1.Pod) error {
			if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
				return fmt.Errorf("it is %s", pod.Status.Phase)
			}
			return nil
		})
	}
	for number, one := range []struct{ allowed, host, want string }{
		{"db.internal:8080", "db.internal", "200"},
		{"*.internal", "other.internal", "200"},
		{address + "/32:8080", address, "200"},
		{"db.internal:8080", "other.internal", "HttpRequestDenied"},
		{"db.internal:8080", address, "DestinationIpProhibited"},
		{"db.internal:80", "db.internal", "DestinationIpProhibited"},
		{"", "db.internal", "HttpRequestDenied"},
	} {
		name := fmt.Sprintf("ask-%d", number)
		ask(name, one.allowed, "http://"+one.host+":8080/")
		if text := logs(t, b, ns, name); !strings.Contains(text, one.want) {
			t.Errorf("%q asked for %s printed %q, not %q", one.allowed, one.host, text, one.want)
		}
	}
	refused := ask("nonsense", "http://db.internal", "http://db.internal:8080/")
	same(t, "reason", refused.Status.Reason, "InvalidNetworkAnnotation")
	if message := refused.Status.Message; !strings.Contains(message, "is not HOST[:PORT]") {
		t.Errorf("the message is %q", message)
	}
}
