package scenarios

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// Media types of images that are one program.
const (
	cncfConfig  = "application/vnd.wasm.config.v0+json"
	cncfLayer   = "application/wasm"
	oldConfig   = "application/vnd.wasm.config.v1+json"
	oldLayer    = "application/vnd.wasm.content.layer.v1+wasm"
	runwasiPart = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
)

type object = map[string]any

func guest(t *testing.T, file string) []byte {
	t.Helper()
	program, err := os.ReadFile(bed.Guest(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// archive is a tar archive of these files: name and content, in this order.
func archive(t *testing.T, files ...[2]string) []byte {
	t.Helper()
	var text bytes.Buffer
	writer := tar.NewWriter(&text)
	for _, file := range files {
		header := &tar.Header{Name: file[0], Size: int64(len(file[1])), Mode: 0o755, Format: tar.FormatPAX}
		if err := writer.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte(file[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

func compressed(t *testing.T, content []byte) []byte {
	t.Helper()
	var text bytes.Buffer
	writer := gzip.NewWriter(&text)
	if _, err := writer.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// rootFS is an image with a root file system for a platform, as `docker buildx`
// makes it from scratch: two layers, of which the second changes the first.
func rootFS(t *testing.T, platform string, run object) bed.Manifest {
	t.Helper()
	low := archive(t,
		[2]string{"bin/hello.wasm", string(guest(t, "hello.wasm"))},
		[2]string{"bin/entries.wasm", string(guest(t, "entries.wasm"))},
		[2]string{"etc/motd", "low\n"}, [2]string{"etc/old", "old\n"},
	)
	high := archive(t, [2]string{"etc/motd", "high\n"}, [2]string{"etc/.wh.old", ""})
	os, architecture, _ := strings.Cut(platform, "/")
	return bed.Manifest{
		ConfigKind: bed.OCIConfig,
		Config: object{
			"os": os, "architecture": architecture, "config": run, "rootfs": bed.RootFS(low, high),
		},
		Layers:   []bed.Layer{{Kind: bed.OCITarGzip, Content: compressed(t, low)}, {Kind: bed.OCITar, Content: high}},
		Platform: platform,
	}
}

// single is an image of one program.
func single(configKind string, config any, layerKind string, program []byte) bed.Manifest {
	return bed.Manifest{ConfigKind: configKind, Config: config, Layers: []bed.Layer{{Kind: layerKind, Content: program}}}
}

// TestEveryFormatRuns runs a program from each kind of image that docs/images.md
// names, made here as other tools make it.
func TestEveryFormatRuns(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	module, component := guest(t, "hello.wasm"), guest(t, "hello.p2.wasm")
	run := object{
		"Entrypoint": []string{"/bin/hello.wasm"}, "Cmd": []string{"cat", "/etc/motd"},
		"Env": []string{"FROM=the image", "PATH=/bin"},
	}
	scratch := rootFS(t, "wasi/wasm", run)
	linux := rootFS(t, "linux/amd64", object{"Entrypoint": []string{"/bin/sh"}})
	compat := rootFS(t, "linux/amd64", run)
	compat.Annotations = map[string]string{"module.wasm.image/variant": "compat"}
	smart := compat
	smart.Annotations = map[string]string{"module.wasm.image/variant": "compat-smart"}
	runwasi := object{
		"os": "wasip1", "architecture": "wasm",
		"config": object{"Entrypoint": []string{"hello.wasm"}, "Cmd": []string{"env", "FROM"}, "Env": []string{"FROM=the image"}},
	}

	f1 := b.PushManifest(t, "cncf:1", single(cncfConfig, object{
		"created": "2026-11-25T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": []string{},
	}, cncfLayer, component))
	f2 := b.PushIndex(t, "scratch:1", linux, scratch)
	f3 := b.PushManifest(t, "runwasi:1", single(bed.OCIConfig, runwasi, runwasiPart, component))
	f3Plain := b.PushManifest(t, "runwasi:2", single(bed.OCIConfig, runwasi, cncfLayer, module))
	f4 := b.PushManifest(t, "first-krustlet:1", single(oldConfig, object{}, oldLayer, module))
	f4Image := b.PushManifest(t, "wasm-to-oci:1", single(bed.OCIConfig, object{}, oldLayer, module))
	f6 := b.PushManifest(t, "crun:1", compat)
	f6Index := b.PushIndex(t, "crun:2", linux, smart)

	for _, one := range []struct {
		name, image   string
		command, args []string
		want          string
	}{
		{name: "f1", image: f1, args: []string{"args", "a b"}, want: "a b\n"},
		{name: "f2", image: f2, want: "high\n"},
		{name: "f2-args", image: f2, args: []string{"ls", "/etc"}, want: "motd\n"},
		{name: "f2-env", image: f2, args: []string{"env", "FROM"}, want: "the image\n"},
		{name: "f2-path", image: f2, command: []string{"entries.wasm"}, want: "from _start\n"},
		{name: "f2-export", image: f2, command: []string{"/bin/entries.wasm#other"}, want: "from other\n"},
		{name: "f3", image: f3, want: "the image\n"},
		{name: "f3-plain", image: f3Plain, want: "the image\n"},
		{name: "f3-args", image: f3Plain, args: []string{"args", "given"}, want: "given\n"},
		{name: "f4", image: f4, args: []string{"args", "given"}, want: "given\n"},
		{name: "f4-image", image: f4Image, args: []string{"args", "given"}, want: "given\n"},
		{name: "f6", image: f6, want: "high\n"},
		{name: "f6-index", image: f6Index, want: "high\n"},
	} {
		t.Run(one.name, func(t *testing.T) {
			pod := wasmPod(one.name, one.image, one.args...)
			pod.Spec.Containers[0].Command = one.command
			same(t, "output", output(t, b, ns, pod), one.want)
		})
	}

	// Neither by platform nor by annotation: the same bytes as above.
	create(t, b, ns, wasmPod("linux", b.PushManifest(t, "crun:3", linux)))
	awaitWaiting(t, b, ns, "linux", "ErrImagePull", "ImagePullBackOff")
}

// TestAnExportIsNamedInTheImage is runwasi's way to say where a program begins.
func TestAnExportIsNamedInTheImage(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	entry := func(name string) bed.Manifest {
		return single(bed.OCIConfig, object{
			"os": "wasip1", "architecture": "wasm", "config": object{"Entrypoint": []string{name}},
		}, cncfLayer, guest(t, "entries.wasm"))
	}
	named := b.PushManifest(t, "entries:1", entry("/entries.wasm#other"))
	same(t, "output", output(t, b, ns, wasmPod("named", named)), "from other\n")

	// A pod's command takes the place of the image's, and of what it names.
	pod := wasmPod("started", named)
	pod.Spec.Containers[0].Command = []string{"/entries.wasm"}
	same(t, "output", output(t, b, ns, pod), "from _start\n")

	create(t, b, ns, wasmPod("absent", b.PushManifest(t, "entries:2", entry("/entries.wasm#nowhere"))))
	absent := awaitWaiting(t, b, ns, "absent", "CreateContainerError")
	if message := waiting(absent).Message; !strings.Contains(message, "nowhere") {
		t.Errorf("the message does not name the export: %q", message)
	}
}

// TestTheRootFileSystemOfAnImageIsNotWritten: pods of one image share it.
func TestTheRootFileSystemOfAnImageIsNotWritten(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.PushManifest(t, "read-only:1", rootFS(t, "wasi/wasm", object{"Entrypoint": []string{"/bin/hello.wasm"}}))
	create(t, b, ns, wasmPod("writer", image, "write", "/etc/motd", "changed"))
	awaitPhase(t, b, ns, "writer", corev1.PodFailed)
	if said := logs(t, b, ns, "writer"); !strings.Contains(said, "/etc/motd") {
		t.Errorf("the guest does not name the file: %q", said)
	}
	same(t, "the file", output(t, b, ns, wasmPod("reader", image, "cat", "/etc/motd")), "high\n")
}
