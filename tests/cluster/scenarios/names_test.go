package scenarios

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// named starts a node whose pods ask CoreDNS.
func named(t *testing.T, b *bed.Bed, name string) *bed.Node {
	t.Helper()
	return b.StartNodeWith(t, name, map[string]any{
		"clusterDNS": []string{b.DNS(t).String()},
	})
}

// headless creates a Service whose name stands for the pods themselves.
func headless(t *testing.T, b *bed.Bed, namespace, name string, selector map[string]string) {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone,
			Selector:  selector,
			Ports:     []corev1.ServicePort{{Port: webPort}},
		},
	}
	_, err := b.Client.CoreV1().Services(namespace).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// says runs a program until what it prints holds a text. A failure is tried
// again by its restart policy: name servers hear of a Service in their own time.
func says(t *testing.T, b *bed.Bed, node *bed.Node, namespace, name, image, want string, args ...string) {
	t.Helper()
	pod := on(node, wasmPod(name, b.Image(t, image), args...))
	pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	create(t, b, namespace, pod)
	awaitPhase(t, b, namespace, name, corev1.PodSucceeded)
	if text := logs(t, b, namespace, name); !strings.Contains(text, want) {
		t.Errorf("%s %v printed %q, not %q", image, args, text, want)
	}
}

func TestGuestsFindTheirPodsFilesInEtc(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	find := func(name, want string, args ...string) {
		t.Helper()
		pod := on(node, wasmPod(name, b.Image(t, "hello.wasm"), args...))
		pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"db.internal", "db"}}}
		pod.Spec.DNSPolicy = corev1.DNSNone
		pod.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Searches: []string{"corp.example"}}
		create(t, b, ns, pod)
		address := bed.PodAddress(t, awaitPhase(t, b, ns, name, corev1.PodSucceeded)).String()
		want = strings.ReplaceAll(want, "ADDRESS", address)
		if text := logs(t, b, ns, name); !strings.Contains(text, want) {
			t.Errorf("%v printed %q, not %q", args, text, want)
		}
	}
	find("hosts", "ADDRESS\thosts\n", "cat", "/etc/hosts")
	find("aliases", "\n192.0.2.7\tdb.internal\tdb\n", "cat", "/etc/hosts")
	find("servers", "search corp.example\nnameserver 192.0.2.53\n", "cat", "/etc/resolv.conf")
	find("itself", "itself\n", "cat", "/etc/hostname")
}

func TestGuestsLookNamesUpAndCallEachOther(t *testing.T) {
	b := bed.Start(t)
	node := named(t, b, "named")
	ns := b.Namespace(t)
	pod := webPodOn(t, b, node, "web")
	pod.Labels = map[string]string{"app": "web"}
	address := web(t, b, ns, pod).Status.PodIP
	headless(t, b, ns, "backend", pod.Labels)

	says(t, b, node, ns, "short", "net.wasm", address, "lookup", "backend")
	says(t, b, node, ns, "full", "net.wasm", address, "lookup", "backend."+ns+".svc.cluster.local")
	kubernetes, err := b.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	says(t, b, node, ns, "other", "net.wasm", kubernetes.Spec.ClusterIP, "lookup", "kubernetes.default")
	says(t, b, node, ns, "by-name", "fetch.wasm", "200", "http://backend:8080/")
	says(t, b, node, ns, "by-address", "fetch.wasm", "200", "http://"+address+":8080/")
}

func TestTheMetadataAddressIsRefused(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := on(node, wasmPod("curious", b.Image(t, "fetch.wasm"), "http://169.254.169.254/latest/"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	create(t, b, ns, pod)
	awaitPhase(t, b, ns, "curious", corev1.PodFailed)
	if text := logs(t, b, ns, "curious"); !strings.Contains(text, "DestinationIpProhibited") {
		t.Errorf("it printed %q", text)
	}
}

// The node's own API is refused wherever the node answers, but for pods that have
// the node's network.
func TestTheNodesAPIIsRefused(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	c := &client{b: b, node: node, ns: b.Namespace(t)}
	api := []string{"connect", node.Address.String(), strconv.Itoa(int(node.Port))}
	// Another port of the node is not: nobody listens there.
	for _, refusal := range []struct {
		want string
		args []string
	}{
		{"access-denied\n", api},
		{"access-denied\n", []string{api[0], node.PodRange(t).Addr().Next().String(), api[2]}},
		{refused, []string{api[0], api[1], "1"}},
	} {
		same(t, fmt.Sprint(refusal.args), c.said(t, 1, refusal.args...)[refusal.want], 1)
	}
	host := c.pod(t, 1, api...)
	host.Spec.HostNetwork = true
	if said := output(t, b, c.ns, host); !strings.HasPrefix(said, "ok\n") {
		t.Errorf("a pod of the node's network printed %q", said)
	}
}

func TestAPodSaysItsOwnNamesAndServers(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := on(node, wasmPod("own", b.Image(t, "net.wasm"), "lookup", "db.internal"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.DNSPolicy = corev1.DNSNone
	pod.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}}
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"db.internal"}}}
	create(t, b, ns, pod)
	awaitPhase(t, b, ns, "own", corev1.PodSucceeded)
	if text := logs(t, b, ns, "own"); !strings.Contains(text, "192.0.2.7") {
		t.Errorf("it printed %q", text)
	}
}
