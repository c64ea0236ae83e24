package scenarios

import (
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// away is how long the API server is gone: longer than a lease lasts (40 s), so
// that the node is taken for lost. KRUSTLET_TEST_API_AWAY=5m is the promise.
func away(t *testing.T) time.Duration {
	t.Helper()
	given := os.Getenv("KRUSTLET_TEST_API_AWAY")
	if given == "" {
		return 50 * time.Second
	}
	duration, err := time.ParseDuration(given)
	if err != nil {
		t.Fatal("KRUSTLET_TEST_API_AWAY: ", err)
	}
	return duration
}

// Limits after its return (issue 3, part 8).
const (
	nodeReadyWithin   = 15 * time.Second
	statusRightWithin = 30 * time.Second
)

func TestPodsOutliveAnAbsentAPIServer(t *testing.T) {
	t.Parallel()
	b := bed.Own(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "hello.wasm")
	steady, _ := sandboxOf(t, b, ns, always(wasmPod("steady", image, "tick", "0.2")))
	// This one ends while nobody can be told.
	create(t, b, ns, wasmPod("ending", image, "sleep", "15"))
	awaitReady(t, b, ns, "ending")

	b.Cluster().StopAPIServer()
	// The absence is what is tested; nothing is waited for.
	time.Sleep(away(t))
	if err := b.Cluster().StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()

	b.WaitFor(t, "the node is Ready", nodeReadyWithin, func() error {
		found, err := b.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		lease, err := b.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ready := bed.NodeCondition(found, corev1.NodeReady); ready.Status != corev1.ConditionTrue || lease.Spec.RenewTime.Before(&metav1.MicroTime{Time: back}) {
			return fmt.Errorf("Ready is %s, the lease was renewed at %s", ready.Status, lease.Spec.RenewTime)
		}
		return nil
	})
	await(t, b, ns, "ending", "is told to have ended", time.Until(back.Add(statusRightWithin)), func(pod *corev1.Pod) error {
		if pod.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("it is %s", pod.Status.Phase)
		}
		return nil
	})
	now := await(t, b, ns, "steady", "is Ready", time.Until(back.Add(statusRightWithin)), func(pod *corev1.Pod) error {
		if !isReady(pod) {
			return fmt.Errorf("Ready: %s", condition(pod, corev1.PodReady).Reason)
		}
		return nil
	})
	same(t, "container", status(now).ContainerID, status(steady).ContainerID)
	same(t, "restarts", status(now).RestartCount, 0)

	// And the node is at work again. The pod is bound by hand: the scheduler was
	// away from its API server too, and may take a minute to come back to it.
	bound := wasmPod("new", image, "args", "hello")
	bound.Spec.NodeName = node.Name
	same(t, "output", output(t, b, ns, bound), "hello\n")
}

// Connections that stay open and say nothing are worse than ones that break.
func TestASilentAPIServerIsSurvived(t *testing.T) {
	t.Parallel()
	b := bed.Own(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "hello.wasm")
	steady, _ := sandboxOf(t, b, ns, always(wasmPod("steady", image, "tick")))
	if err := b.Cluster().PauseAPIServer(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(away(t))
	if err := b.Cluster().ResumeAPIServer(); err != nil {
		t.Fatal(err)
	}
	same(t, "output", output(t, b, ns, wasmPod("new", image, "args", "hello")), "hello\n")
	now := awaitReady(t, b, ns, "steady")
	same(t, "container", status(now).ContainerID, status(steady).ContainerID)
}
