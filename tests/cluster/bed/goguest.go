package bed

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"krustlet.dev/tests/cluster/toolchain"
)

// GoGuest builds guests/go-http for WASI preview 1 and returns the module's
// path. It is too large to be checked in.
func GoGuest(t testing.TB) string {
	t.Helper()
	root, err := toolchain.Root()
	if err != nil {
		t.Fatal(err)
	}
	module := filepath.Join(t.TempDir(), "go-http.wasm")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", module, ".")
	build.Dir = filepath.Join(root, "guests", "go-http")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build of guests/go-http: %v\n%s", err, out)
	}
	return module
}

// LargeImage is the reference of a guest that the test bed builds, go-net.wasm,
// py-net.wasm or py-http.wasm (guests/README.md says what each does), in the
// cluster's registry. The first call builds and pushes it.
func (b *Bed) LargeImage(t testing.TB, file string) string {
	t.Helper()
	folder, err := toolchain.Guests(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return b.image(t, filepath.Join(folder, file))
}
