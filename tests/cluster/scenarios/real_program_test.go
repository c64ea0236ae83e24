package scenarios

import (
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// icepllSays is what the same program says that Debian compiled for Linux.
const icepllSays = `
F_PLLIN:    12.000 MHz (given)
F_PLLOUT:   48.000 MHz (requested)
F_PLLOUT:   48.000 MHz (achieved)

FEEDBACK: SIMPLE
F_PFD:   12.000 MHz
F_VCO:  768.000 MHz

DIVR:  0 (4'b0000)
DIVF: 63 (7'b0111111)
DIVQ:  4 (3'b100)

FILTER_RANGE: 1 (3'b001)

`

// A Deployment restarts what ends, and the real programs that there are for WASI
// preview 1 end: it has no sockets to serve on. So the real one is what comes
// first, an init container, as a program that prepares files for a server would;
// the deployment is Available only if it ended well.
const realDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: clock
spec:
  selector:
    matchLabels: {app: clock}
  template:
    metadata:
      labels: {app: clock}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 5
      initContainers:
      - name: pll
        image: ICEPLL
        args: ["-i", "12", "-o", "48"]
      containers:
      - name: main
        image: HELLO
        args: [tick]
`

// TestAProgramOfOthersRunsInADeployment runs a program that nobody of this project
// wrote or compiled (guests/third-party), named by digest.
func TestAProgramOfOthersRunsInADeployment(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	icepll := b.ByDigest(t, b.Image(t, "icepll.wasm"))
	hello := b.ByDigest(t, b.Image(t, "hello.wasm"))
	b.Apply(t, ns, strings.NewReplacer("ICEPLL", icepll, "HELLO", hello).Replace(realDeployment))
	awaitAvailable(t, b, ns, "clock", 1)

	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("want one pod, got %d", len(pods.Items))
	}
	pod := &pods.Items[0]
	first := pod.Status.InitContainerStatuses[0]
	if first.State.Terminated == nil || first.State.Terminated.ExitCode != 0 {
		t.Errorf("the program did not end well: %+v", first.State)
	}
	if digest := icepll[strings.Index(icepll, "@"):]; !strings.HasSuffix(first.ImageID, digest) {
		t.Errorf("image id %q is not that of %s", first.ImageID, icepll)
	}
	same(t, "log", logs(t, b, ns, pod.Name, "--container=pll"), icepllSays)
}

// TestAProgramOfOthersIsAJob is what suits such a program best, also when it is
// called wrongly.
func TestAProgramOfOthersIsAJob(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	icepll := b.ByDigest(t, b.Image(t, "icepll.wasm"))
	pod := runJobOf(t, b, icepll, `["-i", "12", "-o", "48"]`, batchv1.JobComplete)
	same(t, "log", logs(t, b, pod.Namespace, pod.Name), icepllSays)

	pod = runJobOf(t, b, icepll, `["--no-such-option"]`, batchv1.JobFailed)
	same(t, "phase", pod.Status.Phase, corev1.PodFailed)
	same(t, "exit code", ended(t, pod).ExitCode, 1)
	if said := logs(t, b, pod.Namespace, pod.Name); !strings.Contains(said, "Usage: ") {
		t.Errorf("it does not say how it is used: %q", said)
	}
}

// awaitAvailable waits until a deployment is Available with so many pods.
func awaitAvailable(t *testing.T, b *bed.Bed, namespace, name string, replicas int32) {
	t.Helper()
	b.WaitFor(t, "the deployment is Available", limit, func() error {
		found, err := b.Client.AppsV1().Deployments(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if isAvailable(found) && found.Status.AvailableReplicas == replicas {
			return nil
		}
		return fmt.Errorf("%d of %d pods are available", found.Status.AvailableReplicas, replicas)
	})
}
