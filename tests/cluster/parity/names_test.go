package parity

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func names() *Names {
	names := &Names{}
	names.Add("10.0.0.1:5000/hello@sha256:00", "<hello>")
	names.Add("10.0.0.1:5000", "<registry>")
	names.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "test-x", UID: "uid-1"},
		Spec:       corev1.PodSpec{NodeName: "wasm-1", Volumes: []corev1.Volume{{Name: "kube-api-access-abc"}}},
	})
	return names
}

func TestTextsLoseWhatIsOfOneRun(t *testing.T) {
	for text, want := range map[string]string{
		"back-off 10s restarting failed container=main pod=web-1_test-x(uid-1)":                                            "back-off 10s restarting failed container=main pod=<pod>_<namespace>(<uid>)",
		`Successfully pulled image "10.0.0.1:5000/hello@sha256:00" in 12ms (12ms including waiting). Image size: 7 bytes.`: `Successfully pulled image "<hello>" in <duration> (<duration> including waiting). Image size: <number> bytes.`,
		"2026-11-24T03:00:00Z": "<time>",
		"containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef": "containerd://<64 digits>",
		`Back-off pulling image "x": ErrImagePull: not there`:                           `Back-off pulling image "x": ErrImagePull: <why>`,
	} {
		if got := names().Plain(text); got != want {
			t.Errorf("%q\n became %q\n want   %q", text, got, want)
		}
	}
}

func TestEventsAreThoseOfTheNode(t *testing.T) {
	event := func(by, reason, message string, count int32) corev1.Event {
		return corev1.Event{
			ReportingController: by, Reason: reason, Message: message, Count: count, Type: "Normal",
			InvolvedObject: corev1.ObjectReference{FieldPath: "spec.containers{main}"},
		}
	}
	got := names().Events([]corev1.Event{
		event("kubelet", "Pulled", "b", 3), event("kubelet", "Pulled", "a", 1), event("default-scheduler", "Scheduled", "c", 1),
	})
	want := map[string]string{"Pulled spec.containers{main}": "Normal: a (once)\nNormal: b (repeated)"}
	if !maps.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestADescriptionIsTakenApart(t *testing.T) {
	got := names().Described(`Name:             web-1
Node:             wasm-1/10.0.0.1
Status:           Running
IP:               10.0.0.1
Containers:
  main:
    Args:
      exit
      3
    State:          Waiting
      Reason:       CrashLoopBackOff
Conditions:
  Type              Status
  Ready             False
Events:
  Type     Reason     Age               From               Message
  ----     ------     ----              ----               -------
  Normal   Scheduled  44s               default-scheduler  Successfully assigned test-x/web-1 to wasm-1
  Warning  BackOff    2s (x3 over 40s)  kubelet            Back-off restarting failed container
`)
	want := map[string]string{
		"Status": "Running", "IP": "<address>", "Containers": "", "Containers/main": "",
		"Containers/main/Args": "exit 3", "Containers/main/State": "Waiting",
		"Containers/main/State/Reason": "CrashLoopBackOff", "Conditions": "Type Status Ready False",
		"Events/Warning BackOff": "kubelet",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
