package scenarios

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// limit is how long anything that is not itself about time may take, on a
// loaded machine that compiles a guest for the first time.
const limit = 60 * time.Second

const (
	containerName = "main"
	architecture  = "wasm32-wasi"
)

// wasmPod is a pod of one container that runs once. Tests change what they are about.
func wasmPod(name, image string, args ...string) *corev1.Pod {
	class, grace := "wasm", int64(5)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RuntimeClassName:              &class,
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: containerName, Image: image, Args: args}},
		},
	}
}

// on pins a pod to a node.
func on(node *bed.Node, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node.Name}
	return pod
}

// always makes a pod one that is restarted.
func always(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	return pod
}

func create(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	made, err := b.Client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func get(t *testing.T, b *bed.Bed, namespace, name string) *corev1.Pod {
	t.Helper()
	pod, err := b.Client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// await waits until the check of a pod returns nil, and returns that pod.
func await(t *testing.T, b *bed.Bed, namespace, name, what string, within time.Duration, check func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	b.WaitFor(t, "pod "+name+" "+what, within, func() error {
		pod, err := b.Client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		found = pod
		return check(pod)
	})
	return found
}

func awaitPhase(t *testing.T, b *bed.Bed, namespace, name string, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	return await(t, b, namespace, name, "is "+string(phase), limit, func(pod *corev1.Pod) error {
		switch pod.Status.Phase {
		case phase:
			return nil
		case corev1.PodSucceeded, corev1.PodFailed: // nothing follows on these
			t.Fatalf("pod %s is %s: %s", name, pod.Status.Phase, describe(pod))
		case corev1.PodPending, corev1.PodRunning, corev1.PodUnknown:
		}
		return fmt.Errorf("it is %s: %s", pod.Status.Phase, describe(pod))
	})
}

func awaitReady(t *testing.T, b *bed.Bed, namespace, name string) *corev1.Pod {
	t.Helper()
	return awaitReadyWithin(t, b, namespace, name, limit)
}

func awaitReadyWithin(t *testing.T, b *bed.Bed, namespace, name string, within time.Duration) *corev1.Pod {
	t.Helper()
	return await(t, b, namespace, name, "is Ready", within, func(pod *corev1.Pod) error {
		if isReady(pod) {
			return nil
		}
		return fmt.Errorf("%s: %s", pod.Status.Phase, describe(pod))
	})
}

func awaitGone(t *testing.T, b *bed.Bed, pod *corev1.Pod) {
	t.Helper()
	b.WaitFor(t, "pod "+pod.Name+" is gone", limit, func() error {
		found, err := b.Client.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && found.UID != pod.UID {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("it is %s: %s", found.Status.Phase, describe(found))
	})
}

func remove(t *testing.T, b *bed.Bed, pod *corev1.Pod) {
	t.Helper()
	if err := b.Client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == kind {
			return condition
		}
	}
	return corev1.PodCondition{}
}

func isReady(pod *corev1.Pod) bool {
	return condition(pod, corev1.PodReady).Status == corev1.ConditionTrue
}

// status is that of the pod's first container, empty while it has none.
func status(pod *corev1.Pod) corev1.ContainerStatus {
	if len(pod.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return pod.Status.ContainerStatuses[0]
}

// waiting is why the first container waits, empty if it does not.
func waiting(pod *corev1.Pod) corev1.ContainerStateWaiting {
	if state := status(pod).State.Waiting; state != nil {
		return *state
	}
	return corev1.ContainerStateWaiting{}
}

// ended is how the first container ended; the test fails if it did not.
func ended(t *testing.T, pod *corev1.Pod) corev1.ContainerStateTerminated {
	t.Helper()
	state := status(pod).State.Terminated
	if state == nil {
		t.Fatalf("the container of %s has not ended: %s", pod.Name, describe(pod))
	}
	return *state
}

// describe is what a message needs of a pod's state.
func describe(pod *corev1.Pod) string {
	state := status(pod).State
	switch {
	case pod.Status.Reason != "":
		return pod.Status.Reason + ": " + pod.Status.Message
	case state.Waiting != nil:
		return fmt.Sprintf("waiting: %s: %s", state.Waiting.Reason, state.Waiting.Message)
	case state.Terminated != nil:
		return fmt.Sprintf("ended with %d: %s: %s", state.Terminated.ExitCode, state.Terminated.Reason, state.Terminated.Message)
	case state.Running != nil:
		return fmt.Sprintf("runs since %s", state.Running.StartedAt)
	default:
		return "no container status"
	}
}

// logs is what the pod's first container wrote, by kubectl.
func logs(t *testing.T, b *bed.Bed, namespace, name string, flags ...string) string {
	t.Helper()
	return b.Kubectl(t, append([]string{"--namespace=" + namespace, "logs", name}, flags...)...)
}

// output runs a pod to its successful end and returns what it wrote.
func output(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) string {
	t.Helper()
	create(t, b, namespace, pod)
	awaitPhase(t, b, namespace, pod.Name, corev1.PodSucceeded)
	return logs(t, b, namespace, pod.Name)
}

// same compares what was found with what was wanted.
func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
