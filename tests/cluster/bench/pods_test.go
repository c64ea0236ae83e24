package bench

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"krustlet.dev/tests/cluster/bed"
)

// podLimit bounds the wait for one pod. It is no expectation: it ends a
// benchmark that would wait for ever.
const podLimit = 2 * time.Minute

// clients is how many requests are under way at once in a burst.
const clients = 8

// field makes pods on one node and notes when the API says what of them.
type field struct {
	b         *testing.B
	bed       *bed.Bed
	namespace string
	node      string
	image     string
	args      []string
	made      int // names are not used twice

	mu      sync.Mutex
	ready   map[string]time.Time
	gone    map[string]time.Time
	broken  error
	changed chan struct{} // closed, and replaced, at each event
}

// plant makes a namespace for pods of the node that sleep, and begins to watch it.
func plant(b *testing.B, cluster *bed.Bed, node string) *field {
	b.Helper()
	return plantOf(b, cluster, node, "hello.wasm", "sleep", "3600")
}

// plantKind is plant for pods of the program that -guest names.
func plantKind(b *testing.B, cluster *bed.Bed, node string) *field {
	b.Helper()
	switch *guestKind {
	case "hello":
		return plant(b, cluster, node)
	case "http":
		return plantOf(b, cluster, node, "http.wasm")
	}
	b.Fatal("-guest is hello or http")
	return nil
}

// plantOf is plant for pods of another program.
func plantOf(b *testing.B, cluster *bed.Bed, node, program string, args ...string) *field {
	b.Helper()
	f := &field{
		b: b, bed: cluster, namespace: cluster.Namespace(b), node: node, image: cluster.Image(b, program), args: args,
		ready: map[string]time.Time{}, gone: map[string]time.Time{}, changed: make(chan struct{}),
	}
	pods := cluster.Client.CoreV1().Pods(f.namespace)
	listed, err := pods.List(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	// The API server ends watches that are slow, as they are in a burst on few processors.
	watched, err := watchtools.NewRetryWatcherWithContext(b.Context(), listed.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: pods.Watch,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(watched.Stop)
	go func() {
		for event := range watched.ResultChan() {
			f.note(time.Now(), event)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.broken = fmt.Errorf("the watch of %s ended", f.namespace)
		f.wake()
	}()
	return f
}

func (f *field) note(at time.Time, event watch.Event) {
	pod, ok := event.Object.(*corev1.Pod)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !ok:
		f.broken = fmt.Errorf("the watch of %s broke: %v", f.namespace, event.Object)
	case event.Type == watch.Deleted:
		f.gone[pod.Name] = at
	case isReady(pod) && f.ready[pod.Name].IsZero():
		f.ready[pod.Name] = at
	default:
		return
	}
	f.wake()
}

// wake tells all who wait. The lock is held.
func (f *field) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// when waits until the time of a pod's event is known.
func (f *field) when(times map[string]time.Time, name, what string) time.Time {
	f.b.Helper()
	limit := time.After(podLimit)
	for {
		f.mu.Lock()
		at, broken, changed := times[name], f.broken, f.changed
		f.mu.Unlock()
		switch {
		case !at.IsZero():
			return at
		case broken != nil:
			f.b.Fatal(broken)
		}
		select {
		case <-changed:
		case <-limit:
			f.b.Fatalf("pod %s is not %s after %s", name, what, podLimit)
		}
	}
}

func (f *field) whenReady(name string) time.Time { f.b.Helper(); return f.when(f.ready, name, "Ready") }
func (f *field) whenGone(name string) time.Time  { f.b.Helper(); return f.when(f.gone, name, "gone") }

// create makes a pod and returns the time before the request. The
// pod is bound already, so that the scheduler's time is not in the figures.
func (f *field) create(name string) (time.Time, error) {
	class, no := "wasm", false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: f.node, RuntimeClassName: &class,
			// No volume that the agent would have to ask the API for.
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "main", Image: f.image, ImagePullPolicy: corev1.PullIfNotPresent, Args: f.args,
			}},
		},
	}
	before := time.Now()
	_, err := f.bed.Client.CoreV1().Pods(f.namespace).Create(f.b.Context(), pod, metav1.CreateOptions{})
	return before, err
}

// remove deletes a pod with its own grace and returns the time before the request.
func (f *field) remove(name string) (time.Time, error) {
	before := time.Now()
	return before, f.bed.Client.CoreV1().Pods(f.namespace).Delete(f.b.Context(), name, metav1.DeleteOptions{})
}

func (f *field) name() string {
	f.made++
	return fmt.Sprintf("pod-%d", f.made)
}

// one is how long a pod took, in milliseconds.
type one struct{ toReady, toGone float64 }

// single makes one pod, leaves it alone for a while, and deletes it.
func (f *field) single() one {
	f.b.Helper()
	name := f.name()
	created, err := f.create(name)
	if err != nil {
		f.b.Fatal(err)
	}
	ready := f.whenReady(name)
	time.Sleep(*settle) // or the pod's start would still be at work in its end
	deleted, err := f.remove(name)
	if err != nil {
		f.b.Fatal(err)
	}
	return one{toReady: milliseconds(ready.Sub(created)), toGone: milliseconds(f.whenGone(name).Sub(deleted))}
}

// warm has the node fetch and compile the guest.
func (f *field) warm() { f.b.Helper(); f.single() }

// burst is what became of many requests at once.
type burst struct {
	names    []string
	requests time.Duration // until the last request was answered
	since    []float64     // seconds from the first request to each pod's event, ascending
	each     []float64     // milliseconds from each pod's request to its event
}

func (f *field) createMany(n int) burst {
	f.b.Helper()
	node, err := f.bed.Client.CoreV1().Nodes().Get(f.b.Context(), f.node, metav1.GetOptions{})
	if err != nil {
		f.b.Fatal(err)
	}
	if room := node.Status.Allocatable.Pods().Value(); int64(n) > room {
		f.b.Fatalf("%s takes %d pods, not %d", f.node, room, n)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = f.name()
	}
	return f.many(names, f.create, f.whenReady)
}

func (f *field) removeMany(names []string) burst {
	f.b.Helper()
	return f.many(names, f.remove, f.whenGone)
}

func (f *field) many(names []string, ask func(string) (time.Time, error), when func(string) time.Time) burst {
	f.b.Helper()
	asked, failed := make([]time.Time, len(names)), make([]error, len(names))
	next := make(chan int)
	begin := time.Now()
	var workers sync.WaitGroup
	for range clients {
		workers.Go(func() {
			for i := range next {
				asked[i], failed[i] = ask(names[i])
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	workers.Wait()
	result := burst{names: names, requests: time.Since(begin)}
	for i, name := range names {
		if failed[i] != nil {
			f.b.Fatal(failed[i])
		}
		at := when(name)
		result.since = append(result.since, at.Sub(begin).Seconds())
		result.each = append(result.each, milliseconds(at.Sub(asked[i])))
	}
	slices.Sort(result.since)
	return result
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
