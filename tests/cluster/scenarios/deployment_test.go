package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// One line, runtimeClassName, makes it a Wasm workload. The image is named by
// digest, as a careful user names it.
const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: IMAGE
        args: [tick]
`

func TestADeploymentBecomesAvailable(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.ByDigest(t, b.Image(t, "hello.wasm"))
	b.Apply(t, ns, strings.ReplaceAll(deployment, "IMAGE", image))
	awaitAvailable(t, b, ns, "web", 2)

	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		same(t, "node", pod.Spec.NodeName, node.Name)
		same(t, "phase", pod.Status.Phase, corev1.PodRunning)
		same(t, "host", pod.Status.HostIP, node.Address.String())
		same(t, "image", status(pod).Image, image)
		if id := status(pod).ImageID; !strings.HasSuffix(id, image[strings.Index(image, "@"):]) {
			t.Errorf("image id %q is not that of %s", id, image)
		}
		if id := status(pod).ContainerID; !strings.Contains(id, "://") {
			t.Errorf("container id %q has no runtime", id)
		}
		if pod.Status.PodIP == "" || pod.Status.StartTime == nil {
			t.Errorf("no address or start time: %+v", pod.Status)
		}
		for _, kind := range []corev1.PodConditionType{
			corev1.PodScheduled, corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
		} {
			same(t, string(kind), condition(pod, kind).Status, corev1.ConditionTrue)
		}
		same(t, "observed generation", pod.Status.ObservedGeneration, pod.Generation)
		same(t, "observed generation of Ready", condition(pod, corev1.PodReady).ObservedGeneration, pod.Generation)

		// Events let the statuses go first, and have a rate.
		b.WaitFor(t, "all events are told", limit, func() error {
			told := b.Kubectl(t, "--namespace="+ns, "describe", "pod", pod.Name)
			for _, event := range []string{"Scheduled", "Pull", "Created", "Started"} {
				if !strings.Contains(told, event) {
					return fmt.Errorf("no event %s in\n%s", event, told)
				}
			}
			return nil
		})
	}

	t.Run("and is rolled out anew", func(t *testing.T) {
		b.Kubectl(t, "--namespace="+ns, "set", "env", "deployment/web", "COLOUR=blue")
		b.Kubectl(t, "--namespace="+ns, "rollout", "status", "deployment/web", "--timeout=60s")
	})
	t.Run("and leaves no pod behind", func(t *testing.T) {
		b.Kubectl(t, "--namespace="+ns, "delete", "deployment", "web", "--cascade=foreground", "--timeout=60s")
		left, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "pods", len(left.Items), 0)
	})
}

// isAvailable tells whether a deployment says so of itself.
func isAvailable(deployment *appsv1.Deployment) bool {
	return slices.ContainsFunc(deployment.Status.Conditions, func(condition appsv1.DeploymentCondition) bool {
		return condition.Type == appsv1.DeploymentAvailable && condition.Status == corev1.ConditionTrue
	})
}

func TestPodsOfTheDenseClassRun(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	for _, name := range []string{"one", "two"} {
		pod := dense(wasmPod(name, b.Image(t, "hello.wasm"), "args", name))
		same(t, "output", output(t, b, ns, pod), name+"\n")
	}
}

func TestAComponentRuns(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	same(t, "output", output(t, b, b.Namespace(t), wasmPod("component", b.Image(t, "hello.p2.wasm"), "args", "a b")), "a b\n")
}
