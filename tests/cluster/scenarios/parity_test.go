package scenarios

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/kubelet"
	"krustlet.dev/tests/cluster/parity"
)

// recordings is where what the real kubelet showed is kept.
const recordings = "testdata/kubelet"

// settled is how long after the last event a recording takes all to be told. The
// comparison needs no such guess: it looks until nothing differs.
const settled = 5 * time.Second

// parityImages are what the tokens in the manifests stand for.
type parityImages struct{ hello, icepll, absent, foreign string }

var classLine = regexp.MustCompile(`(?m)^( *)runtimeClassName: wasm$`)

// fill puts the images and the node into a manifest.
func (i parityImages) fill(manifest, node string) string {
	pinned := classLine.ReplaceAllString(manifest, "$0\n${1}nodeSelector: {"+corev1.LabelHostname+": "+node+"}")
	return strings.NewReplacer("HELLO", i.hello, "ICEPLL", i.icepll, "ABSENT", i.absent, "FOREIGN", i.foreign).Replace(pinned)
}

func (i parityImages) names(b *bed.Bed) *parity.Names {
	names := &parity.Names{}
	names.Add(i.hello, "<hello>")
	names.Add(i.icepll, "<icepll>")
	names.Add(i.absent, "<absent>")
	names.Add(i.foreign, "<foreign>")
	names.Add(b.Registry(), "<registry>")
	return names
}

// TestUsersSeeWhatTheKubeletShows gives the same objects to krustlet that a real
// kubelet was given, and compares field by field what the API shows of them. The
// differences that are meant are in parity_differences_test.go.
func TestUsersSeeWhatTheKubeletShows(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	// One that has no images yet, as the kubelet had none.
	node := b.StartNode(t, "parity")
	images := parityImages{
		hello:   b.ByDigest(t, b.Image(t, "hello.wasm")),
		icepll:  b.ByDigest(t, b.Image(t, "icepll.wasm")),
		absent:  b.Registry() + "/nowhere:1",
		foreign: b.PushLinux(t, "foreign", "1"),
	}
	var differences []parity.Difference
	for _, test := range parityCases {
		t.Run(test.name, func(t *testing.T) {
			var recorded parity.Seen
			text, err := os.ReadFile(filepath.Join(recordings, test.name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &recorded); err != nil {
				t.Fatal(err)
			}
			var found []parity.Difference
			compare := func(seen *parity.Seen) []parity.Difference {
				if found, err = parity.Compare(test.name, &recorded, seen); err != nil {
					t.Fatal(err)
				}
				unlisted, _ := parity.Judge(found, allowedDifferences)
				return unlisted
			}
			test.look(t, b, images, node.Name, patience{
				described: func(seen *parity.Seen) bool {
					return !slices.ContainsFunc(compare(seen), func(difference parity.Difference) bool {
						return strings.HasPrefix(difference.Field, "described/")
					})
				},
				all: func(seen *parity.Seen) bool { return len(compare(seen)) == 0 },
			})
			differences = append(differences, found...)
		})
	}
	unlisted, idle := parity.Judge(differences, allowedDifferences)
	for _, difference := range unlisted {
		t.Errorf("a difference that nobody meant: %s", difference)
	}
	for _, allowed := range idle {
		t.Errorf("a difference that is allowed and no longer occurs: %s: %s (%s)", allowed.Case, allowed.Field, allowed.Why)
	}
}

// TestRecordTheKubelet makes the recordings anew; see testdata/kubelet/README.md.
func TestRecordTheKubelet(t *testing.T) {
	if os.Getenv("KRUSTLET_TEST_RECORD") == "" {
		t.Skip("it needs containerd, and is asked for by KRUSTLET_TEST_RECORD=1")
	}
	b := bed.Start(t)
	linux := kubelet.PushImages(t, b)
	images := parityImages{
		hello: linux.Hello, icepll: linux.Icepll,
		absent:  b.Registry() + "/nowhere:1",
		foreign: b.PushLinuxLayer(t, "foreign:1", "riscv64", []byte("not read"), "/bin/sh"),
	}
	// The class is the cluster's, whatever runs its pods.
	b.Kubectl(t, "delete", "runtimeclass", "wasm")
	b.Apply(t, metav1.NamespaceDefault, "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: wasm}, handler: runc}")
	node := kubelet.Start(t, b, "linux-1", linux.Sandbox)
	write := func(name string, value any) {
		text, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(recordings, name+".json"), append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range parityCases {
		t.Run(test.name, func(t *testing.T) {
			var last *parity.Seen
			since := time.Now()
			test.look(t, b, images, node.Name, patience{
				described: func(*parity.Seen) bool { return true },
				all: func(seen *parity.Seen) bool {
					if last == nil || len(last.Events) != len(seen.Events) {
						since = time.Now()
					}
					last = seen
					return time.Since(since) > settled
				},
			})
			write(test.name, last)
		})
	}
	write("versions", node.Versions(t))
}

// describedWithin is how long events may take to be among what kubectl describes.
// It is shorter than the third wait of a crash loop, in which that one is described.
const describedWithin = 10 * time.Second

// patience says when enough was seen of a pod. Some of it, such as events, comes late.
type patience struct {
	// described is asked before the pod is deleted, all after.
	described, all func(*parity.Seen) bool
}

// look brings the pod to its moment, deletes it, and shows what was seen until it
// is enough.
func (c parityCase) look(t *testing.T, b *bed.Bed, images parityImages, node string, enough patience) {
	t.Helper()
	ns := b.Namespace(t)
	history := b.WatchPods(t, ns)
	b.Apply(t, ns, images.fill(c.manifest, node))
	b.WaitFor(t, c.name+" is "+c.moment, 3*limit, func() error {
		seen := history.Seen(t)
		if len(seen) == 0 {
			return errNotYet
		}
		return c.arrived(t, b, ns, seen)
	})
	versions := history.Seen(t)
	names := images.names(b)
	names.AddPod(versions[len(versions)-1])
	pod := get(t, b, ns, versions[0].Name)

	seen := &parity.Seen{Logs: map[string]string{}, Statuses: map[string]any{}}
	keep := func(moment string, status corev1.PodStatus) {
		plain, err := names.Status(status)
		if err != nil {
			t.Fatal(err)
		}
		seen.Statuses[moment] = plain
	}
	keep(c.moment, pod.Status)
	for _, container := range c.containers {
		seen.Logs[container] = names.Plain(logs(t, b, ns, pod.Name, "--container="+container))
	}
	c.owner(t, b, ns, names, seen)
	for end := time.Now().Add(describedWithin); ; time.Sleep(time.Second / 2) {
		seen.Described = names.Described(b.Kubectl(t, "--namespace="+ns, "describe", "pod", pod.Name))
		if enough.described(seen) || time.Now().After(end) {
			break
		}
	}

	b.Kubectl(t, "--namespace="+ns, "delete", c.kind, c.object, "--cascade=foreground", "--timeout=60s")
	awaitGone(t, b, pod)
	b.WaitFor(t, "the watch tells of the pod's end", limit, func() error {
		all := history.Seen(t)
		if last := all[len(all)-1]; last.DeletionTimestamp == nil {
			return errNotYet
		}
		return nil
	})
	for end := time.Now().Add(limit / 2); ; time.Sleep(time.Second / 2) {
		all := history.Seen(t)
		keep("gone", all[len(all)-1].Status)
		seen.Steps = names.Steps(all)
		events, err := b.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.uid=" + string(pod.UID),
		})
		if err != nil {
			t.Fatal(err)
		}
		seen.Events = names.Events(events.Items)
		if enough.all(seen) || time.Now().After(end) {
			return
		}
	}
}

// owner keeps the status of what made the pod.
func (c parityCase) owner(t *testing.T, b *bed.Bed, namespace string, names *parity.Names, seen *parity.Seen) {
	t.Helper()
	var status any
	var err error
	switch c.kind {
	case "deployment":
		found, failed := b.Client.AppsV1().Deployments(namespace).Get(t.Context(), c.object, metav1.GetOptions{})
		status, err = found.Status, failed
	case "job":
		found, failed := b.Client.BatchV1().Jobs(namespace).Get(t.Context(), c.object, metav1.GetOptions{})
		status, err = found.Status, failed
	default:
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if seen.Owner, err = names.Status(status); err != nil {
		t.Fatal(err)
	}
}
