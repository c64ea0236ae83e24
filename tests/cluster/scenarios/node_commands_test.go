package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// A person with a shell on the node asks its agent about the cluster's pods.
func TestTheCommandsOnANodeSpeakOfThePodsOfTheCluster(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, on(node, always(wasmPod("asked", b.Image(t, "hello.wasm"), "tick", "0.2"))))
	pod := awaitReady(t, b, ns, "asked")

	t.Run("ps", func(t *testing.T) {
		row := psRow(t, node, ns, "asked")
		same(t, "row", strings.Join(row[:5], " "), ns+" asked 1/1 Running 0")
	})
	t.Run("logs", func(t *testing.T) {
		if out := askNode(t, node, "logs", "--namespace="+ns, "--tail=1", "asked"); !strings.HasPrefix(out, "tick ") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("exec", func(t *testing.T) {
		out := askNode(t, node, "exec", "--namespace="+ns, "asked", "--", "hello", "args", "a b")
		same(t, "output", out, "a b\n")
		_, err := node.Ask("exec", "--namespace="+ns, "asked", "--", "hello", "exit", "5")
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 5 {
			t.Errorf("got %v, want exit code 5", err)
		}
	})
	t.Run("stats", func(t *testing.T) {
		if out := askNode(t, node, "stats"); !slices.ContainsFunc(rows(out), func(row []string) bool {
			return len(row) > 4 && row[0] == ns && row[1] == "asked" && row[2] == containerName && row[4] != "0B"
		}) {
			t.Errorf("the pod is not in\n%s", out)
		}
	})
	t.Run("inspect", func(t *testing.T) {
		var seen corev1.Pod
		if err := json.Unmarshal([]byte(askNode(t, node, "inspect", "--namespace="+ns, "asked")), &seen); err != nil {
			t.Fatal(err)
		}
		same(t, "uid", seen.UID, pod.UID)
		same(t, "phase", seen.Status.Phase, corev1.PodRunning)
		same(t, "container", status(&seen).ContainerID, status(pod).ContainerID)
	})
	t.Run("who is not there", func(t *testing.T) {
		for _, args := range [][]string{
			{"logs", "--namespace=" + ns, "absent"}, {"stop", "--namespace=" + ns, "absent"},
			{"exec", "--namespace=" + ns, "absent", "--", "hello"},
		} {
			if out, err := node.Ask(args...); err == nil {
				t.Errorf("%v: %q", args, out)
			}
		}
	})
}

// What is stopped on the node has failed for the cluster, for good: it is neither
// restarted nor deleted, also by the next agent.
func TestAPodThatIsStoppedOnItsNodeHasFailed(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "stopper")
	ns := b.Namespace(t)
	create(t, b, ns, on(node, always(wasmPod("bare", b.Image(t, "hello.wasm"), "tick", "0.2"))))
	awaitReady(t, b, ns, "bare")

	out := askNode(t, node, "stop", "--namespace="+ns, "--grace-period=1", "bare")
	if !strings.Contains(out, "kubectl delete pod --namespace "+ns+" bare") {
		t.Errorf("how to delete it is not said: %q", out)
	}
	check := func(t *testing.T) {
		pod := awaitPhase(t, b, ns, "bare", corev1.PodFailed)
		same(t, "reason", pod.Status.Reason, "StoppedOnNode")
		same(t, "exit code", ended(t, pod).ExitCode, 143)
		same(t, "restarts", status(pod).RestartCount, 0)
		same(t, "deleted", pod.DeletionTimestamp != nil, false)
	}
	check(t)
	if out := askNode(t, node, "ps"); strings.Contains(out, ns) {
		t.Errorf("it is listed:\n%s", out)
	}
	same(t, "row", psRow(t, node, ns, "bare")[2], "0/1")
	b.WaitFor(t, "the event is told", limit, func() error {
		if out := b.Kubectl(t, "--namespace="+ns, "describe", "pod", "bare"); !strings.Contains(out, "stopped by hand on its node") {
			return errors.New(out)
		}
		return nil
	})
	if out, err := node.Ask("stop", "--namespace="+ns, "bare"); err != nil {
		t.Errorf("once more: %q, %v", out, err)
	}

	node.Kill(t)
	node.Start(t)
	// The Node has been Ready all the time.
	b.WaitFor(t, "the next agent answers", limit, func() error {
		_, err := node.Ask("ps")
		return err
	})
	same(t, "row", psRow(t, node, ns, "bare")[2], "0/1")
	check(t)
	pod := get(t, b, ns, "bare")
	remove(t, b, pod)
	awaitGone(t, b, pod)
}

// A controller makes another pod of one that was stopped.
func TestAControllerReplacesAPodThatIsStoppedOnItsNode(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.NewReplacer("IMAGE", b.Image(t, "hello.wasm"), "replicas: 2", "replicas: 1").Replace(deployment))
	awaitAvailable(t, b, ns, "web", 1)
	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "pods", len(pods.Items), 1)
	stopped := pods.Items[0]
	askNode(t, node, "stop", "--namespace="+ns, "--grace-period=1", stopped.Name)
	b.WaitFor(t, "another pod is Ready", limit, func() error {
		pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if pod := &pods.Items[i]; pod.UID != stopped.UID && isReady(pod) {
				return nil
			}
		}
		return fmt.Errorf("%d pods", len(pods.Items))
	})
	now, err := b.Client.CoreV1().Pods(ns).Get(t.Context(), stopped.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if err == nil {
		same(t, "phase of the first", now.Status.Phase, corev1.PodFailed)
	}
}

// askNode runs a command against a node's agent that must succeed.
func askNode(t *testing.T, node *bed.Node, args ...string) string {
	t.Helper()
	out, err := node.Ask(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// psRow is a pod's row in `krustlet ps --all`.
func psRow(t *testing.T, node *bed.Node, namespace, name string) []string {
	t.Helper()
	out := askNode(t, node, "ps", "--all")
	for _, row := range rows(out) {
		if len(row) > 4 && row[0] == namespace && row[1] == name {
			return row
		}
	}
	t.Fatalf("%s/%s is not in\n%s", namespace, name, out)
	return nil
}

// rows are the words of each line below the headings.
func rows(table string) [][]string {
	var rows [][]string
	for _, line := range strings.Split(table, "\n")[1:] {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}
