package scenarios

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// Pods behind a Service come and go while it is called.
func TestAServiceIsCalledWhileItsPodsComeAndGo(t *testing.T) {
	b := bed.Start(t)
	b.NetworkRights(t)
	node := b.StartNode(t, "rolling", "--service-proxy=builtin")
	c := &client{b: b, node: node, ns: b.Namespace(t)}
	t.Run("what was begun is answered and nothing new is", func(t *testing.T) { drains(t, c) })
	t.Run("a rollout refuses nobody", func(t *testing.T) { rollsOut(t, c) })
}

// webService is one for the pods with these labels.
func (c *client) webService(t *testing.T, labels map[string]string) *corev1.Service {
	t.Helper()
	return c.service(t, func(spec *corev1.ServiceSpec) {
		spec.Selector, spec.Ports[0].TargetPort = labels, intstr.FromInt32(webPort)
	})
}

func drains(t *testing.T, c *client) {
	b, grace := c.b, int64(60)
	labels := map[string]string{"app": "drained"}
	pod := labelled(webPodOn(t, b, c.node, "drained"), labels)
	// No matter how slow all others are.
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod = web(t, b, c.ns, pod)
	address := pod.Status.PodIP
	service := c.webService(t, labels)
	b.WaitFor(t, "it is an endpoint", limit, func() error { return c.isReady(t.Context(), service, 1) })

	from, to := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		"http://"+address+":"+strconv.Itoa(webPort)+"/echo", from)
	if err != nil {
		t.Fatal(err)
	}
	go io.WriteString(to, "first ") // it waits for who reads
	response, err := b.Outside().Client(limit).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	first := make([]byte, len("first "))
	if _, err := io.ReadFull(response.Body, first); err != nil {
		t.Fatal(err)
	}

	remove(t, b, pod)
	b.WaitFor(t, "its endpoint is terminating", limit, func() error {
		slices, err := b.Client.DiscoveryV1().EndpointSlices(c.ns).List(t.Context(), metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name,
		})
		if err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				state := endpoint.Conditions
				if state.Terminating != nil && *state.Terminating && state.Ready != nil && !*state.Ready {
					return nil
				}
			}
		}
		return fmt.Errorf("there are %v", slices.Items)
	})
	b.WaitFor(t, "a new connection is refused", limit, func() error {
		err := b.Outside().Get(t.Context(), address, webPort)
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Errorf("it came to %v", err)
		}
		return nil
	})
	same(t, "deleted", get(t, b, c.ns, pod.Name).DeletionTimestamp != nil, true)
	if _, err := io.WriteString(to, "last"); err != nil {
		t.Error(err)
	}
	to.Close()
	rest, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	same(t, "the answer", string(first)+string(rest), "first last")
	same(t, "its status", response.StatusCode, http.StatusOK)
	awaitGone(t, b, pod)
}

// rolled is what is rolled out, twice; it is ready when it listens.
const rolled = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: rolled
spec:
  replicas: 2
  # However slow all are, it is heard of one that has come before another goes.
  minReadySeconds: 1
  selector:
    matchLabels: {app: rolled}
  template:
    metadata:
      labels: {app: rolled}
    spec:
      runtimeClassName: wasm
      nodeSelector: {kubernetes.io/hostname: NODE}
      terminationGracePeriodSeconds: 30
      containers:
      - name: main
        image: IMAGE
        readinessProbe:
          httpGet: {path: /, port: 8080}
          periodSeconds: 1
`

// visitors is how many call at a time.
const visitors = 4

func rollsOut(t *testing.T, c *client) {
	b := c.b
	b.Apply(t, c.ns, strings.NewReplacer("IMAGE", b.Image(t, "http.wasm"), "NODE", c.node.Name).Replace(rolled))
	service := c.webService(t, map[string]string{"app": "rolled"})
	relay := bed.PodAddress(t, web(t, b, c.ns, webPodOn(t, b, c.node, "relay"))).String()
	// The relay asks the Service by connections of its pod.
	call := func() error {
		return b.Outside().GetTarget(t.Context(), relay, webPort, "/fetch?url=http://"+service.Spec.ClusterIP+"/env")
	}
	b.WaitFor(t, "both are endpoints", limit, func() error { return c.isReady(t.Context(), service, 2) })
	b.WaitFor(t, "the service answers", limit, call)

	over := make(chan struct{})
	var all sync.WaitGroup
	var mutex sync.Mutex
	calls, failures := 0, map[string]int{}
	for range visitors {
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				err := call()
				mutex.Lock()
				calls++
				if err != nil {
					failures[err.Error()]++
				}
				mutex.Unlock()
			}
		})
	}
	for _, colour := range []string{"blue", "green"} {
		b.Kubectl(t, "--namespace="+c.ns, "set", "env", "deployment/rolled", "COLOUR="+colour)
		b.Kubectl(t, "--namespace="+c.ns, "rollout", "status", "deployment/rolled", "--timeout=60s")
	}
	b.WaitFor(t, "the pods before are gone", limit, func() error {
		pods, err := b.Client.CoreV1().Pods(c.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rolled"})
		if err == nil && len(pods.Items) != 2 {
			err = fmt.Errorf("there are %d", len(pods.Items))
		}
		return err
	})
	close(over)
	all.Wait()
	if len(failures) > 0 {
		t.Errorf("of %d calls some failed: %v", calls, failures)
	}
}
