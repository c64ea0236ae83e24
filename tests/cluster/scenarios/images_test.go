package scenarios

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// awaitWaiting waits until the pod's container waits for one of these reasons.
func awaitWaiting(t *testing.T, b *bed.Bed, namespace, name string, reasons ...string) *corev1.Pod {
	t.Helper()
	return await(t, b, namespace, name, "waits: "+strings.Join(reasons, " or "), limit, func(pod *corev1.Pod) error {
		if !slices.Contains(reasons, waiting(pod).Reason) {
			return fmt.Errorf("%s: %s", pod.Status.Phase, describe(pod))
		}
		return nil
	})
}

func TestALinuxImageIsRefusedClearly(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.PushLinux(t, "linux-only", "1")
	create(t, b, ns, always(wasmPod("linux", image)))
	history := b.WatchPod(t, ns, "linux")
	awaitWaiting(t, b, ns, "linux", "ImagePullBackOff")

	var said []string
	for _, version := range history.Seen(t) {
		same(t, "phase", version.Status.Phase, corev1.PodPending)
		if wait := waiting(version); wait.Reason == "ErrImagePull" {
			said = append(said, wait.Message)
		}
	}
	want := fmt.Sprintf("image %q has no WebAssembly variant (found: linux/amd64)", image)
	if !slices.ContainsFunc(said, func(message string) bool { return strings.Contains(message, want) }) {
		t.Errorf("no ErrImagePull that says %s; got %q", want, said)
	}
	if told := b.Kubectl(t, "--namespace="+ns, "describe", "pod", "linux"); !strings.Contains(told, want) {
		t.Errorf("kubectl describe does not say %s:\n%s", want, told)
	}
}

func TestAnImageThatIsNotThere(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, on(node, always(wasmPod("absent", b.Registry()+"/absent:1"))))
	pod := awaitWaiting(t, b, ns, "absent", "ErrImagePull", "ImagePullBackOff")
	if message := waiting(pod).Message; !strings.Contains(message, "/absent:1") {
		t.Errorf("the message does not name the image: %q", message)
	}

	t.Run("is pulled once it is", func(t *testing.T) {
		b.Push(t, bed.Guest(t, "hello.wasm"), b.Registry()+"/absent:1")
		await(t, b, ns, "absent", "has run", limit, func(pod *corev1.Pod) error {
			if status(pod).ImageID == "" {
				return errors.New(describe(pod))
			}
			return nil
		})
	})
}

func TestANameThatIsNoImage(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, always(wasmPod("nonsense", "No_Such//Name")))
	awaitWaiting(t, b, ns, "nonsense", "InvalidImageName")
}

func TestAnImageThatMayNotBePulled(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := always(wasmPod("never", b.Registry()+"/never-pulled:1"))
	pod.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	create(t, b, ns, pod)
	awaitWaiting(t, b, ns, "never", "ErrImageNeverPull")
}

// A field that this node cannot honour is named; it is never passed over.
func TestAFieldThatIsNotSupportedIsNamed(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := wasmPod("host-pid", b.Image(t, "hello.wasm"))
	pod.Spec.HostPID = true
	create(t, b, ns, pod)
	refused := await(t, b, ns, "host-pid", "is refused", limit, func(pod *corev1.Pod) error {
		if pod.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("it is %s: %s", pod.Status.Phase, describe(pod))
		}
		return nil
	})
	if refused.Status.Reason == "" || !strings.Contains(refused.Status.Message, "hostPID") {
		t.Errorf("the field is not named: %s: %s", refused.Status.Reason, refused.Status.Message)
	}
}
