package scenarios

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

const volumes = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: "blue\n", size: "large\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: "secret\n"}
---
apiVersion: v1
kind: Pod
metadata:
  name: volumes
  annotations: {note: "seen\n"}
spec:
  runtimeClassName: wasm
  restartPolicy: Never
  volumes:
  - name: settings
    configMap: {name: settings}
  - name: login
    secret: {secretName: login, items: [{key: password, path: deep/word}]}
  - name: about
    downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
  - name: scratch
    emptyDir: {}
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: size, path: size}]}
      - secret: {name: login}
      - downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
      - serviceAccountToken: {path: token, audience: someone, expirationSeconds: 600}
  initContainers:
  - name: writer
    image: IMAGE
    args: [write, /scratch/file, from-before]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  containers:
  - name: main
    image: IMAGE
    args: [cat, /settings/colour, /settings/size, /login/deep/word, /about/name, /scratch/file, /all/size, /all/password, /all/note]
    volumeMounts:
    - {name: settings, mountPath: /settings, readOnly: true}
    - {name: login, mountPath: /login}
    - {name: about, mountPath: /about}
    - {name: scratch, mountPath: /scratch}
    - {name: all, mountPath: /all}
  - name: token
    image: IMAGE
    args: [cat, /all/token]
    volumeMounts: [{name: all, mountPath: /all}]
`

func TestVolumesHoldWhatTheyAreMadeOf(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.ReplaceAll(volumes, "IMAGE", b.Image(t, "hello.wasm")))
	awaitPhase(t, b, ns, "volumes", corev1.PodSucceeded)
	same(t, "files", logs(t, b, ns, "volumes", "--container=main"),
		"blue\nlarge\nsecret\nvolumes\nfrom-before\nlarge\nsecret\nseen\n")
	token := strings.TrimSpace(logs(t, b, ns, "volumes", "--container=token"))
	same(t, "parts of the token", strings.Count(token, "."), 2)
}

// The API server gives every pod this volume.
func TestAPodHasItsServiceAccount(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	got := output(t, b, ns, wasmPod("account", b.Image(t, "hello.wasm"), "cat", account+"namespace", account+"ca.crt", account+"token"))
	for _, want := range []string{ns + "\n", "-----BEGIN CERTIFICATE-----", "\ney"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestAReadOnlyVolumeIsNotWritten(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := wasmPod("read-only", b.Image(t, "hello.wasm"), "write", "/scratch/file", "text")
	pod.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch", ReadOnly: true}}
	create(t, b, ns, pod)
	awaitPhase(t, b, ns, "read-only", corev1.PodFailed)
	if got := logs(t, b, ns, "read-only"); !strings.Contains(got, "/scratch/file") {
		t.Errorf("the guest does not name the file: %q", got)
	}
}

const updated = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: ""}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  runtimeClassName: wasm
  nodeSelector: {kubernetes.io/hostname: NODE}
  restartPolicy: Always
  terminationGracePeriodSeconds: 1
  volumes: [{name: settings, configMap: {name: settings}}]
  containers:
  - name: main
    image: IMAGE
    args: [ls, /settings]
    volumeMounts: [{name: settings, mountPath: /settings}]
`

// The reader ends and is restarted, and so looks again and again.
func TestAVolumeFollowsItsConfigMap(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	manifest := strings.NewReplacer("IMAGE", b.Image(t, "hello.wasm"), "NODE", node.Name).Replace(updated)
	b.Apply(t, ns, strings.Replace(manifest, "COLOUR", "blue", 1))
	awaitOutput := func(want string, within time.Duration) {
		t.Helper()
		b.WaitFor(t, "the reader sees "+want, within, func() error {
			out, err := b.TryKubectl(t, "--namespace="+ns, "logs", "reader")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("it sees %q", out)
			}
			return err
		})
	}
	awaitOutput("blue", limit)
	b.Apply(t, ns, strings.Replace(manifest[:strings.Index(manifest, "---")], "COLOUR", "green", 1))
	// The kubelet looks each minute; a reader that backs off, at last, too.
	awaitOutput("green", 4*time.Minute)
}

func TestAVolumeThatCannotBeMadeIsTold(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := wasmPod("waiting", b.Image(t, "hello.wasm"), "cat", "/settings/colour")
	pod.Spec.Volumes = []corev1.Volume{{Name: "settings", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}},
	}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "settings", MountPath: "/settings"}}
	create(t, b, ns, pod)
	const want = `MountVolume.SetUp failed for volume "settings" : configmap "later" not found`
	b.WaitFor(t, "an event says so", limit, func() error {
		if told := b.Kubectl(t, "--namespace="+ns, "describe", "pod", "waiting"); !strings.Contains(told, want) {
			return errors.New(told)
		}
		return nil
	})
	same(t, "reason", waiting(get(t, b, ns, "waiting")).Reason, "ContainerCreating")
	b.Kubectl(t, "--namespace="+ns, "create", "configmap", "later", "--from-literal=colour=green")
	awaitPhase(t, b, ns, "waiting", corev1.PodSucceeded)
}
