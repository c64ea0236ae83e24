package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"krustlet.dev/tests/cluster/bed"
)

// processes are those of the one node, by what they are for.
type processes struct{ agent, zygote, sandboxes []int }

// look finds the node's processes by the names they give themselves.
func look(b *testing.B, cluster *bed.Bed) processes {
	b.Helper()
	residents, err := cluster.Cluster().Room.Residents()
	if err != nil {
		b.Fatal(err)
	}
	var found processes
	for _, resident := range residents {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", resident.Pid))
		if err != nil {
			continue // it ended meanwhile
		}
		switch strings.TrimSpace(string(name)) {
		case "krustlet-pod":
			found.sandboxes = append(found.sandboxes, resident.Pid)
		case "krustlet-zygote":
			found.zygote = append(found.zygote, resident.Pid)
		case "krustlet":
			// A compiler has the same name, and is soon gone.
			if slices.Contains(resident.Arguments, "node") {
				found.agent = append(found.agent, resident.Pid)
			}
		}
	}
	if len(found.agent) != 1 || len(found.zygote) != 1 {
		b.Fatalf("one agent and one zygote were to be found, not %v and %v", found.agent, found.zygote)
	}
	return found
}

// memory is what the kernel counts for a process, in KiB.
type memory struct{ rss, pss, privateDirty, pageTables float64 }

func remember(b *testing.B, pid int) memory {
	b.Helper()
	rollup, status := table(b, pid, "smaps_rollup"), table(b, pid, "status")
	return memory{
		rss: kibibytes(b, rollup, "Rss"), pss: kibibytes(b, rollup, "Pss"),
		privateDirty: kibibytes(b, rollup, "Private_Dirty"), pageTables: kibibytes(b, status, "VmPTE"),
	}
}

// counts are a process's threads and open descriptors.
func counts(b *testing.B, pid int) (threads, descriptors float64) {
	b.Helper()
	number := func(what string) float64 {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), what))
		if err != nil {
			b.Fatal(err)
		}
		return float64(len(entries))
	}
	return number("task"), number("fd")
}

// machine is /proc/meminfo: what no process is charged with is in it.
func machine(b *testing.B) map[string]string { b.Helper(); return parse(b, "/proc/meminfo") }

func table(b *testing.B, pid int, file string) map[string]string {
	b.Helper()
	return parse(b, filepath.Join("/proc", strconv.Itoa(pid), file))
}

// parse reads lines of a name, a colon and a value.
func parse(b *testing.B, path string) map[string]string {
	b.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, found := strings.Cut(line, ":"); found {
			values[name] = strings.TrimSpace(value)
		}
	}
	return values
}

func kibibytes(b *testing.B, values map[string]string, name string) float64 {
	b.Helper()
	number, found := strings.CutSuffix(values[name], " kB")
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !found || err != nil {
		b.Fatalf("the kernel says %q of %s", values[name], name)
	}
	return value
}

// cpu is processor time in seconds.
type cpu struct{ agent, zygote, sandboxes float64 }

func (c cpu) minus(old cpu) cpu {
	return cpu{agent: c.agent - old.agent, zygote: c.zygote - old.zygote, sandboxes: c.sandboxes - old.sandboxes}
}

// spent is the time that processes have used since they began.
func spent(b *testing.B, of processes) cpu {
	b.Helper()
	sum := func(pids []int) float64 {
		total := time.Duration(0)
		for _, pid := range pids {
			used, err := processClock(pid)
			if err != nil {
				b.Fatalf("the CPU time of process %d: %v", pid, err)
			}
			total += used
		}
		return total.Seconds()
	}
	return cpu{agent: sum(of.agent), zygote: sum(of.zygote), sandboxes: sum(of.sandboxes)}
}

// processClock reads the CPU clock of a process, all its threads and the ended
// ones included. It counts nanoseconds; /proc/PID/stat counts hundredths of a
// second, which is more than an idle sandbox uses in a minute.
func processClock(pid int) (time.Duration, error) {
	const scheduled = 2                 // CPUCLOCK_SCHED, see clock_getcpuclockid(3)
	clock := int32(^pid)<<3 | scheduled // a 32-bit clockid_t
	var at syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&at)), 0)
	if errno != 0 {
		return 0, errno
	}
	return time.Duration(at.Nano()), nil
}

func TestTheClockOfAProcessSaysWhatTheKernelChargesAllItsThreads(t *testing.T) {
	var threads sync.WaitGroup
	for range 4 {
		threads.Go(func() {
			runtime.LockOSThread() // left locked: the thread ends with its work
			for began := threadTime(t); threadTime(t)-began < 20*time.Millisecond; {
			}
		})
	}
	threads.Wait()
	before := charged(t, syscall.RUSAGE_SELF)
	clock, err := processClock(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	after := charged(t, syscall.RUSAGE_SELF)
	// getrusage(2) rounds each of its two parts down to microseconds.
	if clock < before || clock > after+2*time.Microsecond {
		t.Errorf("%v, which is not between %v and %v", clock, before, after)
	}
	if clock < 80*time.Millisecond {
		t.Errorf("%v is less than the four threads used", clock)
	}
}

func threadTime(t *testing.T) time.Duration { return charged(t, rusageThread) }

// rusageThread is RUSAGE_THREAD, which package syscall lacks.
const rusageThread = 1

func charged(t *testing.T, whom int) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(whom, &used); err != nil {
		t.Error(err) // not Fatal: this is called from other goroutines too
		return time.Hour
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
