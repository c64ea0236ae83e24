package parity

import (
	"maps"
	"regexp"
	"strings"
)

// asked are the fields of `kubectl describe pod` that repeat what was asked for,
// or where the pod came to be; they are no node's to decide.
var asked = []string{
	"Name", "Namespace", "Priority", "Runtime Class Name", "Service Account", "Node", "Labels", "Annotations",
	"Controlled By", "Volumes", "Node-Selectors", "Tolerations",
}

var (
	field  = regexp.MustCompile(`^( *)(<pod>|[^\s:][^:]*):(?:\s+(.*))?$`)
	spaces = regexp.MustCompile(`\s+`)
	// Columns: type, reason, age, from, message; two spaces or more between them.
	event = regexp.MustCompile(`^\s+(Normal|Warning)\s{2,}(\S+)\s{2,}(?:\S+|\S+ \(.*?\))\s{2,}(\S+)\s{2,}\S`)
)

// Described is the text of `kubectl describe pod` by field. Rows of the table of
// events become who told it, by type and reason; the scheduler's are left out.
func (n *Names) Described(text string) map[string]string {
	found := map[string]string{}
	// The keys of the fields around the line, and how far they are indented.
	type level struct {
		indent int
		key    string
	}
	var path []level
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(n.Plain(line), " \t")
		if line == "" {
			continue
		}
		if row := event.FindStringSubmatch(line); row != nil {
			if row[2] != "Scheduled" && row[2] != "FailedScheduling" {
				found["Events/"+row[1]+" "+row[2]] = row[3]
			}
			continue
		}
		indent := len(line) - len(strings.TrimLeft(line, " "))
		for len(path) > 0 && path[len(path)-1].indent >= indent {
			path = path[:len(path)-1]
		}
		keys := make([]string, 0, len(path)+1)
		for _, level := range path {
			keys = append(keys, level.key)
		}
		if match := field.FindStringSubmatch(line); match != nil {
			path = append(path, level{indent, match[2]})
			key := strings.Join(append(keys, match[2]), "/")
			switch match[2] {
			case "IP", "IPs", "Host IP", "Host IPs":
				found[key] = "<address>"
			default:
				found[key] = spaces.ReplaceAllString(match[3], " ")
			}
			continue
		}
		// A further line of the field's value, such as an argument.
		key := strings.Join(keys, "/")
		found[key] = strings.TrimSpace(found[key] + " " + spaces.ReplaceAllString(strings.TrimSpace(line), " "))
	}
	maps.DeleteFunc(found, func(key, _ string) bool {
		for _, name := range asked {
			if key == name || strings.HasPrefix(key, name+"/") {
				return true
			}
		}
		// The table's head, and what was told and how long ago: see Seen.Events.
		return key == "Events"
	})
	return found
}
