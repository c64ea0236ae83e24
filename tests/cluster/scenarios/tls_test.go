package scenarios

import (
	"net"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

const certFile = "SSL_CERT_FILE"

// authorities makes the ConfigMap `authorities`, with this certificate.
func authorities(t *testing.T, b *bed.Bed, namespace, certificate string) {
	t.Helper()
	made := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "authorities"}, Data: map[string]string{"ca.crt": certificate},
	}
	if _, err := b.Client.CoreV1().ConfigMaps(namespace).Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// believing mounts that ConfigMap at /etc/ca, and sets a variable.
func believing(pod *corev1.Pod, variable, value string) *corev1.Pod {
	source := &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "authorities"}}
	source.Items = []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}, {Key: "ca.crt", Path: "deep/any.name"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "authorities", VolumeSource: corev1.VolumeSource{ConfigMap: source}}}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{
		{Name: "authorities", MountPath: "/etc/ca", ReadOnly: true},
		{Name: "authorities", MountPath: "/etc/certs", SubPath: "deep", ReadOnly: true},
	}
	main.Env = []corev1.EnvVar{{Name: variable, Value: value}}
	return pod
}

// refusing runs a pod that fails, and returns what it said.
func refusing(t *testing.T, b *bed.Bed, namespace string, pod *corev1.Pod) string {
	t.Helper()
	create(t, b, namespace, pod)
	awaitPhase(t, b, namespace, pod.Name, corev1.PodFailed)
	return logs(t, b, namespace, pod.Name)
}

func TestGuestsBelieveWhomTheirPodNames(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	url, certificate := b.Secure(t, "believed\n")
	authorities(t, b, ns, certificate)
	fetch := b.Image(t, "fetch.wasm")

	said := output(t, b, ns, believing(wasmPod("file", fetch, url), certFile, "/etc/ca/ca.crt"))
	same(t, "what the file's authority vouches for", said, "200\nbelieved\n")
	said = output(t, b, ns, believing(wasmPod("directory", fetch, url), "SSL_CERT_DIR", "/etc/certs"))
	same(t, "what a directory's authority vouches for", said, "200\nbelieved\n")

	// A server of WASI 0.3 asks for a guest of 0.2.
	web := port(always(believing(wasmPod("web", b.Image(t, "http3.wasm")), certFile, "/etc/ca/ca.crt")), 8080)
	create(t, b, ns, web)
	asked := "http://" + net.JoinHostPort(awaitReady(t, b, ns, "web").Status.PodIP, "8080") + "/fetch?url=" + url
	same(t, "what the server is told", output(t, b, ns, wasmPod("client", fetch, asked)), "200\nbelieved\n")

	// The node's system knows others, or nobody.
	said = refusing(t, b, ns, wasmPod("system", fetch, url))
	if !strings.Contains(said, "TlsCertificateError") && !strings.Contains(said, "ConfigurationError") {
		t.Errorf("without the variable: %q", said)
	}
	said = refusing(t, b, ns, believing(wasmPod("absent", fetch, url), certFile, "/etc/ca/wrong.crt"))
	for _, want := range []string{
		"https requests fail: SSL_CERT_FILE names /etc/ca/wrong.crt: No such file", "mount a volume", "ConfigurationError",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %q", want, said)
		}
	}
}

// With no more than what every pod has from the API server.
func TestAGuestCallsTheAPIServerByItsName(t *testing.T) {
	b := bed.Start(t)
	b.NetworkRights(t)
	node := b.StartNodeWith(t, "calling", map[string]any{"clusterDNS": []string{}}, "--service-proxy=builtin")
	ns := b.Namespace(t)
	pod := on(node, wasmPod("caller", b.Image(t, "fetch.wasm"), "https://kubernetes.default.svc/version"))
	pod.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: certFile, Value: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"},
	}
	said := output(t, b, ns, pod)
	// It has no token: what it may read is the API server's affair.
	code, _, _ := strings.Cut(said, "\n")
	if !slices.Contains([]string{"200", "401", "403"}, code) {
		t.Errorf("the API server said %q", said)
	}
	// Nobody else's word counts there.
	stranger := on(node, wasmPod("stranger", b.Image(t, "fetch.wasm"), "https://kubernetes.default.svc/version"))
	said = refusing(t, b, ns, stranger)
	if !strings.Contains(said, "TlsCertificateError") && !strings.Contains(said, "ConfigurationError") {
		t.Errorf("without the variable: %q", said)
	}
}
