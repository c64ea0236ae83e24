package scenarios

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
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
	node := b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, on(node, always(wasmPod("failing", b.Image(t, "hello.wasm"), "cat", "/missing"))))
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

// line is one of a log that was asked for with --timestamps.
type line struct {
	at   time.Time
	text string
}

func stamped(t *testing.T, log string) []line {
	t.Helper()
	var found []line
	for text := range strings.Lines(log) {
		stamp, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		found = append(found, line{at, rest})
	}
	return found
}

// The two runs say the same; when each did tells them apart.
func TestTheRunBeforeAndTheRunNowHaveLogsOfTheirOwn(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	_, sandbox := sandboxOf(t, b, ns, always(wasmPod("killed", b.Image(t, "hello.wasm"), "tick", "0.2")))
	b.WaitFor(t, "the first run has said something", limit, func() error {
		if logs(t, b, ns, "killed") == "" {
			return errNotYet
		}
		return nil
	})
	if err := syscall.Kill(sandbox, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pod := await(t, b, ns, "killed", "runs again", limit, func(pod *corev1.Pod) error {
		if status(pod).RestartCount != 1 || status(pod).State.Running == nil {
			return errors.New(describe(pod))
		}
		return nil
	})
	// The times of the API are cut to seconds, those of logs are not.
	first := status(pod).LastTerminationState.Terminated
	second := status(pod).State.Running.StartedAt.Time
	for _, one := range []struct {
		flag     string
		from, to time.Time
	}{
		{"--previous", first.StartedAt.Time, first.FinishedAt.Time.Add(time.Second)},
		{"--previous=false", second, time.Now().Add(time.Hour)},
	} {
		var lines []line
		b.WaitFor(t, "there is a log for "+one.flag, limit, func() error {
			if lines = stamped(t, logs(t, b, ns, "killed", "--timestamps", one.flag)); len(lines) == 0 {
				return errNotYet
			}
			return nil
		})
		for i, line := range lines {
			same(t, "text", line.text, fmt.Sprintf("tick %d", i+1))
			if line.at.Before(one.from) || line.at.After(one.to) {
				t.Errorf("%s: %q is of %s, the run was from %s to %s", one.flag, line.text, line.at, one.from, one.to)
			}
		}
	}
	before := stamped(t, logs(t, b, ns, "killed", "--timestamps", "--previous"))
	now := stamped(t, logs(t, b, ns, "killed", "--timestamps"))
	if end := before[len(before)-1].at; !now[0].at.After(end) {
		t.Errorf("the run now spoke first at %s, the one before last at %s", now[0].at, end)
	}
}

func TestLogsSinceATime(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, wasmPod("ticking", b.Image(t, "hello.wasm"), "tick", "0.5"))
	const since = 2 * time.Second
	var all []line
	b.WaitFor(t, "some lines are old", limit, func() error {
		out, err := b.TryKubectl(t, "--namespace="+ns, "logs", "ticking", "--timestamps")
		if err != nil {
			return err
		}
		all = stamped(t, out)
		if len(all) < 3 || time.Since(all[1].at) < 2*since {
			return fmt.Errorf("%d lines", len(all))
		}
		return nil
	})

	// A time in the API has whole seconds: of the lines from there on, all.
	from := all[len(all)/2].at.Truncate(time.Second)
	var want []string
	for _, line := range all {
		if !line.at.Before(from) {
			want = append(want, line.text)
		}
	}
	if len(want) == len(all) {
		t.Fatalf("all %d lines are from %s on", len(all), from)
	}
	got := strings.Split(logs(t, b, ns, "ticking", "--since-time="+from.UTC().Format(time.RFC3339)), "\n")
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("since %s: got %q, want it to begin with %q", from, got, want)
	}

	b.WaitFor(t, "there are lines of the last two seconds", limit, func() error {
		asked := time.Now()
		lines := stamped(t, logs(t, b, ns, "ticking", "--timestamps", "--since="+since.String()))
		if len(lines) == 0 {
			return errNotYet // the guest, or this test, was held up
		}
		if oldest := lines[0].at; oldest.Before(asked.Add(-since)) {
			t.Fatalf("%q of %s is older than %s at %s", lines[0].text, oldest, since, asked)
		}
		return nil
	})
}
