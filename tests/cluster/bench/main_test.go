// Package bench measures krustlet as a cluster's user meets it: through the API
// of a real control plane. It checks nothing; package scenarios does that.
//
//	go test ./bench -run='^$' -bench='^Latency$' -benchtime=1x -timeout=1h -args -n=30
//
// benches/ has one command for each benchmark. The program is $KRUSTLET_BIN, or
// else what cargo builds in the release profile.
package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/toolchain"
)

var (
	count   = flag.Int("n", 0, "how many pods; 0 is the benchmark's own number")
	rounds  = flag.Int("rounds", 3, "how often latency, scale, http and tcp are measured")
	settle  = flag.Duration("settle", 300*time.Millisecond, "latency: how long a pod is Ready before it is deleted")
	rest    = flag.Duration("rest", 15*time.Second, "memory, idle: how long pods are Ready before they are looked at")
	seconds = flag.Int("seconds", 60, "idle: how long CPU time is counted")

	guestKind = flag.String("guest", "hello", "memory, idle: what the pods run: hello sleeps, http waits for requests")
	duration  = flag.Duration("duration", 5*time.Second, "http, tcp: how long each is asked in each round")
	wasmtime  = flag.String("wasmtime", "", "http: the program wasmtime")
)

func TestMain(m *testing.M) { os.Exit(bed.Measure(m)) }

// start gives the cluster and its node, and says what is measured and where.
func start(b *testing.B) (*bed.Bed, *bed.Node) {
	b.Helper()
	if b.N != 1 {
		b.Fatal("each benchmark repeats itself: run it with -benchtime=1x")
	}
	if os.Getenv("KRUSTLET_BIN") == "" {
		b.Setenv("KRUSTLET_BIN", release(b))
	}
	cluster := bed.Start(b)
	node := cluster.Node(b)
	// No row of the framework's own: it would tell how long all of it took.
	b.ReportMetric(0, "ns/op")
	say("\n%s of %s on %d CPUs", b.Name(), os.Getenv("KRUSTLET_BIN"), runtime.NumCPU())
	sayLoad("before")
	b.Cleanup(func() { sayLoad("after") })
	return cluster, node
}

// release builds the program as users get it.
func release(b *testing.B) string { b.Helper(); return built(b, "krustlet", "--package=krustlet") }

// built has cargo build a program in the release profile, and returns its path.
func built(b *testing.B, program string, what ...string) string {
	b.Helper()
	root, err := toolchain.Root()
	if err != nil {
		b.Fatal(err)
	}
	build := exec.CommandContext(b.Context(), "cargo", append([]string{"build", "--release", "--locked"}, what...)...)
	build.Dir, build.Stdout, build.Stderr = root, os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		b.Fatal("cargo build: ", err)
	}
	target := os.Getenv("CARGO_TARGET_DIR")
	if target == "" {
		target = "target"
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(root, target)
	}
	return filepath.Join(target, "release", program)
}

// number is how many pods to make.
func number(b *testing.B, usual int) int {
	b.Helper()
	switch {
	case *count < 0 || *rounds < 1 || *seconds < 1:
		b.Fatal("-n, -rounds and -seconds count things: none is negative, and the last two are at least 1")
	case *count > 0:
		return *count
	}
	return usual
}

// sayLoad tells how busy the machine is: figures of a busy one are not krustlet's.
func sayLoad(when string) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		say("load %s: %v", when, err)
		return
	}
	say("load %s: %s", when, strings.Join(strings.Fields(string(text))[:3], " "))
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
