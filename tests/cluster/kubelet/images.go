package kubelet

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/toolchain"
)

// Images are the guests' counterparts for Linux, by digest.
type Images struct {
	// Hello is guests/hello, compiled for this machine.
	Hello string
	// Icepll is the program of Debian's package fpga-icestorm.
	Icepll string
	// Sandbox is what holds a pod's namespaces.
	Sandbox string
}

// PushImages makes the images and pushes them to the cluster's registry. Needs
// rustc, and icepll as an installed program.
func PushImages(t testing.TB, b *bed.Bed) Images {
	t.Helper()
	root, err := toolchain.Root()
	if err != nil {
		t.Fatal(err)
	}
	hello := filepath.Join(b.Dir, "hello-linux")
	command(t, "rustc", "--edition=2024", "-O", "-C", "target-feature=+crt-static", "-o", hello,
		filepath.Join(root, "guests", "hello", "src", "main.rs"))
	program := strings.TrimSpace(command(t, "sh", "-c", "command -v icepll"))
	files := map[string]string{"icepll": program}
	for word := range strings.FieldsSeq(command(t, "ldd", program)) {
		if strings.HasPrefix(word, "/") {
			files[word] = word
		}
	}
	push := func(name string, files map[string]string, entrypoint ...string) string {
		return b.ByDigest(t, b.PushLinuxLayer(t, name+":1", runtime.GOARCH, archive(t, files), entrypoint...))
	}
	return Images{
		Hello:   push("hello-linux", map[string]string{"hello": hello}, "/hello"),
		Icepll:  push("icepll-linux", files, "/icepll"),
		Sandbox: push("sandbox-linux", map[string]string{"hello": hello}, "/hello", "sleep", "1000000000"),
	}
}

// archive is a tar of these files: where they go, and where they are.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	buffer := &bytes.Buffer{}
	writer := tar.NewWriter(buffer)
	for to, from := range files {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		header := &tar.Header{Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Size: int64(len(content))}
		if err := writer.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	if err != nil {
		said := ""
		if exit, ok := err.(*exec.ExitError); ok {
			said = string(exit.Stderr)
		}
		t.Fatalf("%s: %v: %s", name, err, said)
	}
	return string(out)
}
