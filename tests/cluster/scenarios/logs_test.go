package scenarios

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

func TestLogsOfAPodThatEnded(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	all := output(t, b, ns, wasmPod("lines", b.Image(t, "hello.wasm"), "log-lines", "100"))
	lines := strings.SplitAfter(strings.TrimSuffix(all, "\n"), "\n")
	if len(lines) != 100 {
		t.Fatalf("want 100 lines, got %d:\n%s", len(lines), all)
	}

	t.Run("--tail", func(t *testing.T) {
		same(t, "logs", logs(t, b, ns, "lines", "--tail=3"), strings.Join(lines[97:], "")+"\n")
		same(t, "logs", logs(t, b, ns, "lines", "--tail=0"), "")
		same(t, "logs", logs(t, b, ns, "lines", "--tail=1000"), all)
	})
	t.Run("--limit-bytes", func(t *testing.T) {
		same(t, "logs", logs(t, b, ns, "lines", "--limit-bytes=100"), all[:100])
	})
	t.Run("--timestamps", func(t *testing.T) {
		var last time.Time
		for i, line := range strings.Split(strings.TrimSuffix(logs(t, b, ns, "lines", "--timestamps"), "\n"), "\n") {
			stamp, text, _ := strings.Cut(line, " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil || at.Before(last) {
				t.Fatalf("line %d: %q, %v; the line before is of %s", i, line, err, last)
			}
			same(t, "text", text, strings.TrimSuffix(lines[i], "\n"))
			last = at
		}
	})
	t.Run("--since", func(t *testing.T) {
		same(t, "logs", logs(t, b, ns, "lines", "--since=1h"), all)
		future := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		same(t, "logs", logs(t, b, ns, "lines", "--since-time="+future), "")
	})
	t.Run("-f ends with the container", func(t *testing.T) {
		same(t, "logs", logs(t, b, ns, "lines", "-f"), all)
	})
	t.Run("--previous is refused", func(t *testing.T) {
		out, err := b.TryKubectl(t, "--namespace="+ns, "logs", "lines", "--previous")
		if err == nil || !strings.Contains(err.Error(), "previous terminated container") {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

func TestLogsAreFollowed(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := create(t, b, ns, wasmPod("ticking", b.Image(t, "hello.wasm"), "tick", "0.2"))
	awaitReady(t, b, ns, "ticking")
	lines := b.Follow(t, "--namespace="+ns, "logs", "-f", "ticking")
	for _, want := range []string{"tick 1", "tick 2", "tick 3", "tick 4", "tick 5"} {
		select {
		case got := <-lines:
			same(t, "line", got, want)
		case <-time.After(limit):
			t.Fatalf("%q did not come", want)
		}
	}
	remove(t, b, pod)
	for end := time.After(limit); ; {
		select {
		case _, more := <-lines:
			if !more {
				return
			}
		case <-end:
			t.Fatal("following did not end with the pod")
		}
	}
}

// Both outputs are in the log, and that of the run before is kept.
func TestLogsOfTheRunBefore(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, always(wasmPod("failing", b.Image(t, "hello.wasm"), "cat", "/missing")))
	await(t, b, ns, "failing", "was restarted", limit, func(pod *corev1.Pod) error {
		if status(pod).RestartCount == 0 {
			return errors.New(describe(pod))
		}
		return nil
	})
	if got := logs(t, b, ns, "failing", "--previous"); !strings.Contains(got, "/missing") {
		t.Errorf("the error is not in the log of the run before: %q", got)
	}
}
