// Package room makes the closed room that a test cluster lives in: network,
// process and mount namespaces of its own, which the kernel clears away with
// everything in them when the process that made them ends, however it ends.
// What runs in the room is the caller's business.
//
//	this process ──▶ spawner (a locked thread that entered the room)
//	     │                └──▶ etcd, kube-apiserver, krustlet node, …
//	     └─ dies ─▶ holder (process 1 of the room) is killed ─▶ so is all in it
//
// All ports in the room are free. One veth pair leads in, so that the host
// reaches every address of the room; nothing leads out.
package room

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// subnets bounds how many rooms one machine holds: room n has 198.18.n.0/24.
// That range is for benchmarks (RFC 2544), so no real network uses it, and the
// API server takes its addresses for nodes and pods, unlike loopback ones.
const subnets = 254

// outside is the host's end of the veth pair.
const outside = 254

// holder is process 1 of the room. It reaps what is orphaned there: an agent
// that was killed leaves its sandboxes to it. Its first line says that /proc
// shows the room's own processes; `wait` returns only if `sleep` is killed.
const holder = `set -e
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
echo ready
exec >&-
sleep infinity &
wait`

// Room is a set of namespaces. Close it; if this process dies first, the kernel does.
type Room struct {
	subnet int
	holder *exec.Cmd
	starts chan func()
	noIPv6 error // why there is none

	mu        sync.Mutex
	closed    bool
	processes []*Process
}

// Open makes a room. It needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
func Open() (*Room, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the test bed makes network, process and mount namespaces: run it as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, fmt.Errorf("the test bed needs the program `ip` (package iproute2): %w", err)
	}
	room := &Room{starts: make(chan func())}
	opened := make(chan error)
	go room.spawner(opened)
	if err := <-opened; err != nil {
		return nil, err
	}
	if err := room.connect(); err != nil {
		room.Close()
		return nil, err
	}
	return room, nil
}

// Holder is the process whose namespaces are the room's, for nsenter.
func (r *Room) Holder() int { return r.holder.Process.Pid }

// Outside is the host's address on the way into the room: what listens there
// answers what is in the room.
func (r *Room) Outside() netip.Addr { return r.Address(outside) }

// Address is the room's address with this last byte (1 to 253). Only .1 exists
// from the start; see [Room.AddAddress].
func (r *Room) Address(last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(r.subnet), last})
}

// Address6 is Address of IPv6; see [Room.NoIPv6].
func (r *Room) Address6(last byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 5: 0xc6, 6: 18, 7: byte(r.subnet), 15: last})
}

// NoIPv6 is why the room is of IPv4 alone, as on a kernel without IPv6; nil if it
// is of both.
func (r *Room) NoIPv6() error { return r.noIPv6 }

// AddAddress makes one more address of the room usable, if it is not yet.
func (r *Room) AddAddress(last byte) (netip.Addr, error) {
	address := r.Address(last)
	return address, r.run("ip", "address", "replace", address.String()+"/24", "dev", "node0")
}

// AddAddress6 is AddAddress of IPv6.
func (r *Room) AddAddress6(last byte) (netip.Addr, error) {
	address := r.Address6(last)
	// Nobody else has it, so that it need not be asked for first.
	return address, r.run("ip", "address", "replace", address.String()+"/64", "dev", "node0", "nodad")
}

// Close kills everything in the room and waits until it is gone.
func (r *Room) Close() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	processes := r.processes
	r.mu.Unlock()

	_ = r.holder.Process.Kill()
	// An error only says how the killed process ended.
	_ = r.holder.Wait()
	for _, process := range processes {
		<-process.done
	}
	close(r.starts)
}

// spawner starts the holder, enters its namespaces and then starts what is
// asked for, all on one thread that it never gives back. The parent-death
// signal of the holder hangs on this thread, not on the process.
func (r *Room) spawner(opened chan<- error) {
	// Never unlocked: the runtime ends the thread with the goroutine, for no
	// other goroutine may run in these namespaces.
	runtime.LockOSThread()
	if err := r.enter(); err != nil {
		opened <- err
		return
	}
	opened <- nil
	for start := range r.starts {
		start()
	}
}

func (r *Room) enter() error {
	r.holder = exec.Command("sh", "-c", holder)
	r.holder.Env = environment()
	r.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true,
	}
	stderr := &strings.Builder{}
	r.holder.Stderr = stderr
	stdout, err := r.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := r.holder.Start(); err != nil {
		return fmt.Errorf("cannot make namespaces: %w", err)
	}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		_ = r.holder.Process.Kill()
		_ = r.holder.Wait()
		return fmt.Errorf("cannot set up the namespaces: %s", strings.TrimSpace(stderr.String()))
	}

	// A thread that shares its working directory with others may not change
	// its mount namespace (setns(2)).
	if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	// All are opened first: after entering the mount namespace, /proc counts
	// processes from the room's first one.
	names := []string{"net", "pid", "mnt"}
	files := make([]*os.File, len(names))
	for i, name := range names {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", r.Holder(), name))
		if err != nil {
			return err
		}
		defer file.Close()
		files[i] = file
	}
	for i, file := range files {
		if _, _, errno := syscall.RawSyscall(sysSetns, file.Fd(), 0, 0); errno != 0 {
			return fmt.Errorf("entering the %s namespace: %w", names[i], errno)
		}
	}
	// Entering a mount namespace moves to its root.
	return syscall.Chdir(dir)
}

// connect lays the veth pair. Its name on the host claims the subnet: making
// it fails if another room has it, and it goes when the room goes.
func (r *Room) connect() error {
	for r.subnet = 1; r.subnet <= subnets; r.subnet++ {
		name := fmt.Sprintf("krustlet%d", r.subnet)
		out, err := exec.Command("ip", "link", "add", name, "type", "veth",
			"peer", "name", "node0", "netns", fmt.Sprint(r.Holder())).CombinedOutput()
		if err != nil && strings.Contains(string(out), "File exists") {
			continue
		}
		if err != nil {
			return fmt.Errorf("ip link add %s: %s", name, strings.TrimSpace(string(out)))
		}
		for _, args := range [][]string{
			{"address", "add", r.Address(outside).String() + "/24", "dev", name},
			{"link", "set", name, "up"},
		} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %s", strings.Join(args, " "), strings.TrimSpace(string(out)))
			}
		}
		if err := r.run("ip", "link", "set", "node0", "up"); err != nil {
			return err
		}
		_, r.noIPv6 = r.AddAddress6(1)
		_, err = r.AddAddress(1)
		return err
	}
	return fmt.Errorf("all %d subnets for test beds are taken on this machine", subnets)
}

// run runs a short command in the room.
func (r *Room) run(name string, args ...string) error {
	out := &strings.Builder{}
	cmd := exec.Command(name, args...)
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = out, out
	if err := r.start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// start starts a command from the spawner's thread.
func (r *Room) start(cmd *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("the room is closed")
	}
	started := make(chan error)
	r.starts <- func() { started <- cmd.Start() }
	return <-started
}

// environment is this process's, without proxies: every address here is near.
func environment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch strings.ToLower(name) {
		case "http_proxy", "https_proxy", "all_proxy", "no_proxy", "kubeconfig":
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}
