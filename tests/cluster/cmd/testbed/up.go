package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"krustlet.dev/tests/cluster/controlplane"
	"krustlet.dev/tests/cluster/room"
	"krustlet.dev/tests/cluster/toolchain"
)

// up runs a cluster until it is told to stop.
func up(ctx context.Context, at place) error {
	bin, err := toolchain.Build(ctx, os.Stderr)
	if err != nil {
		return err
	}
	root, err := toolchain.Root()
	if err != nil {
		return err
	}
	claim, err := at.claim()
	if err != nil {
		return err
	}
	defer claim.Close()

	cluster, err := controlplane.Start(ctx, controlplane.Config{
		Bin: bin, Dir: string(at), Manifests: []string{filepath.Join(root, "deploy", "runtimeclass.yaml")},
	})
	if err != nil {
		return err
	}
	defer cluster.Close()

	started, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	running := state{
		Pid: os.Getpid(), Started: started,
		Server: cluster.Server(), Registry: cluster.Registry(),
		Admin: cluster.AdminKubeconfig(), Join: cluster.BootstrapKubeconfig(), Registries: cluster.KrustletRegistries(),
		Holder: cluster.Room.Holder(), Bin: bin,
	}
	if err := at.write(running); err != nil {
		return err
	}
	defer os.Remove(at.file("state.json"))
	running.print(at)

	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "testbed: stopping")
	return nil
}

// upInBackground starts `up` as a process of its own and waits until it is ready.
func upInBackground(ctx context.Context, at place, name string) error {
	if _, err := at.read(); err == nil {
		return errors.New("the cluster is running already; stop it with `testbed down`")
	}
	// In the foreground, where one sees it: it may take minutes.
	if _, err := toolchain.Build(ctx, os.Stderr); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(at), 0o700); err != nil {
		return err
	}
	log, err := os.Create(at.file("testbed.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	child := exec.Command(self, "up", "-name", name)
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		select {
		case <-ctx.Done():
			_ = child.Process.Signal(syscall.SIGTERM)
			<-ended
			return ctx.Err()
		case err := <-ended:
			return fmt.Errorf("the cluster did not start (%v):\n%s", err, room.Tail(log.Name()))
		case <-time.After(100 * time.Millisecond):
			if running, err := at.read(); err == nil {
				running.print(at)
				return nil
			}
		}
	}
}

// down stops the cluster, and with it everything in its room.
func down(at place) error {
	running, err := at.read()
	if err != nil {
		return err
	}
	// The handle is of this very process: its number cannot pass to another
	// between the look and the signal.
	process, err := os.FindProcess(running.Pid)
	if err != nil {
		return err
	}
	defer process.Release()
	if _, err := at.read(); err != nil {
		return nil // it ended by itself meanwhile
	}
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if started, err := startTime(running.Pid); err != nil || started != running.Started {
			return nil
		}
	}
	// Its room goes with it, by the kernel's hand.
	fmt.Fprintln(os.Stderr, "testbed: the cluster does not stop; killing it")
	return process.Kill()
}

// print tells how to use the cluster. What goes to standard output can be
// given to the shell: eval "$(testbed up -d)".
func (s state) print(at place) {
	fmt.Printf("export KUBECONFIG=%s\n", s.Admin)
	fmt.Printf("export PATH=%s:$PATH\n", s.Bin)
	fmt.Printf("export REGISTRY=%s\n", s.Registry)
	fmt.Printf("export KRUSTLET_REGISTRY_CONFIG=%s\n", s.Registries)
	fmt.Printf("export BED='nsenter --target %d --net --pid --mount'\n", s.Holder)
	fmt.Fprintf(os.Stderr, `
# The cluster is ready at %s. Logs: %s
# $REGISTRY speaks plain HTTP; krustlet knows by $KRUSTLET_REGISTRY_CONFIG. A node runs inside the cluster's namespaces:
#   $BED krustlet node --hostname-override wasm-1 --node-ip %s --root-dir /tmp/wasm-1 \
#        --kubeconfig $(go run ./cmd/testbed kubeconfig wasm-1)
`, s.Server, at.file("logs"), s.address())
}

// address is the API server's, which every node in the room may use as its own.
func (s state) address() string {
	at, err := url.Parse(s.Server)
	if err != nil {
		return s.Server
	}
	return at.Hostname()
}
