package scenarios

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// adviser answers probes as the test says, from outside the cluster's room.
type adviser struct {
	host   string
	port   int32
	status atomic.Int32
	asked  atomic.Int32
}

// advise starts an adviser that answers 503 until it is told otherwise.
func advise(t *testing.T, b *bed.Bed) *adviser {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(b.Cluster().Room.Outside().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr)
	a := &adviser{host: address.IP.String(), port: int32(address.Port)}
	a.status.Store(http.StatusServiceUnavailable)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if agent := r.UserAgent(); !strings.HasPrefix(agent, "kube-probe/1.") {
			t.Errorf("a probe came from %q", agent)
		}
		a.asked.Add(1)
		w.WriteHeader(int(a.status.Load()))
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return a
}

// probe asks the adviser each second.
func (a *adviser) probe() *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: a.host, Port: intstr.FromInt32(a.port)}},
		PeriodSeconds: 1, FailureThreshold: 2,
	}
}

// ask asks the guest itself each second.
func ask(path string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}},
		PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 10,
	}
}

// webPod is a pod of the http guest that listens on this port.
func webPod(t *testing.T, b *bed.Bed, name string, port int32) *corev1.Pod {
	t.Helper()
	pod := always(wasmPod(name, b.Image(t, "http.wasm")))
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: port}}
	return pod
}

func awaitEvent(t *testing.T, b *bed.Bed, ns, name, reason, message string) {
	t.Helper()
	b.WaitFor(t, "an event says "+message, limit, func() error {
		events, err := b.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		var told []string
		for _, event := range events.Items {
			if event.Reason == reason && strings.Contains(event.Message, message) {
				return nil
			}
			told = append(told, event.Reason+": "+event.Message)
		}
		return fmt.Errorf("told so far: %q", told)
	})
}

func TestAServiceHasAPodOnlyWhileItIsReady(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	says := advise(t, b)
	labels := map[string]string{"app": "web"}
	pod := webPod(t, b, "web", 8091)
	pod.Spec.Containers[0].ReadinessProbe = says.probe()
	one := int32(1)
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}
	if _, err := b.Client.AppsV1().Deployments(ns).Create(t.Context(), deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}},
	}
	if _, err := b.Client.CoreV1().Services(ns).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	awaitState := func(isReady bool) {
		t.Helper()
		b.WaitFor(t, fmt.Sprintf("the pod is sent requests: %v", isReady), limit, func() error {
			web, err := b.Client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			slices, err := b.Client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{
				LabelSelector: discoveryv1.LabelServiceName + "=web",
			})
			if err != nil {
				return err
			}
			endpoints, ready := 0, 0
			for _, slice := range slices.Items {
				for _, endpoint := range slice.Endpoints {
					endpoints++
					if *endpoint.Conditions.Ready {
						ready++
					}
				}
			}
			want := 0
			if isReady {
				want = 1
			}
			if endpoints != 1 || ready != want || int(web.Status.AvailableReplicas) != want {
				return fmt.Errorf("%d of %d endpoints are ready, %d pods available", ready, endpoints, web.Status.AvailableReplicas)
			}
			return nil
		})
	}
	awaitState(false)
	asked := says.asked.Load()
	b.WaitFor(t, "it is asked again", limit, func() error {
		if says.asked.Load() < asked+3 {
			return errNotYet
		}
		return nil
	})
	awaitState(false)
	says.status.Store(http.StatusOK)
	awaitState(true)
	says.status.Store(http.StatusServiceUnavailable)
	awaitState(false)

	pods, err := b.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := &pods.Items[0]
	same(t, "restarts", status(found).RestartCount, 0)
	same(t, "reason", condition(found, corev1.PodReady).Reason, "ContainersNotReady")
	awaitEvent(t, b, ns, found.Name, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
}

func TestAGuestIsProbedItself(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	good := webPod(t, b, "good", 8092)
	good.Spec.Containers[0].ReadinessProbe = ask("/")
	bad := webPod(t, b, "bad", 8093)
	bad.Spec.Containers[0].ReadinessProbe = ask("/status?code=500")
	connects := webPod(t, b, "connects", 8094)
	tcp := func(port intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}, PeriodSeconds: 1}
	}
	connects.Spec.Containers[0].ReadinessProbe = tcp(intstr.FromString("http"))
	deaf := always(wasmPod("deaf", b.Image(t, "hello.wasm"), "tick"))
	deaf.Spec.Containers[0].ReadinessProbe = tcp(intstr.FromInt32(8095))
	for _, pod := range []*corev1.Pod{good, bad, connects, deaf} {
		create(t, b, ns, pod)
	}
	awaitReady(t, b, ns, "good")
	awaitReady(t, b, ns, "connects")
	awaitEvent(t, b, ns, "bad", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")
	awaitEvent(t, b, ns, "deaf", "Unhealthy", ":8095: connect: connection refused")
	for _, name := range []string{"bad", "deaf"} {
		pod := get(t, b, ns, name)
		same(t, name+" is Ready", isReady(pod), false)
		same(t, name+" is started", *status(pod).Started, true)
		same(t, name+"'s restarts", status(pod).RestartCount, 0)
	}
}

func TestALivenessProbeRestartsItsContainerAgainAndAgain(t *testing.T) {
	t.Parallel()
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	pod := on(node, webPod(t, b, "dying", 8096))
	pod.Spec.Containers[0].LivenessProbe = ask("/status?code=500")
	create(t, b, ns, pod)
	history := b.WatchPod(t, ns, "dying")
	await(t, b, ns, "dying", "was restarted twice", limit, func(pod *corev1.Pod) error {
		if count := status(pod).RestartCount; count < 2 {
			return fmt.Errorf("%d restarts", count)
		}
		return nil
	})
	last := int32(0)
	for _, version := range history.Seen(t) {
		if count := status(version).RestartCount; count < last {
			t.Errorf("the restarts went from %d to %d", last, count)
		}
		last = status(version).RestartCount
		for _, run := range runs([]*corev1.Pod{version}) {
			if run.ExitCode != 143 && run.ExitCode != 137 {
				t.Errorf("it ended with %d", run.ExitCode)
			}
		}
	}
	awaitEvent(t, b, ns, "dying", "Killing", "Container main failed liveness probe, will be restarted")
	awaitEvent(t, b, ns, "dying", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500")
}

func TestAStartupProbeHoldsTheOthersUp(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	says := advise(t, b)
	pod := webPod(t, b, "slow", 8097)
	pod.Spec.Containers[0].StartupProbe = says.probe()
	pod.Spec.Containers[0].StartupProbe.FailureThreshold = 1000
	pod.Spec.Containers[0].LivenessProbe = ask("/status?code=500")
	create(t, b, ns, pod)
	b.WaitFor(t, "it was asked whether it has started", limit, func() error {
		if says.asked.Load() < 3 {
			return errNotYet
		}
		return nil
	})
	starting := get(t, b, ns, "slow")
	same(t, "started", *status(starting).Started, false)
	same(t, "ready", status(starting).Ready, false)
	same(t, "restarts", status(starting).RestartCount, 0)
	says.status.Store(http.StatusOK)
	awaitEvent(t, b, ns, "slow", "Killing", "Container main failed liveness probe, will be restarted")
}

func TestReadinessOutlivesTheAgent(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "prober")
	ns := b.Namespace(t)
	says := advise(t, b)
	says.status.Store(http.StatusOK)
	pod := on(node, webPod(t, b, "steady", 8098))
	pod.Spec.Containers[0].StartupProbe = ask("/")
	pod.Spec.Containers[0].ReadinessProbe = says.probe()
	create(t, b, ns, pod)
	steady := awaitReady(t, b, ns, "steady")
	history := b.WatchPod(t, ns, "steady")
	node.Kill(t)
	asked := says.asked.Load()
	node.Start(t)
	node.WaitReady(t)
	b.WaitFor(t, "the next agent asks", limit, func() error {
		if says.asked.Load() < asked+3 {
			return errNotYet
		}
		return nil
	})
	for _, version := range history.Seen(t) {
		same(t, "Ready", isReady(version), true)
		same(t, "started", *status(version).Started, true)
		same(t, "Ready since", condition(version, corev1.PodReady).LastTransitionTime.Unix(), condition(steady, corev1.PodReady).LastTransitionTime.Unix())
	}
	says.status.Store(http.StatusServiceUnavailable)
	await(t, b, ns, "steady", "is not Ready", limit, func(pod *corev1.Pod) error {
		if isReady(pod) {
			return errNotYet
		}
		return nil
	})
}
