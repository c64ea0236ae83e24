package scenarios

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// resize asks for other resources of the container.
func resize(t *testing.T, b *bed.Bed, ns, name string, resources corev1.ResourceRequirements) {
	t.Helper()
	containers := []corev1.Container{{Name: containerName, Resources: resources}}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"containers": containers}})
	if err != nil {
		t.Fatal(err)
	}
	b.Kubectl(t, "-n", ns, "patch", "pod", name, "--subresource", "resize", "--patch", string(patch))
}

func TestAPodIsResizedInPlace(t *testing.T) {
	b := bed.Start(t)
	// The API server has no pod of another system's node resized
	// (plugin/pkg/admission/podresize).
	node := b.StartNode(t, "resized", "--node-os=linux")
	ns := b.Namespace(t)
	pod := on(node, always(wasmPod("web", b.Image(t, "http.wasm"))))
	container := &pod.Spec.Containers[0]
	container.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8097}}
	sized := func(memory, cpu string) corev1.ResourceRequirements {
		list := corev1.ResourceList{
			corev1.ResourceMemory: resource.MustParse(memory),
			corev1.ResourceCPU:    resource.MustParse(cpu),
		}
		return corev1.ResourceRequirements{Limits: list, Requests: list}
	}
	container.Resources = sized("16Mi", "50m")
	create(t, b, ns, pod)
	before := awaitReady(t, b, ns, "web")
	b.WaitServes(t, b.Outside(), before.Status.PodIP, 8097)
	hold := func() error {
		return b.Outside().GetTarget(t.Context(), before.Status.PodIP, 8097, "/alloc?mib=32")
	}
	if err := hold(); err == nil {
		t.Fatal("a request had more memory than its container may")
	}

	resize(t, b, ns, "web", sized("64Mi", "100m"))
	after := await(t, b, ns, "web", "has more", limit, func(pod *corev1.Pod) error {
		shown := pod.Status.ContainerStatuses[0].Resources
		if shown == nil || shown.Limits.Memory().String() != "64Mi" || shown.Limits.Cpu().String() != "100m" {
			return fmt.Errorf("it has %v", shown)
		}
		if pod.Status.ObservedGeneration != pod.Generation {
			return fmt.Errorf("generation %d of %d is observed", pod.Status.ObservedGeneration, pod.Generation)
		}
		return nil
	})
	if err := hold(); err != nil {
		t.Fatalf("the new limit does not hold: %v", err)
	}
	was, is := before.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]
	if was.ContainerID != is.ContainerID || is.RestartCount != 0 {
		t.Fatalf("it was restarted: %s, then %s", was.ContainerID, is.ContainerID)
	}
	if got := is.AllocatedResources.Memory().String(); got != "64Mi" {
		t.Fatalf("%s is allocated", got)
	}
	awaitEvent(t, b, ns, "web", "ResizeStarted", "Pod resize started: {\"containers\":")
	awaitEvent(t, b, ns, "web", "ResizeCompleted", "Pod resize completed: {\"containers\":")

	// More than is left: it goes on with what it has, and says so.
	object, err := b.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	share := func(eighths int64) string {
		millis := object.Status.Allocatable.Cpu().MilliValue() * eighths / 8
		return resource.NewMilliQuantity(millis, resource.DecimalSI).String()
	}
	other := on(node, always(wasmPod("other", b.Image(t, "http.wasm"))))
	other.Spec.Containers[0].Resources = sized("16Mi", share(4))
	other = create(t, b, ns, other)
	awaitReady(t, b, ns, "other")
	resize(t, b, ns, "web", sized("64Mi", share(6)))
	held := await(t, b, ns, "web", "waits for room", limit, func(pod *corev1.Pod) error {
		if pending := condition(pod, corev1.PodResizePending); pending.Reason != corev1.PodReasonDeferred {
			return fmt.Errorf("its conditions are %v", pod.Status.Conditions)
		}
		return nil
	})
	if got := held.Status.ContainerStatuses[0].Resources.Limits.Cpu().String(); got != "100m" {
		t.Fatalf("a limit of %s is shown", got)
	}
	if got := held.Status.ContainerStatuses[0].AllocatedResources.Cpu().String(); got != "100m" {
		t.Fatalf("%s is allocated", got)
	}
	if !isReady(held) {
		t.Fatalf("it is not ready: %s", describe(held))
	}
	awaitEvent(t, b, ns, "web", "ResizeDeferred", "Pod resize Deferred: ")

	remove(t, b, other)
	await(t, b, ns, "web", "waits no more", limit, func(pod *corev1.Pod) error {
		shown := pod.Status.ContainerStatuses[0].Resources.Limits.Cpu()
		if wanted := resource.MustParse(share(6)); shown.Cmp(wanted) != 0 {
			return fmt.Errorf("it has %v", shown)
		}
		if condition(pod, corev1.PodResizePending).Type != "" {
			return fmt.Errorf("its conditions are %v", pod.Status.Conditions)
		}
		return nil
	})
}

func TestADebuggerIsRefusedAloud(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := always(wasmPod("web", b.Image(t, "http.wasm")))
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8098}}
	create(t, b, ns, pod)
	awaitReady(t, b, ns, "web")
	b.Kubectl(t, "-n", ns, "debug", "web", "--image=busybox", "--container=debugger", "--attach=false")
	found := await(t, b, ns, "web", "says so", limit, func(pod *corev1.Pod) error {
		for _, status := range pod.Status.EphemeralContainerStatuses {
			waiting := status.State.Waiting
			if status.Name == "debugger" && waiting != nil && waiting.Reason == "PodFeatureUnsupported" {
				if !strings.Contains(waiting.Message, "ephemeral containers are not offered") {
					t.Fatalf("it says %q", waiting.Message)
				}
				return nil
			}
		}
		return fmt.Errorf("its ephemeral containers are %v", pod.Status.EphemeralContainerStatuses)
	})
	if !isReady(found) {
		t.Fatalf("the pod does not go on: %s", describe(found))
	}
	awaitEvent(t, b, ns, "web", "PodFeatureUnsupported", "ephemeral containers are not offered")
}
