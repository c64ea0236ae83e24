package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/room"
	"krustlet.dev/tests/cluster/toolchain"
)

// Where the pods of `krustlet run` are, and what they are compared with. The
// range is for benchmarks (RFC 2544), and none of a room's.
var (
	podRange    = netip.MustParsePrefix("198.19.0.0/24")
	nativePlace = netip.MustParseAddr("198.19.0.250")
	otherPlace  = netip.MustParseAddr("198.19.0.251")
)

// startLimit bounds the wait for a server. It ends a benchmark that would wait for ever.
const startLimit = time.Minute

// standalone is a room with pods of `krustlet run`, and ordinary programs in the
// pods' network, so that all are reached by one way.
type standalone struct {
	b      *testing.B
	room   *room.Room
	dir    string
	native string // the program of crates/testkit/examples/native
}

// alone makes the room, without a pod.
func alone(b *testing.B) *standalone {
	b.Helper()
	if b.N != 1 {
		b.Fatal("each benchmark repeats itself: run it with -benchtime=1x")
	}
	if *rounds < 1 || *duration < time.Second {
		b.Fatal("-rounds is at least 1, -duration at least 1s")
	}
	if os.Getenv("KRUSTLET_BIN") == "" {
		b.Setenv("KRUSTLET_BIN", release(b))
	}
	native := built(b, "examples/native", "--package=krustlet-testkit", "--example=native")
	opened, err := room.Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(opened.Close)
	// Short: the agent puts sockets under it, whose paths end at 107 bytes.
	dir, err := os.MkdirTemp("", "kalone-")
	if err != nil {
		b.Fatal(err)
	}
	s := &standalone{b: b, room: opened, dir: dir, native: native}
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("the end of the agent's log:\n%s", room.Tail(filepath.Join(dir, "root", "agent.log")))
		}
		_ = os.RemoveAll(dir)
	})
	// No row of the framework's own: it would tell how long all of it took.
	b.ReportMetric(0, "ns/op")
	say("\n%s of %s on %d CPUs", b.Name(), os.Getenv("KRUSTLET_BIN"), runtime.NumCPU())
	sayLoad("before")
	b.Cleanup(func() { sayLoad("after") })
	return s
}

// guest is a pod of one container.
type guest struct {
	name, program string
	args          []string
	annotations   map[string]string
}

// pods starts pods by `krustlet run -d` and returns their addresses by name.
func (s *standalone) pods(guests ...guest) map[string]netip.Addr {
	s.b.Helper()
	root, err := toolchain.Root()
	if err != nil {
		s.b.Fatal(err)
	}
	manifests := filepath.Join(s.dir, "pods")
	var pods []string
	for _, guest := range guests {
		program, err := os.ReadFile(filepath.Join(root, "guests", "prebuilt", guest.program+".wasm"))
		if err != nil {
			s.b.Fatal(err)
		}
		pod, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": guest.name, "annotations": guest.annotations},
			"spec": map[string]any{"containers": []any{
				map[string]any{"name": "main", "image": guest.program, "args": guest.args},
			}},
		})
		if err == nil {
			// What lies beside a manifest supplies its images.
			err = errors.Join(os.MkdirAll(manifests, 0o755), os.WriteFile(filepath.Join(manifests, guest.program+".wasm"), program, 0o644))
		}
		if err != nil {
			s.b.Fatal(err)
		}
		pods = append(pods, string(pod))
	}
	manifest := filepath.Join(manifests, "pods.yaml")
	if err := os.WriteFile(manifest, []byte(strings.Join(pods, "\n---\n")), 0o644); err != nil {
		s.b.Fatal(err)
	}
	s.krustlet("run", "-d", "--pod-cidr="+podRange.String(), manifest)
	addresses := map[string]netip.Addr{}
	for _, guest := range guests {
		addresses[guest.name] = s.address(guest.name)
	}
	return addresses
}

// address waits until a pod is Ready, and says where.
func (s *standalone) address(name string) netip.Addr {
	s.b.Helper()
	for end := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		var pod corev1.Pod
		if err := json.Unmarshal([]byte(s.krustlet("inspect", name)), &pod); err != nil {
			s.b.Fatal(err)
		}
		address, err := netip.ParseAddr(pod.Status.PodIP)
		if err == nil && isReady(&pod) {
			if !podRange.Contains(address) || address == nativePlace || address == otherPlace {
				s.b.Fatalf("%s has the address %s", name, address)
			}
			return address
		}
		if time.Now().After(end) {
			s.b.Fatalf("%s is not Ready after %s: %+v", name, startLimit, pod.Status)
		}
	}
}

func (s *standalone) krustlet(command string, args ...string) string {
	s.b.Helper()
	args = append([]string{command, "--root-dir=" + filepath.Join(s.dir, "root")}, args...)
	return s.run(os.Getenv("KRUSTLET_BIN"), args...)
}

// run runs a program in the room to its end.
func (s *standalone) run(program string, args ...string) string {
	s.b.Helper()
	said, err := s.room.Run(room.Command{Name: filepath.Base(program), Path: program, Args: args})
	if err != nil {
		s.b.Fatalf("%v\n%s", err, said)
	}
	return said
}

// beside starts a server among the pods and waits until it listens. Pods must
// have been started: their network lives as long as they do.
func (s *standalone) beside(at netip.AddrPort, program string, args ...string) *room.Process {
	s.b.Helper()
	network := "--net=" + filepath.Join(s.dir, "root", "run", "netns")
	started, err := s.room.Start(room.Command{
		Name: filepath.Base(program), Path: "nsenter", Args: append([]string{network, program}, args...),
		Log: filepath.Join(s.dir, filepath.Base(program)+".log"),
	})
	if err != nil {
		s.b.Fatal(err)
	}
	for end := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		connection, err := room.Dial(s.b.Context(), s.room.Network(), netip.Addr{}, "tcp", at.String())
		if err == nil {
			connection.Close()
			return started
		}
		if running, why := started.Running(); !running {
			s.b.Fatal(why)
		}
		if time.Now().After(end) {
			s.b.Fatalf("%s does not listen at %s after %s: %v", program, at, startLimit, err)
		}
	}
}

// sandboxes is the CPU time of all pods.
func (s *standalone) sandboxes() time.Duration {
	s.b.Helper()
	residents, err := s.room.Residents()
	if err != nil {
		s.b.Fatal(err)
	}
	var pids []int
	for _, resident := range residents {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", resident.Pid))
		if err == nil && strings.TrimSpace(string(name)) == "krustlet-pod" {
			pids = append(pids, resident.Pid)
		}
	}
	if len(pids) == 0 {
		s.b.Fatal("no sandbox is to be found")
	}
	return s.clock(pids...)
}

func (s *standalone) clock(pids ...int) time.Duration {
	s.b.Helper()
	var sum time.Duration
	for _, pid := range pids {
		used, err := processClock(pid)
		if err != nil {
			s.b.Fatalf("the CPU time of process %d: %v", pid, err)
		}
		sum += used
	}
	return sum
}

func portOf(address netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(address, port) }

func url(at netip.AddrPort) string {
	return "http://" + net.JoinHostPort(at.Addr().String(), fmt.Sprint(at.Port())) + "/"
}

// against says how many times as much the first has as the second, round by round.
func against(first, second []float64) []float64 {
	ratios := make([]float64, len(first))
	for i := range first {
		ratios[i] = first[i] / second[i]
	}
	return ratios
}

// ratio is the median of several rounds' ratios, with the least and the greatest.
func ratio(values []float64) string {
	s := summarize(values)
	return fmt.Sprintf("%.2f (%.2f to %.2f)", s.p50, s.min, s.max)
}
