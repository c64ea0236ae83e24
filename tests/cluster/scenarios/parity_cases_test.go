package scenarios

import (
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
)

// parityCase is a workload with one pod that is given to both kinds of node.
type parityCase struct {
	name string
	// manifest is what a user applies. HELLO, ICEPLL, ABSENT (an image that is
	// nowhere) and FOREIGN (one that is not for this node) are images.
	manifest string
	// kind and object are what is deleted in the end.
	kind, object string
	// moment names the state in which the pod is looked at, and arrived tells
	// why it is not there yet. history is all that was seen of the pod.
	moment  string
	arrived func(t *testing.T, b *bed.Bed, namespace string, history []*corev1.Pod) error
	// containers are those whose logs are compared.
	containers []string
}

var parityCases = []parityCase{
	{
		name: "deployment", kind: "deployment", object: "clock", moment: "available",
		manifest:   realDeployment,
		containers: []string{"pll"},
		arrived: func(t *testing.T, b *bed.Bed, namespace string, _ []*corev1.Pod) error {
			found, err := b.Client.AppsV1().Deployments(namespace).Get(t.Context(), "clock", metav1.GetOptions{})
			if err == nil && !isAvailable(found) {
				err = errNotYet
			}
			return err
		},
	},
	{
		name: "job-completes", kind: "job", object: "job", moment: "ended",
		manifest:   strings.NewReplacer("IMAGE", "ICEPLL", "ARGS", `["-i", "12", "-o", "48"]`).Replace(job),
		containers: []string{containerName},
		arrived:    jobIs(batchv1.JobComplete),
	},
	{
		name: "job-fails", kind: "job", object: "job", moment: "ended",
		manifest: strings.NewReplacer("IMAGE", "HELLO", "ARGS", `[exit, "42"]`).Replace(job),
		arrived:  jobIs(batchv1.JobFailed),
	},
	{
		name: "crash-loop", kind: "pod", object: "crashing", moment: "third wait",
		manifest:   lone("crashing", "HELLO", "[cat, /missing]"),
		containers: []string{containerName},
		// After waits of 10 s and 20 s; in the third there is time to look at it.
		arrived: func(_ *testing.T, _ *bed.Bed, _ string, history []*corev1.Pod) error {
			last := history[len(history)-1]
			if wait := waiting(last); status(last).RestartCount == 3 && strings.HasPrefix(wait.Message, "back-off 40s ") {
				return nil
			}
			return fmt.Errorf("%d restarts, %s", status(last).RestartCount, describe(last))
		},
	},
	{
		name: "absent-image", kind: "pod", object: "no-image", moment: "backing off",
		manifest: lone("no-image", "ABSENT", "[]"),
		arrived:  waitsFor("ImagePullBackOff"),
	},
	{
		// For krustlet an image for Linux, for the kubelet one for other machines.
		name: "foreign-image", kind: "pod", object: "wrong-image", moment: "backing off",
		manifest: lone("wrong-image", "FOREIGN", "[]"),
		arrived:  waitsFor("ImagePullBackOff"),
	},
}

// lone is a pod that nothing made but the user.
func lone(name, image, args string) string {
	return strings.NewReplacer("NAME", name, "IMAGE", image, "ARGS", args).Replace(`
apiVersion: v1
kind: Pod
metadata:
  name: NAME
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: IMAGE
    args: ARGS
`)
}

func jobIs(kind batchv1.JobConditionType) func(*testing.T, *bed.Bed, string, []*corev1.Pod) error {
	return func(t *testing.T, b *bed.Bed, namespace string, _ []*corev1.Pod) error {
		found, err := b.Client.BatchV1().Jobs(namespace).Get(t.Context(), "job", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range found.Status.Conditions {
			if condition.Type == kind && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errNotYet
	}
}

func waitsFor(reason string) func(*testing.T, *bed.Bed, string, []*corev1.Pod) error {
	return func(_ *testing.T, _ *bed.Bed, _ string, history []*corev1.Pod) error {
		last := history[len(history)-1]
		if waiting(last).Reason == reason {
			return nil
		}
		return fmt.Errorf("%s", describe(last))
	}
}
