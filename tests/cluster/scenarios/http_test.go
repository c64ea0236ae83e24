package scenarios

import (
	"fmt"
	"net"
	"net/http"
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
	create(t, b, ns, pod)
	ready := awaitReady(t, b, ns, "web")

	client := &http.Client{Transport: &http.Transport{}, Timeout: limit}
	b.WaitFor(t, "the guest answers", limit, func() error {
		response, err := client.Get("http://" + net.JoinHostPort(ready.Status.PodIP, "8081") + "/")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", response.Status)
		}
		return nil
	})
}
