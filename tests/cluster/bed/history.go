package bed

import (
	"context"
	"errors"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// History is every version of one object that the API had while it was watched.
type History[T any] struct {
	mu   sync.Mutex
	seen []T
	// broken says why the watch ended early; then versions may be missing.
	broken error
}

// Seen are the versions so far, oldest first. A history with gaps proves
// nothing, so the test fails if the watch broke.
func (h *History[T]) Seen(t testing.TB) []T {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil {
		t.Fatal("the watch broke: ", h.broken)
	}
	return append([]T(nil), h.seen...)
}

// WatchPod records a pod that exists, until the test ends.
func (b *Bed) WatchPod(t testing.TB, namespace, name string) *History[*corev1.Pod] {
	t.Helper()
	pods := b.Client.CoreV1().Pods(namespace)
	return record[*corev1.Pod](t, named(name), pods.Watch)
}

// WatchPods records all pods of a namespace, until the test ends. The last
// version of one that is deleted is there twice.
func (b *Bed) WatchPods(t testing.TB, namespace string) *History[*corev1.Pod] {
	t.Helper()
	return record[*corev1.Pod](t, fields.Everything(), b.Client.CoreV1().Pods(namespace).Watch)
}

// WatchNode records a node that exists, until the test ends.
func (b *Bed) WatchNode(t testing.TB, name string) *History[*corev1.Node] {
	t.Helper()
	return record[*corev1.Node](t, named(name), b.Client.CoreV1().Nodes().Watch)
}

func named(name string) fields.Selector {
	return fields.OneTermEqualSelector("metadata.name", name)
}

func record[T any](t testing.TB, which fields.Selector, open func(context.Context, metav1.ListOptions) (watch.Interface, error)) *History[T] {
	t.Helper()
	// Without a version the watch begins with the object as it is.
	watched, err := open(t.Context(), metav1.ListOptions{FieldSelector: which.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.Stop)
	history := &History[T]{}
	go func() {
		for event := range watched.ResultChan() {
			history.mu.Lock()
			if object, ok := any(event.Object).(T); ok {
				history.seen = append(history.seen, object)
			} else {
				history.broken = errorOf(event)
			}
			history.mu.Unlock()
		}
		history.mu.Lock()
		defer history.mu.Unlock()
		if history.broken == nil && t.Context().Err() == nil {
			history.broken = errClosed
		}
	}()
	return history
}

var errClosed = errors.New("the API server closed it")

func errorOf(event watch.Event) error { return apierrors.FromObject(event.Object) }
