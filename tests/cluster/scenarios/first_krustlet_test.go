package scenarios

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// A manifest in the form that the first Krustlet's users wrote: no
// runtimeClassName, but a selector and both tolerations.
const firstKrustlet = `
apiVersion: v1
kind: Pod
metadata:
  name: hello-wasm
spec:
  restartPolicy: Never
  containers:
  - name: hello-wasm
    image: IMAGE
    args: [args, hello]
  nodeSelector:
    kubernetes.io/arch: wasm32-wasi
  tolerations:
  - key: kubernetes.io/arch
    operator: Equal
    value: wasm32-wasi
    effect: NoExecute
  - key: kubernetes.io/arch
    operator: Equal
    value: wasm32-wasi
    effect: NoSchedule
`

func TestManifestsOfTheFirstKrustletRunUnchanged(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.Replace(firstKrustlet, "IMAGE", b.Image(t, "hello.wasm"), 1))
	pod := awaitPhase(t, b, ns, "hello-wasm", corev1.PodSucceeded)
	same(t, "node", pod.Spec.NodeName, node.Name)
	same(t, "log", logs(t, b, ns, "hello-wasm"), "hello\n")
}
