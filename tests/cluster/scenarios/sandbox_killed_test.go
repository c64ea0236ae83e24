package scenarios

import (
	"fmt"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

func TestAKilledSandboxIsToldAndRestarted(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	before, sandbox := sandboxOf(t, b, ns, always(wasmPod("restarted", b.Image(t, "hello.wasm"), "tick")))
	if err := syscall.Kill(sandbox, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	after := await(t, b, ns, "restarted", "runs again", limit, func(pod *corev1.Pod) error {
		if status(pod).RestartCount == 0 || !isReady(pod) {
			return fmt.Errorf("%d restarts, %s", status(pod).RestartCount, describe(pod))
		}
		return nil
	})
	same(t, "restarts", status(after).RestartCount, 1)
	last := status(after).LastTerminationState.Terminated
	if last == nil {
		t.Fatal("the end of the first run is not told")
	}
	same(t, "exit code", last.ExitCode, 137)
	same(t, "container", last.ContainerID, status(before).ContainerID)
	same(t, "address", after.Status.PodIP, before.Status.PodIP)
	if status(after).ContainerID == status(before).ContainerID {
		t.Error("the new run has the id of the old one")
	}
}

func TestAKilledSandboxOfAPodThatIsNotRestartedFailsIt(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	_, sandbox := sandboxOf(t, b, ns, wasmPod("failed", b.Image(t, "hello.wasm"), "tick"))
	if err := syscall.Kill(sandbox, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	same(t, "exit code", ended(t, awaitPhase(t, b, ns, "failed", corev1.PodFailed)).ExitCode, 137)
}
