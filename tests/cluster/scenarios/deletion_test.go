package scenarios

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// sandboxOf creates a pod and returns it, Ready, and the one process that came
// with it. No other pod may start meanwhile.
func sandboxOf(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) (*corev1.Pod, int) {
	t.Helper()
	before := b.Sandboxes(t)
	create(t, b, namespace, pod)
	ready := awaitReady(t, b, namespace, pod.Name)
	var came []int
	for _, pid := range b.Sandboxes(t) {
		if !slices.Contains(before, pid) {
			came = append(came, pid)
		}
	}
	if len(came) != 1 {
		t.Fatalf("want one new process for one pod, got %v", came)
	}
	return ready, came[0]
}

// awaitEnded waits until a sandbox is gone.
func awaitEnded(t *testing.T, b *bed.Bed, pid int) {
	t.Helper()
	b.WaitFor(t, "the pod's process is gone", limit, func() error {
		if slices.Contains(b.Sandboxes(t), pid) {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

func TestADeletedPodEndsAndGoes(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod, sandbox := sandboxOf(t, b, ns, always(wasmPod("deleted", b.Image(t, "hello.wasm"), "tick")))
	history := b.WatchPod(t, ns, "deleted")
	remove(t, b, pod)
	awaitGone(t, b, pod)
	awaitEnded(t, b, sandbox)

	// The last word is how the container ended, not that it vanished.
	seen := history.Seen(t)
	end := ended(t, seen[len(seen)-1])
	if !slices.Contains([]int32{0, 137, 143}, end.ExitCode) {
		t.Errorf("it ended with %d: %s", end.ExitCode, end.Reason)
	}
	for _, version := range seen {
		same(t, "restarts", status(version).RestartCount, 0)
	}
}

func TestAPodDeletedByForceLeavesNothing(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod, sandbox := sandboxOf(t, b, ns, always(wasmPod("forced", b.Image(t, "hello.wasm"), "tick")))
	zero := int64(0)
	if err := b.Client.CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	awaitEnded(t, b, sandbox)
}

func TestAPodIsDeletedWhileItsImageCannotBePulled(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, always(wasmPod("absent", b.Registry()+"/never-there:1")))
	pod := awaitWaiting(t, b, ns, "absent", "ErrImagePull", "ImagePullBackOff")
	remove(t, b, pod)
	awaitGone(t, b, pod)
}

func TestANameIsFreeAgainAtOnce(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "hello.wasm")
	create(t, b, ns, always(wasmPod("again", image, "args", "first")))
	first := awaitRun(t, b, ns, "again")
	remove(t, b, first)
	awaitGone(t, b, first)
	same(t, "output", output(t, b, ns, wasmPod("again", image, "args", "second")), "second\n")
}

// awaitRun waits until the container has run, though it may have ended.
func awaitRun(t *testing.T, b *bed.Bed, namespace, name string) *corev1.Pod {
	t.Helper()
	return await(t, b, namespace, name, "has run", limit, func(pod *corev1.Pod) error {
		if status(pod).ContainerID == "" {
			return errors.New(describe(pod))
		}
		return nil
	})
}
