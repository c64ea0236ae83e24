// Package bed is the test bed as a library: one real cluster for all tests of a
// package, krustlet nodes in it, and the helpers that tests share.
//
//	func TestMain(m *testing.M) { os.Exit(bed.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		b := bed.Start(t)       // the first test starts the cluster
//		node := b.Node(t)       // the first test starts the shared node
//		ns := b.Namespace(t)    // its pods are gone when the test ends
//		…
//	}
//
// Who would take something away from all others has a cluster of its own, by Own.
//
// It holds no expectations about krustlet beyond its command line; those are in
// package scenarios.
package bed

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"krustlet.dev/tests/cluster/controlplane"
	"krustlet.dev/tests/cluster/toolchain"
)

// Bed is a running cluster and the means to put krustlet nodes into it.
type Bed struct {
	// Client is the administrator's; it is not throttled.
	Client kubernetes.Interface
	// Dir keeps everything of this run: roots of nodes, keys, logs.
	Dir     string
	cluster *controlplane.Cluster
	program string // the krustlet binary
	// measures tells that nothing may go on when a test has ended.
	measures bool

	starting sync.Mutex
	shared   *Node // by starting

	mu     sync.Mutex
	nodes  []*Node
	images map[string]string
	ending []ending
}

// shared is the one cluster of a test binary that all tests use which have none of
// their own.
var shared struct {
	once     sync.Once
	measures bool
	bed      *Bed
	err      error
}

// Main runs the tests of a package and then stops the cluster, if one was
// started. No node may have been refused anything by the API server without an
// excuse, nor need excuses often: else the run failed. It returns the exit code.
func Main(m *testing.M) int { return run(m, false) }

// Measure is Main for benchmarks. How often excuses are needed is printed only: the
// events of a burst still wait when its namespace ends.
func Measure(m *testing.M) int { return run(m, true) }

func run(m *testing.M, measures bool) int {
	shared.measures = measures
	code := m.Run()
	bed := shared.bed
	if bed == nil {
		return code
	}
	if err := errors.Join(bed.allGone(), bed.finish()); err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		code = max(code, 1)
	}
	bed.close(code != 0)
	return code
}

// finish stops all nodes, and says what was wrong with the run as a whole.
func (b *Bed) finish() error {
	var failed []error
	for _, node := range b.all() {
		failed = append(failed, node.stop())
	}
	refused, err := b.Refused(b.users()...)
	if err != nil {
		return errors.Join(append(failed, fmt.Errorf("the audit log: %w", err))...)
	}
	fmt.Fprintln(os.Stderr, "bed:", refused)
	for _, request := range refused.Counted {
		failed = append(failed, fmt.Errorf("the API server refused %s", request))
	}
	for _, excess := range refused.Excesses() {
		if b.measures {
			fmt.Fprintln(os.Stderr, "bed:", excess)
		} else {
			failed = append(failed, errors.New(excess))
		}
	}
	return errors.Join(failed...)
}

// Start returns the cluster of this test binary, starting it the first time.
func Start(t testing.TB) *Bed {
	t.Helper()
	shared.once.Do(func() { shared.bed, shared.err = start(shared.measures) })
	if shared.err != nil {
		t.Fatal("the test bed does not start: ", shared.err)
	}
	return shared.bed
}

// Own starts a cluster for one test alone, which may be parallel to all others. What
// must hold of the shared one at the end of [Main] must of this one at the test's.
func Own(t testing.TB) *Bed {
	t.Helper()
	bed, err := start(false)
	if err != nil {
		t.Fatal("the test's own bed does not start: ", err)
	}
	t.Cleanup(func() {
		if err := bed.finish(); err != nil {
			t.Error(err)
		}
		bed.close(t.Failed())
	})
	return bed
}

func start(measures bool) (*Bed, error) {
	ctx := context.Background()
	bin, err := toolchain.Build(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	root, err := toolchain.Root()
	if err != nil {
		return nil, err
	}
	program, err := krustlet(ctx, root)
	if err != nil {
		return nil, err
	}
	// Short: agents put sockets under it, whose paths end at 107 bytes.
	dir, err := os.MkdirTemp("", "kbed-")
	if err != nil {
		return nil, err
	}
	cluster, err := controlplane.Start(ctx, controlplane.Config{
		Bin: bin, Dir: filepath.Join(dir, "cluster"),
		Manifests: []string{filepath.Join(root, "deploy", "runtimeclass.yaml")},
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n(logs are in %s)", err, dir)
	}
	bed := &Bed{Dir: dir, cluster: cluster, program: program, measures: measures, images: map[string]string{}}
	config, err := clientcmd.BuildConfigFromFlags("", cluster.AdminKubeconfig())
	if err != nil {
		bed.close(true)
		return nil, err
	}
	config.QPS = -1
	// The cluster is on this machine, whatever the environment says of proxies.
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	if bed.Client, err = kubernetes.NewForConfig(config); err != nil {
		bed.close(true)
		return nil, err
	}
	return bed, nil
}

// close stops the cluster. The logs stay if they are wanted.
func (b *Bed) close(keep bool) {
	b.cluster.Close()
	if !keep {
		_ = os.RemoveAll(b.Dir)
		return
	}
	for _, data := range []string{"etcd", "registry", "private", "secure", "pki"} {
		_ = os.RemoveAll(filepath.Join(b.cluster.Dir, data))
	}
	fmt.Fprintln(os.Stderr, "bed: logs are kept in", b.Dir)
}

// Cluster is the control plane: its API server can be stopped and started.
func (b *Bed) Cluster() *controlplane.Cluster { return b.cluster }

// Registry is the host and port of the cluster's registry (plain HTTP).
func (b *Bed) Registry() string { return b.cluster.Registry() }

// PrivateRegistry is the host and port of the registry that wants a login (plain HTTP).
func (b *Bed) PrivateRegistry() string { return b.cluster.PrivateRegistry() }

func (b *Bed) all() []*Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*Node(nil), b.nodes...)
}

// users are the nodes that nothing may be refused.
func (b *Bed) users() []string {
	var users []string
	for _, node := range b.all() {
		if !node.lacking {
			users = append(users, node.User())
		}
	}
	return users
}
