package scenarios

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"krustlet.dev/tests/cluster/bed"
)

const environment = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, SIZE: large}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {PASSWORD: "p$ss"}
---
apiVersion: v1
kind: Pod
metadata:
  name: environment
  labels: {tier: back}
spec:
  runtimeClassName: wasm
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    args: [env]
    resources:
      requests: {cpu: 100m}
      limits: {memory: 64Mi}
    envFrom:
    - prefix: SET_
      configMapRef: {name: settings}
    - secretRef: {name: login}
    - configMapRef: {name: absent, optional: true}
    env:
    - {name: PLAIN, value: text}
    - {name: JOINED, value: "$(PLAIN) and $$(PLAIN) and $(ABSENT)"}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: login, key: PASSWORD}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
`

func TestTheEnvironmentHasEverySource(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.Replace(environment, "IMAGE", b.Image(t, "hello.wasm"), 1))
	pod := awaitPhase(t, b, ns, "environment", corev1.PodSucceeded)

	found := map[string]string{}
	for line := range strings.Lines(logs(t, b, ns, "environment")) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		found[name] = value
	}
	for name, want := range map[string]string{
		"PLAIN":      "text",
		"JOINED":     "text and $(PLAIN) and $(ABSENT)",
		"COLOUR":     "blue",
		"SECRET":     "p$ss",
		"SET_colour": "blue",
		"SET_SIZE":   "large",
		"PASSWORD":   "p$ss",
		"POD":        "environment",
		"TIER":       "back",
		"NODE":       node.Name,
		"IP":         pod.Status.PodIP,
		"HOST":       node.Address.String(),
		"CPU":        "100",
		"MEMORY":     "67108864",
		// Every pod finds the API server so.
		"KUBERNETES_SERVICE_HOST": "10.96.0.1",
		"KUBERNETES_SERVICE_PORT": "443",
		"KUBERNETES_PORT":         "tcp://10.96.0.1:443",
	} {
		same(t, name, found[name], want)
	}
	if net.ParseIP(found["IP"]) == nil {
		t.Errorf("IP is no address: %q", found["IP"])
	}
}

const needy = `
apiVersion: v1
kind: Pod
metadata: {name: needy}
spec:
  runtimeClassName: wasm
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    args: [env, COLOUR]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: later, key: colour}}}
`

func TestAPodWaitsForItsConfiguration(t *testing.T) {
	b := bed.Start(t)
	b.Node(t)
	ns := b.Namespace(t)
	b.Apply(t, ns, strings.Replace(needy, "IMAGE", b.Image(t, "hello.wasm"), 1))
	pod := awaitWaiting(t, b, ns, "needy", "CreateContainerConfigError")
	if message := waiting(pod).Message; !strings.Contains(message, `configmap "later" not found`) {
		t.Errorf("the message does not tell what is missing: %q", message)
	}
	b.Kubectl(t, "--namespace="+ns, "create", "configmap", "later", "--from-literal=colour=green")
	awaitPhase(t, b, ns, "needy", corev1.PodSucceeded)
	if got := logs(t, b, ns, "needy"); !strings.Contains(got, "green") {
		t.Errorf("COLOUR is not green: %q", got)
	}
}
