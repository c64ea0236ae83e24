package toolchain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// version is the Kubernetes release that go.mod pins (its libraries are v0.37.2).
const version = "v1.37.2"

// A module proxy build has no version control data, so the version is set by
// hand; Kubernetes' own build does the same (hack/lib/version.sh).
var ldflags = strings.Join([]string{
	"-s", "-w",
	"-X", "k8s.io/component-base/version.gitVersion=" + version,
	"-X", "k8s.io/component-base/version.gitMajor=1",
	"-X", "k8s.io/component-base/version.gitMinor=37",
}, " ")

// settings are the environment of every build. Together with -trimpath they are
// the key of Go's build cache: scripts/test runs `go test` with the same, so
// that the client libraries are compiled once for both.
var settings = []string{"CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false -trimpath"}

// step is one `go build`.
type step struct {
	module   string // folder of the module, from the repository's root
	packages []string
	ldflags  string
	output   string // file name; empty: one file per package
}

var steps = []step{
	{
		module: "tests/cluster",
		packages: []string{
			"./etcd",
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kube-proxy",
			"k8s.io/kubernetes/cmd/kubectl",
		},
		ldflags: ldflags,
	},
	{module: "tests/registry", packages: []string{"."}, ldflags: "-s -w", output: "registry"},
	{module: "tests/dns", packages: []string{"."}, ldflags: "-s -w", output: "coredns"},
}

// inputs are the files that decide what a build makes, beside this program.
var inputs = []string{
	"tests/cluster/go.mod", "tests/cluster/go.sum", "tests/cluster/etcd/main.go",
	"tests/registry/go.mod", "tests/registry/go.sum", "tests/registry/main.go",
	"tests/dns/go.mod", "tests/dns/go.sum", "tests/dns/main.go",
}

// Build makes the programs unless they are there, and returns their folder.
// Two callers at once build once. Cold, on two cores, it takes about 12 minutes.
func Build(ctx context.Context, progress io.Writer) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	stamp, err := stamp(root, inputs, steps, settings)
	if err != nil {
		return "", err
	}
	made := filepath.Join(cache, stamp)
	bin := filepath.Join(made, "bin")
	if exists(bin) {
		// Its age says when it was last of use; see prune. No harm if it cannot.
		_ = os.Chtimes(made, time.Now(), time.Now())
		return bin, nil
	}

	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(bin) { // made while we waited for the lock
		return bin, nil
	}

	// Built beside its place and renamed, so that an interrupted build is never
	// taken for a whole one.
	partial := made + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(partial, "bin"), 0o755); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "testbed: building %s (Kubernetes %s); 12 minutes the first time\n", strings.Join(Programs, ", "), version)
	for _, step := range steps {
		if err := step.run(ctx, root, filepath.Join(partial, "bin"), progress); err != nil {
			return "", err
		}
	}
	for _, name := range Programs {
		if !exists(filepath.Join(partial, "bin", name)) {
			return "", fmt.Errorf("the build made no %s", name)
		}
	}
	if err := os.Rename(partial, made); err != nil {
		return "", err
	}
	return bin, prune(cache, "bin")
}

// kept is how long a build stays that nobody uses: 400 MB each.
const kept = 7 * 24 * time.Hour

// prune removes the builds of other versions that were not used of late. A build
// is known by its name and by what it has in it.
func prune(cache, content string) error {
	builds, err := filepath.Glob(filepath.Join(cache, strings.Repeat("?", stampLength)))
	if err != nil {
		return err
	}
	for _, made := range builds {
		if !exists(filepath.Join(made, content)) {
			continue
		}
		info, err := os.Stat(made)
		if err != nil {
			return err
		}
		if time.Since(info.ModTime()) > kept {
			if err := os.RemoveAll(made); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s step) run(ctx context.Context, root, bin string, progress io.Writer) error {
	output := bin + string(filepath.Separator)
	if s.output != "" {
		output = filepath.Join(bin, s.output)
	}
	args := append([]string{"build", "-ldflags", s.ldflags, "-o", output}, s.packages...)
	build := exec.CommandContext(ctx, "go", args...)
	build.Dir = filepath.Join(root, s.module)
	build.Env = append(os.Environ(), settings...)
	build.Stdout, build.Stderr = progress, progress
	if err := build.Run(); err != nil {
		return fmt.Errorf("go build in %s: %w", s.module, err)
	}
	return nil
}

// stampLength is enough to tell builds apart.
const stampLength = 16

// stamp names a build by everything that decides its result: files, and what is
// said beside them.
func stamp(root string, files []string, beside ...any) (string, error) {
	sum := sha256.New()
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
	}
	fmt.Fprintln(sum, append(beside, runtime.Version(), runtime.GOARCH)...)
	return hex.EncodeToString(sum.Sum(nil))[:stampLength], nil
}

// lock lets one build at a time write to the cache. The kernel drops it with
// its process.
func lock(cache string) (func(), error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(cache, "build.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}
