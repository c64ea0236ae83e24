package scenarios

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

// The behaviours of Kubernetes' own "blackbox test on terminated container"
// (test/e2e/common/node/runtime.go).
func TestATerminationMessageIsReported(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	image := b.Image(t, "hello.wasm")
	user := int64(10001)
	scratch := corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	for _, one := range []struct {
		name, path string
		policy     corev1.TerminationMessagePolicy
		args       []string
		change     func(*corev1.Pod)
		phase      corev1.PodPhase
		want       string
	}{
		{
			name: "from the default file", path: "/dev/termination-log",
			args: []string{"write", "/dev/termination-log", "DONE"}, phase: corev1.PodSucceeded, want: "DONE\n",
		},
		{
			name: "as a non-root user and at another path", path: "/dev/termination-custom-log",
			args: []string{"write", "/dev/termination-custom-log", "DONE"}, phase: corev1.PodSucceeded, want: "DONE\n",
			change: func(pod *corev1.Pod) {
				pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user}
			},
		},
		{
			name: "from a file in a volume", path: "/scratch/deep/message",
			args: []string{"write", "/scratch/deep/message", "DONE"}, phase: corev1.PodSucceeded, want: "DONE\n",
			change: func(pod *corev1.Pod) {
				pod.Spec.Volumes = []corev1.Volume{scratch}
				pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
			},
		},
		{
			name: "from the log if it failed", path: "/dev/termination-log", policy: corev1.TerminationMessageFallbackToLogsOnError,
			args: []string{"cat", "/not/there"}, phase: corev1.PodFailed, want: "hello: /not/there",
		},
		{
			name: "not from the log if it succeeded", path: "/dev/termination-log", policy: corev1.TerminationMessageFallbackToLogsOnError,
			args: []string{"args", "DONE"}, phase: corev1.PodSucceeded,
		},
		{
			name: "from the file rather than the log", path: "/dev/termination-log", policy: corev1.TerminationMessageFallbackToLogsOnError,
			args: []string{"write", "/dev/termination-log", "OK"}, phase: corev1.PodSucceeded, want: "OK\n",
		},
		{
			name: "with the trap if nothing was logged", path: "/dev/termination-log", policy: corev1.TerminationMessageFallbackToLogsOnError,
			args: []string{"trap"}, phase: corev1.PodFailed, want: "unreachable",
		},
	} {
		t.Run(one.name, func(t *testing.T) {
			name := strings.ReplaceAll(one.name, " ", "-")
			pod := wasmPod(name, image, one.args...)
			pod.Spec.Containers[0].TerminationMessagePath = one.path
			pod.Spec.Containers[0].TerminationMessagePolicy = one.policy
			if one.change != nil {
				one.change(pod)
			}
			create(t, b, ns, pod)
			got := ended(t, awaitPhase(t, b, ns, name, one.phase)).Message
			if one.phase == corev1.PodFailed && strings.Contains(got, one.want) {
				return
			}
			same(t, "message", got, one.want)
		})
	}
}

func TestATerminationMessageThatWouldHideFilesIsRefused(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	pod := wasmPod("hiding", b.Image(t, "hello.wasm"), "args")
	pod.Spec.Containers[0].TerminationMessagePath = "/var/run/secrets/kubernetes.io/serviceaccount/message"
	create(t, b, ns, pod)
	await(t, b, ns, "hiding", "says why it waits", limit, func(pod *corev1.Pod) error {
		waits := waiting(pod)
		if waits.Reason == "CreateContainerConfigError" && strings.Contains(waits.Message, "which it may not write to; choose another path") {
			return nil
		}
		return errNotYet
	})
}
