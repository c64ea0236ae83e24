package parity

import (
	"slices"
	"testing"
)

func seen(field, value string, steps ...string) *Seen {
	return &Seen{Events: map[string]string{field: value}, Steps: steps}
}

func compare(t *testing.T, kubelet, krustlet *Seen) []Difference {
	t.Helper()
	found, err := Compare("case", kubelet, krustlet)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWhatIsTheSameIsNoDifference(t *testing.T) {
	if found := compare(t, seen("Pulled", "x", "Pending", "Running"), seen("Pulled", "x", "Pending", "Running")); len(found) != 0 {
		t.Errorf("got %v", found)
	}
}

func TestEachFieldAndStepThatDiffersIsFound(t *testing.T) {
	found := compare(t,
		&Seen{Events: map[string]string{"a": "1", "b": "2"}, Steps: []string{"Pending", "Running"}},
		&Seen{Events: map[string]string{"a": "1", "b": "3", "c": "4"}, Steps: []string{"Running"}})
	want := []Difference{
		{Case: "case", Field: "events/b", Kubelet: "2", Krustlet: "3"},
		{Case: "case", Field: "events/c", Kubelet: Absent, Krustlet: "4"},
		{Case: "case", Field: "steps/Pending", Kubelet: "seen", Krustlet: Absent},
	}
	if !slices.Equal(found, want) {
		t.Errorf("got %v", found)
	}
}

func TestTheOrderOfCommonStepsIsCompared(t *testing.T) {
	found := compare(t, seen("a", "1", "one", "two"), seen("a", "1", "two", "one"))
	if len(found) != 1 || found[0].Field != "order of steps" {
		t.Errorf("got %v", found)
	}
}

// A loop shows the same states again and again, and not all of them are seen.
func TestAStateOfALoopIsKnownByItsOtherRounds(t *testing.T) {
	found := compare(t,
		seen("a", "1", "runs restarts=0", "ended(1) restarts=0", "runs restarts=1"),
		seen("a", "1", "runs restarts=0", "ended(1) restarts=1", "ended(2) restarts=1", "runs restarts=2"))
	loop := Allowed{Field: "steps/**", Recurs: true}
	var unlisted []string
	for _, difference := range found {
		if !loop.Fits(difference) {
			unlisted = append(unlisted, difference.Field)
		}
	}
	if len(found) != 5 || !slices.Equal(unlisted, []string{"steps/ended(2) restarts=1"}) {
		t.Errorf("%q of %v", unlisted, found)
	}
}

func TestListsAreKeyedByWhatTheyHold(t *testing.T) {
	status := func(types ...string) any {
		var conditions []any
		for _, kind := range types {
			conditions = append(conditions, map[string]any{"type": kind, "status": "True"})
		}
		return map[string]any{"conditions": conditions}
	}
	one := &Seen{Statuses: map[string]any{"x": status("Ready", "Initialized")}}
	other := &Seen{Statuses: map[string]any{"x": status("Initialized", "Ready")}}
	if found := compare(t, one, other); len(found) != 0 {
		t.Errorf("got %v", found)
	}
}

func TestADifferenceIsListedOrFailsAndAListedOneOccursOrFails(t *testing.T) {
	differences := []Difference{
		{Case: "one", Field: "events/Killing", Kubelet: "x", Krustlet: Absent},
		{Case: "two", Field: "statuses/gone/phase", Kubelet: "Failed", Krustlet: "Running"},
	}
	killing := Allowed{Case: "one", Field: "events/*"}
	phase := Allowed{Field: "statuses/**", Kubelet: "Failed", Krustlet: "Running"}
	idle := Allowed{Field: "owner/**"}
	chance := Allowed{Field: "steps/**", Chance: true}

	unlisted, unused := Judge(differences, []Allowed{killing, phase, chance})
	if len(unlisted) != 0 || len(unused) != 0 {
		t.Errorf("got %v, %v", unlisted, unused)
	}
	other := phase
	other.Krustlet = "Succeeded"
	unlisted, unused = Judge(differences, []Allowed{killing, other, idle})
	if len(unlisted) != 1 || unlisted[0].Case != "two" || len(unused) != 2 {
		t.Errorf("got %v, %v", unlisted, unused)
	}
}

func TestPatternsFit(t *testing.T) {
	for _, test := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "anything", true},
		{"events/*", "events/Killing", true},
		{"events/*", "events/a/b", false},
		{"statuses/**/exitCode", "statuses/gone/x/y/exitCode", true},
		{"statuses/**/exitCode", "statuses/gone/x/y/reason", false},
		{"a**b**c", "a1b2c", true},
		{"a**b**c", "a1c", false},
		{"**(once)**", "Normal: x (once)", true},
		{"text [with] brackets", "text [with] brackets", true},
	} {
		if got := fits(test.pattern, test.text); got != test.want {
			t.Errorf("%q on %q: got %v", test.pattern, test.text, got)
		}
	}
}
