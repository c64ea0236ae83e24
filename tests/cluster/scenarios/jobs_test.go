package scenarios

import (
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

const job = `
apiVersion: batch/v1
kind: Job
metadata:
  name: job
spec:
  backoffLimit: 0
  template:
    spec:
      runtimeClassName: wasm
      restartPolicy: Never
      containers:
      - name: main
        image: IMAGE
        args: ARGS
`

// runJob is runJobOf the guest hello.
func runJob(t *testing.T, b *bed.Bed, args string, kind batchv1.JobConditionType) *corev1.Pod {
	t.Helper()
	return runJobOf(t, b, b.Image(t, "hello.wasm"), args, kind)
}

// runJobOf applies a job, waits for this condition and returns its pod.
func runJobOf(t *testing.T, b *bed.Bed, image, args string, kind batchv1.JobConditionType) *corev1.Pod {
	t.Helper()
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.NewReplacer("IMAGE", image, "ARGS", args).Replace(job))
	b.WaitFor(t, "the job is "+string(kind), limit, func() error {
		found, err := b.Client.BatchV1().Jobs(ns).Get(t.Context(), "job", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range found.Status.Conditions {
			if condition.Type == kind && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", found.Status)
	})
	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=job"})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("want one pod, got %d", len(pods.Items))
	}
	return &pods.Items[0]
}

func TestAJobCompletes(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	pod := runJob(t, b, `[args, done]`, batchv1.JobComplete)
	same(t, "phase", pod.Status.Phase, corev1.PodSucceeded)
	end := ended(t, pod)
	same(t, "exit code", end.ExitCode, 0)
	same(t, "reason", end.Reason, "Completed")
	if end.StartedAt.IsZero() || end.FinishedAt.Before(&end.StartedAt) {
		t.Errorf("ran from %s to %s", end.StartedAt, end.FinishedAt)
	}
	ready := condition(pod, corev1.PodReady)
	same(t, "Ready", string(ready.Status)+" "+ready.Reason, "False PodCompleted")
	same(t, "log", logs(t, b, pod.Namespace, pod.Name), "done\n")
}

func TestAJobFailsWithItsExitCode(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	pod := runJob(t, b, `[exit, "42"]`, batchv1.JobFailed)
	same(t, "phase", pod.Status.Phase, corev1.PodFailed)
	end := ended(t, pod)
	same(t, "exit code", end.ExitCode, 42)
	same(t, "reason", end.Reason, "Error")
	ready := condition(pod, corev1.PodReady)
	same(t, "Ready", string(ready.Status)+" "+ready.Reason, "False PodFailed")
}

// A trap is a crash, as an abort is for a native program; where it happened is
// in the message.
func TestATrapIsToldWithItsPlace(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, wasmPod("trap", b.Image(t, "hello.wasm"), "trap"))
	end := ended(t, awaitPhase(t, b, ns, "trap", corev1.PodFailed))
	same(t, "exit code", end.ExitCode, 134)
	same(t, "reason", end.Reason, "Error")
	if !strings.Contains(end.Message, "unreachable") {
		t.Errorf("the message does not tell the trap: %q", end.Message)
	}
}
