package scenarios

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// ordinary pods say nothing of Wasm. The DaemonSet wants to be everywhere.
const ordinary = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: ordinary}
spec:
  replicas: 3
  selector: {matchLabels: {kind: ordinary}}
  template:
    metadata: {labels: {kind: ordinary}}
    spec:
      containers: [{name: main, image: "nginx:1.28"}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {kind: everywhere}}
  template:
    metadata: {labels: {kind: everywhere}}
    spec:
      containers: [{name: main, image: "nginx:1.28"}]
`

// agents of Linux nodes, such as kube-proxy, tolerate everything: what keeps them
// away is what a node says that it is.
const agent = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {kind: agent}}
  template:
    metadata: {labels: {kind: agent}}
    spec:
      hostNetwork: true
      priorityClassName: system-node-critical
      nodeSelector: {kubernetes.io/os: linux}
      tolerations: [{operator: Exists}]
      containers: [{name: main, image: "registry.k8s.io/kube-proxy:v1.37.2", securityContext: {privileged: true}}]
`

const linuxNode = "linux-1"

func TestOrdinaryPodsGoToOrdinaryNodes(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	b.StartFakeNode(t, linuxNode)
	ns := b.Namespace(t)
	b.Apply(t, ns, ordinary)
	b.Kubectl(t, "--namespace="+ns, "rollout", "status", "deployment/ordinary", "--timeout=60s")
	b.Kubectl(t, "--namespace="+ns, "rollout", "status", "daemonset/everywhere", "--timeout=60s")
	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "pods", len(pods.Items), 4)
	for _, pod := range pods.Items {
		same(t, "node of "+pod.Name, pod.Spec.NodeName, linuxNode)
	}
}

func TestAgentsOfLinuxNodesStayThere(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	b.StartFakeNode(t, linuxNode)
	ns := b.Namespace(t)
	b.Apply(t, ns, agent)
	b.WaitFor(t, "the agent runs on the one node that it is for", limit, func() error {
		set, err := b.Client.AppsV1().DaemonSets(ns).Get(t.Context(), "agent", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if status := set.Status; status.DesiredNumberScheduled != 1 || status.NumberAvailable != 1 || status.NumberMisscheduled != 0 {
			return fmt.Errorf("its status is %+v", status)
		}
		return nil
	})
	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "pods", len(pods.Items), 1)
	same(t, "node", pods.Items[0].Spec.NodeName, linuxNode)
}

func TestWasmPodsGoToWasmNodes(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	b.StartFakeNode(t, linuxNode)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.ReplaceAll(deployment, "IMAGE", b.Image(t, "hello.wasm")))
	b.Kubectl(t, "--namespace="+ns, "rollout", "status", "deployment/web", "--timeout=60s")
	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Spec.NodeName == linuxNode {
			t.Errorf("%s went to %s", pod.Name, linuxNode)
		}
	}
}

func TestAnOrdinaryPodWaitsRatherThanGoToAWasmNode(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "ordinary"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: containerName, Image: "nginx:1.28"}}},
	})
	await(t, b, ns, "ordinary", "is not scheduled", limit, func(pod *corev1.Pod) error {
		if scheduled := condition(pod, corev1.PodScheduled); scheduled.Reason != corev1.PodReasonUnschedulable {
			return errNotYet
		}
		return nil
	})
}
