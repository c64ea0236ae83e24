package scenarios

import (
	"io"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

func TestAnHTTPComponentAnswersOnItsPort(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := always(wasmPod("web", b.Image(t, "http.wasm")))
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8081}}
	pod.Annotations = map[string]string{
		"http.krustlet.dev/max-instance-reuse-count": "3",
		"http.krustlet.dev/idle-instance-timeout":    "1h",
	}
	create(t, b, ns, pod)
	ready := awaitReady(t, b, ns, "web")
	b.WaitServes(t, b.Outside(), ready.Status.PodIP, 8081)

	// An instance answers three requests. One that is still about its last is not
	// asked: then another counts from one.
	client := b.Outside().Client(limit)
	most := ""
	for range 20 {
		response, err := client.Get("http://" + net.JoinHostPort(ready.Status.PodIP, "8081") + "/count")
		if err != nil {
			t.Fatal(err)
		}
		count, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, strings.TrimSpace(string(count)))
	}
	if most != "3" {
		t.Errorf("an instance has answered %s requests", most)
	}
}
