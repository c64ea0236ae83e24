package scenarios

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"krustlet.dev/tests/cluster/bed"
)

// echoPort is where the datagrams of these tests are sent back, in their pods.
const echoPort = 5353

// hosted gives a port of the node to the pod, or of one of its addresses.
func hosted(pod *corev1.Pod, port, host int32, ip string, protocol corev1.Protocol) *corev1.Pod {
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{
		{ContainerPort: port, HostPort: host, HostIP: ip, Protocol: protocol},
	}
	return pod
}

// echoPodOn sends datagrams of one family back.
func echoPodOn(t *testing.T, b *bed.Bed, node *bed.Node, name, wildcard string) *corev1.Pod {
	t.Helper()
	return on(node, wasmPod(name, b.Image(t, "net.wasm"), "udp-echo", strconv.Itoa(echoPort), wildcard))
}

// echoed sends a datagram and waits for it to come back, for as long as is long enough.
func echoed(t *testing.T, from bed.Place, address string, port int) error {
	t.Helper()
	conn, err := from.Dial(t.Context(), "udp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("who?")); err != nil {
		return err
	}
	// Nothing is heard here but what comes from where it was sent.
	buffer := make([]byte, 16)
	length, err := conn.Read(buffer)
	if err == nil && string(buffer[:length]) != "who?" {
		err = fmt.Errorf("it said %q", buffer[:length])
	}
	return err
}

func waitEchoed(t *testing.T, b *bed.Bed, address string, port int) {
	t.Helper()
	what := fmt.Sprintf("datagrams come back from %s port %d", address, port)
	b.WaitFor(t, what, limit, func() error { return echoed(t, b.Outside(), address, port) })
}

// waitAnswersAs waits until this pod answers at an address of the node.
func waitAnswersAs(t *testing.T, b *bed.Bed, name, address string, port int) {
	t.Helper()
	b.WaitFor(t, fmt.Sprintf("%s answers at %s port %d", name, address, port), limit, func() error {
		response, err := b.Outside().Client(limit).Get(at(address, port) + "env")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(text), "HOSTNAME="+name+"\n") {
			err = fmt.Errorf("it said %q", text)
		}
		return err
	})
}

// The node listens for the pod, which keeps an address and a port of its own.
func TestAHostPortLeadsToThePod(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	address := node.Address.String()
	ported := func(name string) *corev1.Pod {
		return hosted(webPodOn(t, b, node, name), 8083, 18083, "", corev1.ProtocolTCP)
	}
	pod := web(t, b, ns, ported("ported"))
	for _, each := range []string{address, "127.0.0.1", "::1"} {
		b.WaitServes(t, b.Outside(), each, 18083)
	}
	b.WaitServes(t, b.Outside(), bed.PodAddress(t, pod).String(), 8083)
	remove(t, b, pod)
	awaitGone(t, b, pod)
	for _, each := range []string{address, "127.0.0.1"} {
		if err := b.Outside().Get(t.Context(), each, 18083); err == nil {
			t.Errorf("%s answers at the host's port for a pod that is gone", each)
		}
	}
	web(t, b, ns, ported("next"))
	b.WaitServes(t, b.Outside(), address, 18083)
}

// The next run of a container has what the one before has let go of.
func TestAHostPortIsTheNextRunsToo(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	const number = 18088
	pod := hosted(webPodOn(t, b, node, "again"), webPort, number, "", corev1.ProtocolTCP)
	datagrams := hosted(echoPodOn(t, b, node, "datagrams", "0.0.0.0"), echoPort, number, "", corev1.ProtocolUDP)
	datagrams.Spec.Containers[0].Name = "datagrams"
	pod.Spec.Containers = append(pod.Spec.Containers, datagrams.Spec.Containers[0])
	for index := range pod.Spec.Containers {
		// Nobody listens there.
		pod.Spec.Containers[index].LivenessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}},
			PeriodSeconds: 1, FailureThreshold: 2,
		}
	}
	create(t, b, ns, pod)
	history := b.WatchPod(t, ns, "again")
	waitAnswersAs(t, b, "again", "127.0.0.1", number)
	waitEchoed(t, b, "127.0.0.1", number)
	calls := accepted(t, b, node, ns, "again")
	await(t, b, ns, "again", "has two containers that were restarted", limit, func(pod *corev1.Pod) error {
		for _, container := range pod.Status.ContainerStatuses {
			if container.RestartCount < 2 {
				return fmt.Errorf("%s: %d restarts", container.Name, container.RestartCount)
			}
		}
		return nil
	})
	waitAnswersAs(t, b, "again", "127.0.0.1", number)
	waitEchoed(t, b, "127.0.0.1", number)
	if now := accepted(t, b, node, ns, "again"); calls == 0 || now <= calls {
		t.Errorf("%d connections were accepted before the restarts, %d with those since", calls, now)
	}
	for _, version := range history.Seen(t) {
		for _, container := range version.Status.ContainerStatuses {
			if waits := container.State.Waiting; waits != nil && waits.Reason == "CreateContainerError" {
				t.Errorf("%s: %s", container.Name, waits.Message)
			}
		}
	}
}

// As Kubernetes' own test has it, `test/e2e/network/hostport.go`: one number for
// three pods, by their addresses of the node and protocols.
func TestPodsHaveOneHostPortByAddressAndProtocol(t *testing.T) {
	b := bed.Start(t)
	node := b.StartNode(t, "ported")
	ns := b.Namespace(t)
	const number = 18089
	address := node.Address.String()
	local := hosted(webPodOn(t, b, node, "local"), webPort, number, "127.0.0.1", corev1.ProtocolTCP)
	public := hosted(webPodOn(t, b, node, "public"), webPort, number, address, corev1.ProtocolTCP)
	datagrams := hosted(echoPodOn(t, b, node, "datagrams", "0.0.0.0"), echoPort, number, address, corev1.ProtocolUDP)
	web(t, b, ns, local)
	web(t, b, ns, public)
	serving(t, b, ns, datagrams)
	each := func() {
		t.Helper()
		waitAnswersAs(t, b, "local", "127.0.0.1", number)
		waitAnswersAs(t, b, "public", address, number)
		waitEchoed(t, b, address, number)
	}
	each()
	// A program of the node's network, which has one of its addresses.
	client := on(node, wasmPod("client", b.Image(t, "net.wasm"), "udp-get", address, strconv.Itoa(number), "hello"))
	client.Spec.HostNetwork = true
	same(t, "the echo", output(t, b, ns, client), "hello\n")

	// All addresses are those two as well.
	create(t, b, ns, hosted(webPodOn(t, b, node, "all"), webPort, number, "", corev1.ProtocolTCP))
	await(t, b, ns, "all", "no node has its port", limit, func(pod *corev1.Pod) error {
		found := condition(pod, corev1.PodScheduled)
		if found.Status != corev1.ConditionFalse || !strings.Contains(found.Message, "free ports") {
			return fmt.Errorf("%s: %s", found.Status, found.Message)
		}
		return nil
	})
	node.Kill(t)
	each()
	node.Start(t)
	node.WaitReady(t)
	node.WaitHolds(t, ns, "local", "public", "datagrams")
	each()
}

// It is the node's own API here. The scheduler knows of pods only.
func TestAHostPortThatTheNodeUsesIsTold(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	create(t, b, ns, hosted(webPodOn(t, b, node, "late"), webPort, node.Port, "", corev1.ProtocolTCP))
	late := awaitWaiting(t, b, ns, "late", "CreateContainerError")
	want := fmt.Sprintf("hostPort %d of ", node.Port)
	if message := waiting(late).Message; !strings.Contains(message, want) || !strings.Contains(message, ", TCP, is in use on this node") {
		t.Errorf("the message does not tell of it: %q", message)
	}
}
