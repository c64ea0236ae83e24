package scenarios

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// measured is what a node's metrics at a path say of a pod, by name of the
// metric, followed by a space and the rule if there is one for each; of several
// containers, the last.
func measured(t *testing.T, node *bed.Node, who visitor, path, namespace, pod string) map[string]float64 {
	t.Helper()
	code, text, err := who.ask(t, node, path)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "status of "+path, code, http.StatusOK)
	found := map[string]float64{}
	for _, line := range strings.Split(text, "\n") {
		name, rest, _ := strings.Cut(line, "{")
		labels, sample, _ := strings.Cut(rest, "} ")
		if !strings.Contains(labels, fmt.Sprintf("namespace=%q,pod=%q", namespace, pod)) {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(sample, &value); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		if _, rule, isByRule := strings.Cut(labels, "rule=\""); isByRule {
			name += " " + strings.TrimSuffix(rule, "\"")
		}
		found[name] = value
	}
	return found
}

// accepted is how many connections a pod has accepted, by krustlet stats; it waits
// for a moment in which a container of the pod runs.
func accepted(t *testing.T, b *bed.Bed, node *bed.Node, namespace, pod string) int {
	t.Helper()
	var count int
	b.WaitFor(t, "krustlet stats tells of "+pod, limit, func() error {
		for _, row := range rows(askNode(t, node, "stats")) {
			if len(row) > 3 && row[0] == namespace && row[1] == pod {
				_, err := fmt.Sscan(row[len(row)-2], &count)
				return err
			}
		}
		return errNotYet
	})
	return count
}

func TestWhatPodsUseIsToldToThoseWhoMayKnow(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	server := serving(t, b, ns, on(node, wasmPod("server", image, "tcp-echo", "8080")))
	said := output(t, b, ns, on(node, wasmPod("client", image, "connections", "50", server, "8080")))
	same(t, "what the client says", said, "50 open\n50 echoed\n")

	for name, parts := range map[string][]string{"stranger": {"nodes/proxy", "nodes/pods"}, "other": {"nodes/stats"}} {
		who := visitor{token: account(t, b, ns, name, nil, parts...)}
		for _, path := range []string{"/metrics", "/metrics/cadvisor", "/metrics/resource"} {
			code, text, err := who.ask(t, node, path)
			if err != nil || code != http.StatusForbidden {
				t.Errorf("%s reads %s: %d %q, %v", name, path, code, text, err)
			}
		}
	}
	scraper := visitor{token: account(t, b, ns, "scraper", nil, "nodes/metrics", "nodes/stats")}
	cadvisor := measured(t, node, scraper, "/metrics/cadvisor", ns, "server")
	received, sent := cadvisor["container_network_receive_bytes_total"], cadvisor["container_network_transmit_bytes_total"]
	if received == 0 || sent != received {
		t.Errorf("an echo received %v and sent %v bytes", received, sent)
	}
	own := measured(t, node, scraper, "/metrics", ns, "server")
	same(t, "connections accepted", own["krustlet_pod_network_connections_accepted_total"], 50)
	same(t, "connections made", own["krustlet_pod_network_connections_opened_total"], 0)
	resource := measured(t, node, scraper, "/metrics/resource", ns, "server")
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_start_time_seconds"} {
		if resource[name] <= 0 {
			t.Errorf("%s is %v", name, resource[name])
		}
	}

	code, text, err := scraper.ask(t, node, "/stats/summary")
	if err != nil || code != http.StatusOK {
		t.Fatalf("/stats/summary: %d %q, %v", code, text, err)
	}
	// What is read of k8s.io/kubelet/pkg/apis/stats/v1alpha1.
	var summary struct {
		Node struct{ NodeName string }
		Pods []struct {
			PodRef  struct{ Name, Namespace string }
			Network struct{ RxBytes, TxBytes float64 }
		}
	}
	if err := json.Unmarshal([]byte(text), &summary); err != nil {
		t.Fatal(err)
	}
	same(t, "the node", summary.Node.NodeName, node.Name)
	servers := 0
	for _, pod := range summary.Pods {
		if pod.PodRef.Namespace == ns && pod.PodRef.Name == "server" {
			servers++
			same(t, "received by the summary", pod.Network.RxBytes, received)
			same(t, "sent by the summary", pod.Network.TxBytes, sent)
		}
	}
	same(t, "servers in the summary", servers, 1)

	told := map[string][]string{}
	for _, row := range rows(askNode(t, node, "stats")) {
		if len(row) > 3 && row[0] == ns {
			told[row[1]] = row[len(row)-2:]
		}
	}
	same(t, "accepted and refused by krustlet stats", fmt.Sprint(told["server"]), "[50 0]")

	// What is refused and what is open are counted where it happens, in the sandbox.
	asker := bed.PodAddress(t, web(t, b, ns, webPodOn(t, b, node, "asker")))
	if said, err := fetched(b, asker, "http://169.254.169.254/", limit); err != nil || !strings.Contains(said, "DestinationIpProhibited") {
		t.Errorf("the asker heard %q, %v", said, err)
	}
	// What was found out a moment ago is told again.
	b.WaitFor(t, "metrics and krustlet stats tell of it", limit, func() error {
		refused := measured(t, node, scraper, "/metrics", ns, "asker")["krustlet_pod_network_refused_total destination"]
		sockets := measured(t, node, scraper, "/metrics", ns, "server")["krustlet_pod_network_sockets"]
		stats := ""
		for _, row := range rows(askNode(t, node, "stats")) {
			if len(row) > 3 && row[0] == ns && row[1] == "asker" {
				stats = row[len(row)-1]
			}
		}
		if refused != 1 || sockets < 1 || stats != "1" {
			return fmt.Errorf("refused: %v, sockets of the server: %v, refused by krustlet stats: %q", refused, sockets, stats)
		}
		return nil
	})
}

// A pod may ask for fewer sockets than its node lets it have, not for more.
func TestNoPodHasMoreSocketsThanItsNodeSays(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "bounded", "--max-pod-sockets=16")
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	server := serving(t, b, ns, on(b.Node(t), wasmPod("server", image, "tcp-echo", "8080")))
	for asked, want := range map[string]int{"": 16, "4096": 16, "5": 5} {
		pod := on(node, wasmPod("asks-"+asked+"x", image, "connections", "50", server, "8080"))
		if asked != "" {
			pod.Annotations = map[string]string{"network.krustlet.dev/max-sockets": asked}
		}
		create(t, b, ns, pod)
		awaitPhase(t, b, ns, pod.Name, corev1.PodFailed)
		same(t, "what a pod that asks for "+asked+" says", logs(t, b, ns, pod.Name), fmt.Sprintf("%d open\nnew-socket-limit\n", want))
	}
}

func TestBandwidthIsThatOfThePodsAnnotations(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "net.wasm")
	refused := on(node, wasmPod("refused", image, "tcp-sink", "8080"))
	refused.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10"}
	create(t, b, ns, refused)
	failed := awaitPhase(t, b, ns, "refused", corev1.PodFailed)
	same(t, "reason", failed.Status.Reason, "InvalidNetworkAnnotation")

	sink := serving(t, b, ns, on(node, wasmPod("sink", image, "tcp-sink", "8080")))
	for name, bandwidth := range map[string]string{"slow": "2M", "fast": "20M"} {
		// More than anybody waits for.
		pod := on(node, wasmPod(name, image, "tcp-flood", sink, "8080", "1000000"))
		pod.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": bandwidth}
		create(t, b, ns, pod)
		awaitReady(t, b, ns, name)
	}
	scraper := visitor{token: account(t, b, ns, "scraper", nil, "nodes/metrics")}
	sent := func(name string) float64 {
		return measured(t, node, scraper, "/metrics/cadvisor", ns, name)["container_network_transmit_bytes_total"]
	}
	// Both over the same time, whatever that is.
	slow, fast := sent("slow"), sent("fast")
	b.WaitFor(t, "the slow one sends half a megabyte", limit, func() error {
		if now := sent("slow"); now < slow+500_000 {
			return fmt.Errorf("it has sent %v", now-slow)
		}
		return nil
	})
	slow, fast = sent("slow")-slow, sent("fast")-fast
	if fast < 3*slow {
		t.Errorf("a tenth of the bandwidth has sent %v bytes, all of it %v", slow, fast)
	}
}
