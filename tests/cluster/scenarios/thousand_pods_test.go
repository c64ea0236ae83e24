package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// usualCrowd is how many pods TestAThousandPodsAreReached runs unless
// $KRUSTLET_TEST_PODS says 1000, which takes minutes with a debug build.
const usualCrowd = 50

// crowdLimit bounds the wait for all of them, on a loaded machine with two cores.
const crowdLimit = 5 * time.Minute

// callers is how many requests are under way at once.
const callers = 8

// A node holds many pods, each at an address of its own and on the same port:
// reached from the node, from each other, through a Service, and from another node
// and its pods.
func TestAThousandPodsAreReached(t *testing.T) {
	count := usualCrowd
	if text := os.Getenv("KRUSTLET_TEST_PODS"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil || count < 2 {
			t.Fatalf("KRUSTLET_TEST_PODS is %q, which is no number of pods", text)
		}
	}
	b := bed.Start(t)
	b.NetworkRights(t)
	node := b.StartNodeWith(t, "thousand", map[string]any{"maxPods": count + 10}, "--service-proxy=builtin")
	ns := b.Namespace(t)
	addresses := crowd(t, b, node, ns, count)

	podRange, seen := node.PodRange(t), map[netip.Addr]bool{}
	for _, address := range addresses {
		if !podRange.Contains(address) || seen[address] {
			t.Errorf("%v is not of %v, or another pod's too", address, podRange)
		}
		seen[address] = true
	}
	var urls []string
	for _, address := range addresses {
		urls = append(urls, fmt.Sprintf("http://%s:%d/", address, webPort))
	}
	callAll := func(t *testing.T, from *bed.Node, name string) {
		t.Helper()
		said := output(t, b, ns, on(from, wasmPod(name, b.Image(t, "fetch.wasm"), urls...)))
		same(t, "answers", strings.Count(said, "200\nHello"), count)
	}

	t.Run("from the node", func(t *testing.T) {
		each(t, addresses, func(ctx context.Context, at int) error {
			return node.Itself().Get(ctx, addresses[at].String(), webPort)
		})
	})
	t.Run("from one pod", func(t *testing.T) { callAll(t, node, "caller") })
	t.Run("each from another", func(t *testing.T) {
		each(t, addresses, func(ctx context.Context, at int) error {
			next := urls[(at+1)%count]
			return node.Itself().GetTarget(ctx, addresses[at].String(), webPort, "/fetch?url="+next)
		})
	})
	other := b.StartNodeApart(t, "apart", "--service-proxy=builtin")
	t.Run("from another node", func(t *testing.T) {
		each(t, addresses, func(ctx context.Context, at int) error {
			return other.Itself().Get(ctx, addresses[at].String(), webPort)
		})
		callAll(t, other, "stranger")
	})
	t.Run("through a Service", func(t *testing.T) {
		service := crowdService(t, b, ns, count)
		for _, one := range []*bed.Node{node, other} {
			b.WaitFor(t, one.Name+" leads to all pods", limit, func() error {
				led, err := one.LedTo(service.Spec.ClusterIP)
				if err != nil || len(led) == count && !slices.ContainsFunc(led, func(at netip.AddrPort) bool { return !seen[at.Addr()] }) {
					return err
				}
				return fmt.Errorf("it leads to %d", len(led))
			})
		}
		url := at(service.Spec.ClusterIP, 80)
		var mu sync.Mutex
		answered := map[string]bool{}
		each(t, addresses, func(_ context.Context, at int) error {
			text, err := fetched(b, addresses[at], url+"env", limit)
			_, name, isIn := strings.Cut(text, "HOSTNAME=")
			if err != nil || !isIn {
				return errors.Join(err, fmt.Errorf("it said %q", text))
			}
			name, _, _ = strings.Cut(name, "\n")
			mu.Lock()
			defer mu.Unlock()
			answered[name] = true
			return nil
		})
		// Of as many as there are calls, two of three are called on average.
		t.Logf("%d of %d pods answered %d calls", len(answered), count, count)
		if len(answered) < count/3 {
			t.Errorf("only %d of %d pods answered", len(answered), count)
		}
		said := output(t, b, ns, on(other, wasmPod("by-service", b.Image(t, "fetch.wasm"), slices.Repeat([]string{url}, 20)...)))
		same(t, "answers to a pod of another node", strings.Count(said, "200\nHello"), 20)
	})
}

// crowdService makes a Service of all pods of the crowd, waits until the cluster
// knows each of them as ready.
func crowdService(t *testing.T, b *bed.Bed, namespace string, count int) *corev1.Service {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "crowd"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "crowd"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(webPort)}},
		},
	}
	service, err := b.Client.CoreV1().Services(namespace).Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.WaitFor(t, "all pods are endpoints", limit, func() error {
		found, err := b.Client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(),
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name})
		if err != nil {
			return err
		}
		ready := 0
		for _, slice := range found.Items {
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
					ready++
				}
			}
		}
		if ready != count {
			return fmt.Errorf("%d of %d are", ready, count)
		}
		return nil
	})
	return service
}

// crowd runs so many http pods on a node, and returns their addresses once all
// are Ready. They are gone before the namespace is.
func crowd(t *testing.T, b *bed.Bed, node *bed.Node, namespace string, count int) []netip.Addr {
	t.Helper()
	history := b.WatchPods(t, namespace)
	pods := b.Client.CoreV1().Pods(namespace)
	t.Cleanup(func() {
		if err := pods.DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
			return
		}
		for end := time.Now().Add(crowdLimit); ; time.Sleep(time.Second) {
			left, err := pods.List(context.Background(), metav1.ListOptions{Limit: 1})
			if err == nil && len(left.Items) == 0 {
				// Nor are events sent any more, which its end would refuse.
				node.Stop(t)
				return
			}
			if time.Now().After(end) {
				t.Errorf("pods are not gone after %s (%v)", crowdLimit, err)
				return
			}
		}
	})
	no := false
	each(t, make([]netip.Addr, count), func(ctx context.Context, at int) error {
		pod := webPodOn(t, b, node, fmt.Sprintf("web-%d", at))
		// Neither the scheduler nor a thousand tokens are what this is about.
		pod.Spec.NodeName, pod.Spec.NodeSelector = node.Name, nil
		pod.Spec.AutomountServiceAccountToken = &no
		pod.Labels = map[string]string{"app": "crowd"}
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		return err
	})
	var addresses []netip.Addr
	b.WaitFor(t, fmt.Sprintf("%d pods are Ready", count), crowdLimit, func() error {
		ready := map[string]*corev1.Pod{}
		for _, version := range history.Seen(t) {
			if isReady(version) {
				ready[version.Name] = version
			}
		}
		if len(ready) < count {
			return fmt.Errorf("%d are", len(ready))
		}
		addresses = nil
		for at := range count {
			addresses = append(addresses, bed.PodAddress(t, ready[fmt.Sprintf("web-%d", at)]))
		}
		return nil
	})
	return addresses
}

// each does something for every address, several at once, and fails with the
// first errors.
func each(t *testing.T, addresses []netip.Addr, do func(ctx context.Context, at int) error) {
	t.Helper()
	next, failed := make(chan int), make(chan error, len(addresses))
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for at := range next {
				if err := do(t.Context(), at); err != nil {
					failed <- fmt.Errorf("pod %d, %v: %w", at, addresses[at], err)
				}
			}
		})
	}
	for at := range addresses {
		next <- at
	}
	close(next)
	group.Wait()
	close(failed)
	shown := 0
	for err := range failed {
		if shown++; shown > 5 {
			t.Fatalf("and %d more", len(failed)+1)
		}
		t.Error(err)
	}
	if shown > 0 {
		t.FailNow()
	}
}
