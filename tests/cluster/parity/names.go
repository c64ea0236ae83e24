package parity

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Names are what is called differently in each run, and what to call it instead.
// The first that fits wins, so longer ones go first.
type Names struct{ pairs [][2]string }

// Add says what to put in the place of a text. An empty text is no name.
func (n *Names) Add(text, instead string) {
	if text != "" {
		n.pairs = append(n.pairs, [2]string{text, instead})
	}
}

// AddPod adds what a pod is called and where it is.
func (n *Names) AddPod(pod *corev1.Pod) {
	n.Add(string(pod.UID), "<uid>")
	n.Add(pod.Name, "<pod>")
	n.Add(pod.Labels["pod-template-hash"], "<hash>")
	n.Add(pod.Namespace, "<namespace>")
	n.Add(pod.Spec.NodeName, "<node>")
	for _, volume := range pod.Spec.Volumes {
		if strings.HasPrefix(volume.Name, "kube-api-access-") {
			n.Add(volume.Name, "<token volume>")
		}
	}
}

// shapes are texts that are never the same twice.
var shapes = []struct {
	text    *regexp.Regexp
	instead string
}{
	// As the API writes times, and as kubectl describe does.
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "<time>"},
	{regexp.MustCompile(`(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}`), "<time>"},
	{regexp.MustCompile(`(://)[0-9a-f]{64}\b`), "$1<64 digits>"},
	{regexp.MustCompile(`^sha256:[0-9a-f]{64}$`), "sha256:<64 digits>"},
	{regexp.MustCompile(`(pulled image "[^"]*" in )\S+ \(\S+ including`), "$1<duration> (<duration> including"},
	{regexp.MustCompile(`Image size: \d+ bytes`), "Image size: <number> bytes"},
	// Why a registry or a runtime refuses is told in words of one's own; who
	// says it, and of what, is not.
	{regexp.MustCompile(`(?s)(ErrImagePull: |Failed to pull image "[^"]*": ).+`), "$1<why>"},
}

// Plain is a text without what differs from run to run.
func (n *Names) Plain(text string) string {
	for _, pair := range n.pairs {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	for _, shape := range shapes {
		text = shape.text.ReplaceAllString(text, shape.instead)
	}
	return text
}

// addresses are the fields that hold one.
var addresses = map[string]string{"podIP": "<pod address>", "hostIP": "<node address>", "ip": "<address>"}

// Status is any part of an API object as plain JSON.
func (n *Names) Status(status any) (any, error) {
	text, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	return n.tree(tree), nil
}

func (n *Names) tree(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key, item := range value {
			if address, ok := addresses[key]; ok {
				value[key] = address
				continue
			}
			value[key] = n.tree(item)
		}
		// The whole message is in the node's own words; see shapes.
		if value["reason"] == "ErrImagePull" && value["message"] != nil {
			value["message"] = "<why>"
		}
		return value
	case []any:
		for i, item := range value {
			value[i] = n.tree(item)
		}
		return value
	case string:
		return n.Plain(value)
	default:
		return value
	}
}

// Events are what the node told of a pod, by reason and the part of the pod it is
// of: type, message and how often. Who else tells of pods (the scheduler) is
// left out.
func (n *Names) Events(events []corev1.Event) map[string]string {
	lines := map[string][]string{}
	for _, event := range events {
		if event.ReportingController != "kubelet" {
			continue
		}
		key := event.Reason
		if part := event.InvolvedObject.FieldPath; part != "" {
			key += " " + part
		}
		times := "once"
		if event.Count > 1 {
			times = "repeated"
		}
		line := fmt.Sprintf("%s: %s (%s)", event.Type, n.Plain(event.Message), times)
		if !slices.Contains(lines[key], line) {
			lines[key] = append(lines[key], line)
		}
	}
	found := map[string]string{}
	for key, told := range lines {
		slices.Sort(told)
		found[key] = strings.Join(told, "\n")
	}
	return found
}
