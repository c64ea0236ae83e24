package bed

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/controlplane"
	"krustlet.dev/tests/cluster/room"
	"krustlet.dev/tests/cluster/toolchain"
)

// Guest is the path of a guest that is checked in: hello.wasm, hello.p2.wasm,
// http.wasm, and of others icepll.wasm (guests/README.md says what each does).
func Guest(t testing.TB, file string) string {
	t.Helper()
	root, err := toolchain.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"prebuilt", "third-party"} {
		path := filepath.Join(root, "guests", folder, file)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("there is no guest %s in guests/prebuilt or guests/third-party", file)
	return ""
}

// Image is the reference of a prebuilt guest in the cluster's registry, pushed
// there by the first call.
func (b *Bed) Image(t testing.TB, file string) string {
	t.Helper()
	return b.image(t, Guest(t, file))
}

func (b *Bed) image(t testing.TB, path string) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	file := filepath.Base(path)
	if b.images[file] == "" {
		reference := b.Registry() + "/" + strings.TrimSuffix(file, ".wasm") + ":1"
		b.Push(t, path, reference)
		b.images[file] = reference
	}
	return b.images[file]
}

// Push runs `krustlet push`.
func (b *Bed) Push(t testing.TB, file, reference string) {
	t.Helper()
	b.Krustlet(t, "push", b.RegistryFlag(), file, reference)
}

// Krustlet runs a krustlet command in the cluster's namespaces to its end and
// returns its standard output.
func (b *Bed) Krustlet(t testing.TB, args ...string) string {
	t.Helper()
	out, err := b.cluster.Room.Run(room.Command{Name: "krustlet " + args[0], Path: b.program, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// KrustletAs runs a krustlet command with a Docker configuration, to its end.
func (b *Bed) KrustletAs(t testing.TB, dockerConfig []byte, args ...string) (string, error) {
	t.Helper()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "config.json"), dockerConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	return b.cluster.Room.Run(room.Command{
		Name: "krustlet " + args[0], Path: b.program, Args: args, Env: []string{"DOCKER_CONFIG=" + folder},
	})
}

// PushPrivate pushes a file to the private registry under this name and tag.
func (b *Bed) PushPrivate(t testing.TB, file, name string) string {
	t.Helper()
	reference := b.PrivateRegistry() + "/" + name
	login := DockerConfig(b.PrivateRegistry(), controlplane.PrivateUser, controlplane.PrivatePassword)
	if _, err := b.KrustletAs(t, login, "push", b.RegistryFlag(), file, reference); err != nil {
		t.Fatal(err)
	}
	return reference
}

// DockerConfig is a config.json with one login, as `docker login` writes it.
func DockerConfig(registry, user, password string) []byte {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	text, err := json.Marshal(object{"auths": object{registry: object{"auth": auth}}})
	if err != nil {
		panic(err) // strings are always JSON
	}
	return text
}

// PullSecret makes a Secret with a login for the private registry.
func (b *Bed) PullSecret(t testing.TB, namespace, name, user, password string) {
	t.Helper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Type:       corev1.SecretTypeDockerConfigJson,
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: DockerConfig(b.PrivateRegistry(), user, password)},
	}
	if _, err := b.Client.CoreV1().Secrets(namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// ByDigest is the same image by its digest, as the registry tells it.
func (b *Bed) ByDigest(t testing.TB, reference string) string {
	t.Helper()
	repository, tag := split(reference)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, b.url(repository, "manifests", tag), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	response, err := direct.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	digest := response.Header.Get("Docker-Content-Digest")
	if response.StatusCode != http.StatusOK || digest == "" {
		t.Fatalf("%s: %s", request.URL, response.Status)
	}
	return b.Registry() + "/" + repository + "@" + digest
}

func (b *Bed) send(t testing.TB, method, url, kind string, content []byte, want int) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := direct.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != want {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		t.Fatalf("%s %s: %s: %s", method, url, response.Status, said)
	}
	return response
}

func (b *Bed) url(repository, kind, name string) string {
	return fmt.Sprintf("http://%s/v2/%s/%s/%s", b.Registry(), repository, kind, name)
}

// split takes the registry and the tag off a reference.
func split(reference string) (repository, tag string) {
	_, rest, _ := strings.Cut(reference, "/")
	repository, tag, _ = strings.Cut(rest, ":")
	return repository, tag
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

// direct goes to the registry whatever the environment says of proxies.
var direct = &http.Transport{}
