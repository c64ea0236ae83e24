package scenarios

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// The agent dies without a word, and another takes over. What its pods are must
// not show it.
func TestPodsOutliveTheirAgent(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "survivor")
	ns := b.Namespace(t)
	image := b.Image(t, "hello.wasm")

	steady, sandbox := sandboxOf(t, b, ns, on(node, always(wasmPod("steady", image, "tick", "0.2"))))
	restarted := on(node, always(wasmPod("restarted", image, "sleep", "1")))
	create(t, b, ns, restarted)
	create(t, b, ns, on(node, wasmPod("finished", image, "args", "once")))
	create(t, b, ns, on(node, always(wasmPod("unwanted", image, "tick"))))
	awaitPhase(t, b, ns, "finished", corev1.PodSucceeded)
	awaitReady(t, b, ns, "unwanted")
	await(t, b, ns, "restarted", "was restarted", limit, func(pod *corev1.Pod) error {
		if status(pod).RestartCount == 0 {
			return errNotYet
		}
		return nil
	})
	finished, unwanted := get(t, b, ns, "finished"), get(t, b, ns, "unwanted")
	podHistory, nodeHistory := b.WatchPod(t, ns, "steady"), b.WatchNode(t, node.Name)
	finishedHistory := b.WatchPod(t, ns, "finished")

	node.Kill(t)
	remove(t, b, unwanted)
	restarts := status(get(t, b, ns, "restarted")).RestartCount
	before := logOnDisk(t, node, steady)
	b.WaitFor(t, "the guest goes on without an agent", limit, func() error {
		if logOnDisk(t, node, steady) == before {
			return errNotYet
		}
		return nil
	})
	node.Start(t)
	node.WaitReady(t)
	node.WaitHolds(t, ns, "steady")
	awaitGone(t, b, unwanted)

	for _, version := range podHistory.Seen(t) {
		same(t, "container", status(version).ContainerID, status(steady).ContainerID)
		same(t, "restarts", status(version).RestartCount, 0)
		same(t, "Ready", isReady(version), true)
		same(t, "state", describe(version), describe(steady))
		same(t, "Ready since", condition(version, corev1.PodReady).LastTransitionTime.Unix(), condition(steady, corev1.PodReady).LastTransitionTime.Unix())
	}
	for _, version := range nodeHistory.Seen(t) {
		same(t, "node's Ready", bed.NodeCondition(version, corev1.NodeReady).Status, corev1.ConditionTrue)
	}
	for _, version := range finishedHistory.Seen(t) {
		same(t, "finished pod's container", status(version).ContainerID, status(finished).ContainerID)
		same(t, "finished pod's phase", version.Status.Phase, corev1.PodSucceeded)
	}
	if now := status(get(t, b, ns, "restarted")).RestartCount; now < restarts {
		t.Errorf("restarts went from %d back to %d", restarts, now)
	}

	t.Run("and the new agent holds them", func(t *testing.T) {
		if got := logs(t, b, ns, "steady", "--tail=1"); !strings.HasPrefix(got, "tick ") {
			t.Errorf("log: %q", got)
		}
		remove(t, b, steady)
		awaitGone(t, b, steady)
		awaitEnded(t, b, sandbox)
	})
}

// TestAnAgentThatIsStoppedKeepsItsPods is the ordinary upgrade: SIGTERM is no
// node shutdown.
func TestAnAgentThatIsStoppedKeepsItsPods(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "upgraded")
	ns := b.Namespace(t)
	steady, _ := sandboxOf(t, b, ns, on(node, always(wasmPod("steady", b.Image(t, "hello.wasm"), "tick"))))
	history := b.WatchPod(t, ns, "steady")
	node.Stop(t)
	node.Start(t)
	node.WaitReady(t)
	node.WaitHolds(t, ns, "steady")
	for _, version := range append(history.Seen(t), get(t, b, ns, "steady")) {
		same(t, "container", status(version).ContainerID, status(steady).ContainerID)
		same(t, "restarts", status(version).RestartCount, 0)
		same(t, "Ready", isReady(version), true)
	}
}

var errNotYet = errors.New("not yet")

// logOnDisk is the log of a pod's first run as it is on the node's disk, which needs
// no agent.
func logOnDisk(t *testing.T, node *bed.Node, pod *corev1.Pod) string {
	t.Helper()
	folder := pod.Namespace + "_" + pod.Name + "_" + string(pod.UID)
	text, err := os.ReadFile(filepath.Join(node.Logs, folder, containerName, "0.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
