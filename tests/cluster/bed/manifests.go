package bed

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// Media types of images with a file system, and of what lists several.
const (
	OCIConfig   = "application/vnd.oci.image.config.v1+json"
	OCITar      = "application/vnd.oci.image.layer.v1.tar"
	OCITarGzip  = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// Layer is a blob of an image.
type Layer struct {
	Kind    string // media type
	Content []byte
}

// Manifest is an image as another tool than krustlet makes it.
type Manifest struct {
	ConfigKind  string // media type of Config
	Config      any    // as JSON
	Layers      []Layer
	Annotations map[string]string
	// Platform is what an index says that it is for, such as linux/amd64;
	// empty: nothing.
	Platform string
}

// PushManifest puts an image into the registry. The name is REPOSITORY:TAG.
func (b *Bed) PushManifest(t testing.TB, name string, manifest Manifest) string {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	text := b.pushContent(t, repository, manifest)
	b.put(t, b.url(repository, "manifests", tag), ociManifest, text)
	return b.Registry() + "/" + name
}

// PushIndex puts an image of several variants into the registry.
func (b *Bed) PushIndex(t testing.TB, name string, variants ...Manifest) string {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	var entries []object
	for _, variant := range variants {
		text := b.pushContent(t, repository, variant)
		b.put(t, b.url(repository, "manifests", digest(text)), ociManifest, text)
		entry := descriptor(ociManifest, text)
		if os, architecture, found := strings.Cut(variant.Platform, "/"); found {
			entry["platform"] = object{"os": os, "architecture": architecture}
		}
		if variant.Annotations != nil {
			entry["annotations"] = variant.Annotations
		}
		entries = append(entries, entry)
	}
	index := encode(t, object{"schemaVersion": 2, "mediaType": ociIndex, "manifests": entries})
	b.put(t, b.url(repository, "manifests", tag), ociIndex, index)
	return b.Registry() + "/" + name
}

// pushContent puts what a manifest lists into the registry, and returns its text.
func (b *Bed) pushContent(t testing.TB, repository string, manifest Manifest) []byte {
	t.Helper()
	config := encode(t, manifest.Config)
	b.pushBlob(t, repository, config)
	var layers []object
	for _, layer := range manifest.Layers {
		b.pushBlob(t, repository, layer.Content)
		layers = append(layers, descriptor(layer.Kind, layer.Content))
	}
	text := object{
		"schemaVersion": 2, "mediaType": ociManifest,
		"config": descriptor(manifest.ConfigKind, config), "layers": layers,
	}
	if manifest.Annotations != nil {
		text["annotations"] = manifest.Annotations
	}
	return encode(t, text)
}

// PushLinux puts an image for linux/amd64 only into the registry whose layer
// nobody may get so far as to read.
func (b *Bed) PushLinux(t testing.TB, repository, tag string) string {
	t.Helper()
	return b.PushLinuxLayer(t, repository+":"+tag, "amd64", []byte("not read"), "/bin/sh")
}

// PushLinuxLayer puts an image for Linux into the registry: an index with one
// manifest, as `docker buildx` pushes it. Its one layer is a tar archive.
func (b *Bed) PushLinuxLayer(t testing.TB, name, architecture string, layer []byte, entrypoint ...string) string {
	t.Helper()
	return b.PushIndex(t, name, Manifest{
		ConfigKind: OCIConfig,
		Config: object{
			"os": "linux", "architecture": architecture, "config": object{"Entrypoint": entrypoint},
			"rootfs": RootFS(layer),
		},
		Layers:   []Layer{{OCITar, layer}},
		Platform: "linux/" + architecture,
	})
}

// RootFS is the part of an image's configuration that lists its tar archives,
// as they are before compression.
func RootFS(archives ...[]byte) any {
	var ids []string
	for _, archive := range archives {
		ids = append(ids, digest(archive))
	}
	return object{"type": "layers", "diff_ids": ids}
}

type object = map[string]any

func descriptor(kind string, content []byte) object {
	return object{"mediaType": kind, "digest": digest(content), "size": len(content)}
}

func encode(t testing.TB, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (b *Bed) pushBlob(t testing.TB, repository string, content []byte) {
	t.Helper()
	response := b.send(t, http.MethodPost, b.url(repository, "blobs", "uploads/"), "", nil, http.StatusAccepted)
	location, err := response.Location()
	if err != nil {
		t.Fatal(err)
	}
	query := location.Query()
	query.Set("digest", digest(content))
	location.RawQuery = query.Encode()
	b.put(t, location.String(), "application/octet-stream", content)
}

func (b *Bed) put(t testing.TB, url, kind string, content []byte) {
	t.Helper()
	b.send(t, http.MethodPut, url, kind, content, http.StatusCreated)
}
