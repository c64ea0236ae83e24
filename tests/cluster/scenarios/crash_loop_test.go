package scenarios

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

func TestACrashLoopBacksOffLongerEachTime(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := create(t, b, ns, on(node, always(wasmPod("crashing", b.Image(t, "hello.wasm"), "exit", "3"))))
	history := b.WatchPod(t, ns, "crashing")
	b.WaitFor(t, "four runs have ended", 3*time.Minute, func() error {
		if ended := runs(history.Seen(t)); len(ended) < 4 {
			return fmt.Errorf("%d runs have", len(ended))
		}
		return nil
	})

	seen := history.Seen(t)
	ended := runs(seen)
	for i, run := range ended {
		same(t, fmt.Sprintf("exit code of run %d", i), run.ExitCode, 3)
		same(t, fmt.Sprintf("reason of run %d", i), run.Reason, "Error")
	}
	// The first restart is at once. Times in the API are cut to seconds, so a
	// wait may look one second shorter than it was.
	for i, least := range map[int]time.Duration{1: 9 * time.Second, 2: 19 * time.Second} {
		if waited := ended[i+1].StartedAt.Sub(ended[i].FinishedAt.Time); waited < least {
			t.Errorf("run %d began %s after the end of the one before, want at least %s", i+1, waited, least)
		}
	}

	var waits []string
	for _, version := range seen {
		if wait := waiting(version); wait.Reason == "CrashLoopBackOff" {
			waits = append(waits, wait.Message)
			// A pod that crashes is still Running; it is not Ready.
			same(t, "phase", version.Status.Phase, corev1.PodRunning)
			same(t, "Ready", isReady(version), false)
		}
	}
	for _, delay := range []string{"10s", "20s"} {
		want := fmt.Sprintf("back-off %s restarting failed container=main pod=crashing_%s(%s)", delay, ns, pod.UID)
		if !slices.Contains(waits, want) {
			t.Errorf("never seen: %q; seen: %q", want, waits)
		}
	}
	if told := b.Kubectl(t, "--namespace="+ns, "describe", "pod", "crashing"); !strings.Contains(told, "Back-off restarting failed container main") {
		t.Errorf("no event of the back-off in\n%s", told)
	}
}

// runs are the ended runs of a pod's container that its versions show, oldest first.
func runs(versions []*corev1.Pod) []corev1.ContainerStateTerminated {
	var found []corev1.ContainerStateTerminated
	for _, version := range versions {
		for _, state := range []corev1.ContainerState{status(version).LastTerminationState, status(version).State} {
			run := state.Terminated
			if run != nil && !slices.ContainsFunc(found, func(known corev1.ContainerStateTerminated) bool {
				return known.ContainerID == run.ContainerID
			}) {
				found = append(found, *run)
			}
		}
	}
	return found
}
