package parity

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Difference is a field that two nodes show differently. An absent one is
// [Absent].
type Difference struct {
	Case, Field, Kubelet, Krustlet string
	// Recurs says of a step that both nodes showed that state, after other
	// numbers of restarts: the loop is the same, what was seen of it is not.
	Recurs bool
}

// Absent stands for a field that a node does not show.
const Absent = "(absent)"

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s\n\tkubelet:  %s\n\tkrustlet: %s", d.Case, d.Field, d.Kubelet, d.Krustlet)
}

// Allowed is a difference that is meant. Case and Field are patterns of
// path.Match, or texts with `**` for any text between; Kubelet and Krustlet are patterns too, and
// empty ones fit all.
type Allowed struct {
	Case, Field, Kubelet, Krustlet string
	// Why it is right or cannot be helped.
	Why string
	// Chance says that timing decides whether it occurs: what one patch of the
	// status holds, or how often a thing was told in a while. One that is not
	// by chance must occur.
	Chance bool
	// Recurs says that only steps are allowed that recur.
	Recurs bool
}

// Fits tells whether it allows a difference.
func (a Allowed) Fits(d Difference) bool {
	return fits(a.Case, d.Case) && fits(a.Field, d.Field) && fits(a.Kubelet, d.Kubelet) && fits(a.Krustlet, d.Krustlet) &&
		(d.Recurs || !a.Recurs)
}

func fits(pattern, text string) bool {
	if pattern == "" {
		return true
	}
	if strings.Contains(pattern, "**") {
		return anywhere(pattern, text)
	}
	matched, err := path.Match(pattern, text)
	return err == nil && matched || pattern == text
}

// anywhere matches patterns with `**`: the parts between them occur in this order,
// the first at the start and the last at the end. Within them `*` is no pattern.
func anywhere(pattern, text string) bool {
	parts := strings.Split(pattern, "**")
	last := len(parts) - 1
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	for _, part := range parts[1:last] {
		at := strings.Index(text, part)
		if at < 0 {
			return false
		}
		text = text[at+len(part):]
	}
	return strings.HasSuffix(text, parts[last])
}

// Compare tells how what krustlet showed differs from what the kubelet showed.
func Compare(name string, kubelet, krustlet *Seen) ([]Difference, error) {
	theirs, err := kubelet.Fields()
	if err != nil {
		return nil, err
	}
	ours, err := krustlet.Fields()
	if err != nil {
		return nil, err
	}
	var found []Difference
	add := func(field, theirs, ours string) {
		if theirs != ours {
			found = append(found, Difference{Case: name, Field: field, Kubelet: theirs, Krustlet: ours})
		}
	}
	for _, field := range slices.Sorted(maps.Keys(union(theirs, ours))) {
		add(field, or(theirs, field), or(ours, field))
	}
	for _, step := range distinct(slices.Concat(kubelet.Steps, krustlet.Steps)) {
		theirs, ours := times(kubelet.Steps, step), times(krustlet.Steps, step)
		if theirs != ours {
			recurs := hasState(kubelet.Steps, step) && hasState(krustlet.Steps, step)
			found = append(found, Difference{name, "steps/" + step, theirs, ours, recurs})
		}
	}
	// What both went through, they went through in one order.
	common := func(steps, other []string) string {
		return strings.Join(slices.DeleteFunc(distinct(steps), func(step string) bool {
			return !slices.Contains(other, step)
		}), "\n")
	}
	add("order of steps", common(kubelet.Steps, krustlet.Steps), common(krustlet.Steps, kubelet.Steps))
	return found, nil
}

// Judge tells which differences no entry allows, and which entries that are not
// by chance allowed none.
func Judge(differences []Difference, table []Allowed) (unlisted []Difference, idle []Allowed) {
	used := make([]bool, len(table))
	for _, difference := range differences {
		listed := false
		for i, allowed := range table {
			if allowed.Fits(difference) {
				used[i], listed = true, true
			}
		}
		if !listed {
			unlisted = append(unlisted, difference)
		}
	}
	for i, allowed := range table {
		if !used[i] && !allowed.Chance {
			idle = append(idle, allowed)
		}
	}
	return unlisted, idle
}

func or(fields map[string]string, key string) string {
	if value, ok := fields[key]; ok {
		return value
	}
	return Absent
}

func union(one, other map[string]string) map[string]string {
	all := maps.Clone(one)
	maps.Copy(all, other)
	return all
}

// distinct are the texts without later repetitions.
func distinct(texts []string) []string {
	var found []string
	for _, text := range texts {
		if !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	return found
}

var restarts = regexp.MustCompile(`restarts=\d+`)

// hasState tells whether a step is among these, whatever the numbers of restarts.
func hasState(steps []string, step string) bool {
	return slices.ContainsFunc(steps, func(other string) bool {
		return restarts.ReplaceAllString(other, "") == restarts.ReplaceAllString(step, "")
	})
}

func times(steps []string, step string) string {
	if slices.Contains(steps, step) {
		return "seen"
	}
	return Absent
}
