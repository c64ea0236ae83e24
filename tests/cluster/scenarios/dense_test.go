package scenarios

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// dense puts a pod into the class whose pods share a process.
func dense(pod *corev1.Pod) *corev1.Pod {
	class := "wasm-dense"
	pod.Spec.RuntimeClassName = &class
	return pod
}

// The process is that of all dense pods of a namespace, from the first to the last.
func TestPodsOfTheDenseClassShareAProcess(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns, other := b.Namespace(t), b.Namespace(t)
	tick := func(name string) *corev1.Pod { return always(wasmPod(name, b.Image(t, "hello.wasm"), "tick", "0.2")) }
	one, shared := sandboxOf(t, b, ns, dense(tick("one")))

	before := b.Sandboxes(t)
	create(t, b, ns, dense(tick("two")))
	two := awaitReady(t, b, ns, "two")
	for _, pid := range b.Sandboxes(t) {
		if !slices.Contains(before, pid) {
			t.Errorf("process %d came with the second pod of the namespace", pid)
		}
	}
	if one.Status.PodIP == two.Status.PodIP {
		t.Errorf("both have the address %s", one.Status.PodIP)
	}

	// Neither pods of other namespaces nor those of the other class are in it.
	_, theirs := sandboxOf(t, b, other, dense(tick("three")))
	_, own := sandboxOf(t, b, ns, tick("four"))

	remove(t, b, one)
	awaitGone(t, b, one)
	for name, pid := range map[string]int{"of the namespace": shared, "of the other namespace": theirs, "of the pod": own} {
		if !slices.Contains(b.Sandboxes(t), pid) {
			t.Errorf("the process %s ended with one pod", name)
		}
	}
	said := logs(t, b, ns, "two")
	b.WaitFor(t, "the other pod goes on", limit, func() error {
		if logs(t, b, ns, "two") == said {
			return errNotYet
		}
		return nil
	})
	same(t, "its container", status(get(t, b, ns, "two")).ContainerID, status(two).ContainerID)
	remove(t, b, two)
	awaitGone(t, b, two)
	awaitEnded(t, b, shared)
}
