package scenarios

import (
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
	b.WaitServes(t, b.Outside(), ready.Status.PodIP, 8081)
}
