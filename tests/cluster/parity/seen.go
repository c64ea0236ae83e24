// Package parity compares what users see of a pod on two kinds of node. It
// brings what the API has into a form without names, times and addresses
// ([Seen]), flattens it into fields, and tells which fields differ and which of
// these differences were announced ([Compare]). It makes no pods and knows no
// node; package scenarios does.
package parity

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Seen is what users saw of a workload with one pod.
type Seen struct {
	// Owner is the status of the Deployment or Job, if one made the pod.
	Owner any `json:"owner,omitempty"`
	// Statuses are those of the pod, by the moment they are of.
	Statuses map[string]any `json:"statuses"`
	// Steps are the states that the pod went through, oldest first.
	Steps []string `json:"steps"`
	// Events are those the node told of the pod, by reason.
	Events map[string]string `json:"events"`
	// Described is `kubectl describe pod`, by field.
	Described map[string]string `json:"described"`
	// Logs are those of the containers, by name.
	Logs map[string]string `json:"logs"`
}

// Fields flattens what was seen: a path for each leaf. Lists of named things are
// keyed by their names, for their order says nothing. Steps are not here.
func (s *Seen) Fields() (map[string]string, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	delete(tree, "steps")
	found := map[string]string{}
	flatten(found, "", tree)
	return found, nil
}

func flatten(found map[string]string, path string, value any) {
	below := func(key string) string { return strings.TrimPrefix(path+"/"+key, "/") }
	switch value := value.(type) {
	case map[string]any:
		if len(value) == 0 {
			found[path] = "{}"
		}
		for key, item := range value {
			flatten(found, below(key), item)
		}
	case []any:
		if len(value) == 0 {
			found[path] = "[]"
		}
		for i, item := range value {
			flatten(found, below(nameOf(item, i)), item)
		}
	default:
		found[path] = fmt.Sprint(value)
	}
}

// nameOf is what tells an item of a list from the others: of conditions their
// type, of containers their name, of mounts their path, else the place.
func nameOf(item any, place int) string {
	if fields, ok := item.(map[string]any); ok {
		for _, key := range []string{"type", "mountPath", "name"} {
			if name, ok := fields[key].(string); ok {
				return name
			}
		}
	}
	return fmt.Sprint(place)
}

// Steps are the states in the versions of a pod, without repetitions.
func (n *Names) Steps(versions []*corev1.Pod) []string {
	var steps []string
	for _, pod := range versions {
		step := n.Plain(step(pod))
		if len(steps) == 0 || steps[len(steps)-1] != step {
			steps = append(steps, step)
		}
	}
	return steps
}

// step is a version of a pod in one line: what `kubectl get pods -w` shows, and
// the reason why it is not ready.
func step(pod *corev1.Pod) string {
	parts := []string{string(pod.Status.Phase)}
	if pod.DeletionTimestamp != nil {
		parts = append(parts, "deleted")
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		parts = append(parts, fmt.Sprintf("%s %s restarts=%d", status.Name, state(status.State), status.RestartCount))
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			parts = append(parts, fmt.Sprintf("Ready=%s(%s)", condition.Status, condition.Reason))
		}
	}
	return strings.Join(parts, "; ")
}

func state(state corev1.ContainerState) string {
	switch {
	case state.Running != nil:
		return "running"
	case state.Terminated != nil:
		return fmt.Sprintf("terminated(%s %d)", state.Terminated.Reason, state.Terminated.ExitCode)
	case state.Waiting != nil:
		return fmt.Sprintf("waiting(%s)", state.Waiting.Reason)
	default:
		return "unknown"
	}
}
