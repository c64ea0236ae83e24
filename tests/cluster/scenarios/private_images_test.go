package scenarios

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/controlplane"
)

// secretly gives a pod a pull secret and a pull policy.
func secretly(pod *corev1.Pod, policy corev1.PullPolicy, secrets ...string) *corev1.Pod {
	pod.Spec.Containers[0].ImagePullPolicy = policy
	for _, name := range secrets {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return pod
}

func TestAPrivateImageIsPulledWithItsSecret(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	image := b.PushPrivate(t, bed.Guest(t, "hello.wasm"), "pulled-with-secret:1")
	b.PullSecret(t, ns, "good", controlplane.PrivateUser, controlplane.PrivatePassword)
	b.PullSecret(t, ns, "wrong", controlplane.PrivateUser, "guessed")

	create(t, b, ns, secretly(on(node, wasmPod("good", image)), corev1.PullAlways, "good"))
	awaitPhase(t, b, ns, "good", corev1.PodSucceeded)

	// Of several secrets one is enough.
	create(t, b, ns, secretly(on(node, wasmPod("second", image)), corev1.PullAlways, "wrong", "good"))
	awaitPhase(t, b, ns, "second", corev1.PodSucceeded)

	for name, secrets := range map[string][]string{"wrong": {"wrong"}, "none": nil} {
		create(t, b, ns, secretly(on(node, wasmPod(name, image)), corev1.PullAlways, secrets...))
		history := b.WatchPod(t, ns, name)
		awaitWaiting(t, b, ns, name, "ImagePullBackOff")
		var said []string
		for _, version := range history.Seen(t) {
			if wait := waiting(version); wait.Reason == "ErrImagePull" {
				said = append(said, wait.Message)
			}
		}
		refused := func(message string) bool {
			return strings.Contains(message, "refused access") && strings.Contains(message, image)
		}
		if !slices.ContainsFunc(said, refused) {
			t.Errorf("%s: no ErrImagePull that says that access to %s was refused; got %q", name, image, said)
		}
		for _, message := range said {
			if strings.Contains(message, "guessed") {
				t.Errorf("%s: the message shows the password: %s", name, message)
			}
		}
	}
}

// What one namespace's secret pulled is not given to the pods of another.
func TestAPrivateImageIsForThoseWithTheSecret(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	owner, other := b.Namespace(t), b.Namespace(t)
	image := b.PushPrivate(t, bed.Guest(t, "hello.wasm"), "of-one-namespace:1")
	b.PullSecret(t, owner, "pull", controlplane.PrivateUser, controlplane.PrivatePassword)

	create(t, b, owner, on(node, secretly(wasmPod("first", image), corev1.PullIfNotPresent, "pull")))
	awaitPhase(t, b, owner, "first", corev1.PodSucceeded)

	check := func(t *testing.T) {
		t.Helper()
		never := always(secretly(wasmPod("never", image), corev1.PullNever))
		create(t, b, other, on(node, never))
		pod := awaitWaiting(t, b, other, "never", "ErrImageNeverPull")
		if message := waiting(pod).Message; !strings.Contains(message, "is not present with pull policy of Never") {
			t.Errorf("the message tells more than that the image is not here: %q", message)
		}
		create(t, b, other, on(node, always(secretly(wasmPod("asks", image), corev1.PullIfNotPresent))))
		awaitWaiting(t, b, other, "asks", "ErrImagePull", "ImagePullBackOff")

		create(t, b, owner, on(node, secretly(wasmPod("again", image), corev1.PullNever, "pull")))
		awaitPhase(t, b, owner, "again", corev1.PodSucceeded)
		for namespace, name := range map[string]string{owner: "again", other: "never"} {
			gone := get(t, b, namespace, name)
			remove(t, b, gone)
			awaitGone(t, b, gone)
		}
		gone := get(t, b, other, "asks")
		remove(t, b, gone)
		awaitGone(t, b, gone)
	}
	t.Run("at once", check)
	t.Run("after a restart of the agent", func(t *testing.T) {
		node.Kill(t)
		node.Start(t)
		node.WaitReady(t)
		check(t)
	})
	t.Run("until it has a secret of its own", func(t *testing.T) {
		b.PullSecret(t, other, "mine", controlplane.PrivateUser, controlplane.PrivatePassword)
		create(t, b, other, on(node, secretly(wasmPod("proven", image), corev1.PullIfNotPresent, "mine")))
		awaitPhase(t, b, other, "proven", corev1.PodSucceeded)
		create(t, b, other, on(node, secretly(wasmPod("known", image), corev1.PullNever, "mine")))
		awaitPhase(t, b, other, "known", corev1.PodSucceeded)
	})
}

// The commands log in as `docker login` left it.
func TestCommandsUseTheDockerConfiguration(t *testing.T) {
	b := bed.Start(t)
	file, reference := bed.Guest(t, "hello.wasm"), b.PrivateRegistry()+"/by-command:1"
	root := "--root-dir=" + t.TempDir()
	push := func(login []byte) (string, error) {
		return b.KrustletAs(t, login, "push", b.RegistryFlag(), file, reference)
	}
	pull := func(login []byte) (string, error) {
		return b.KrustletAs(t, login, "pull", root, b.RegistryFlag(), reference)
	}
	good := bed.DockerConfig(b.PrivateRegistry(), controlplane.PrivateUser, controlplane.PrivatePassword)
	refused := map[string][]byte{
		"wrong": bed.DockerConfig(b.PrivateRegistry(), controlplane.PrivateUser, "guessed"),
		"none":  []byte("{}"),
		"other": bed.DockerConfig("elsewhere.example", controlplane.PrivateUser, controlplane.PrivatePassword),
	}
	pushed, err := push(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, login := range refused {
		for command, run := range map[string]func([]byte) (string, error){"push": push, "pull": pull} {
			_, err := run(login)
			if err == nil {
				t.Errorf("%s with the login %q was let in", command, name)
			} else if said := err.Error(); !strings.Contains(said, "refused access") || strings.Contains(said, "guessed") {
				t.Errorf("%s with the login %q says %s", command, name, said)
			}
		}
	}
	pulled, err := pull(good)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "what was pulled", pulled, pushed)
}
