package bed

import (
	"slices"
	"strings"
	"testing"
	"time"

	"krustlet.dev/tests/cluster/controlplane"
)

const auditLog = `{"verb":"get","requestURI":"/a","user":{"username":"system:node:n"},"responseStatus":{"code":200}}
{"verb":"list","requestURI":"/b","user":{"username":"system:node:n"},"responseStatus":{"code":403,"message":"no"}}
{"verb":"list","requestURI":"/e","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"system:node:n"},"responseStatus":{"code":403}}
{"verb":"list","requestURI":"/c","user":{"username":"someone"},"responseStatus":{"code":403}}
{"verb":"list","requestURI":"/d","user":{"username":"system:node:n"},"responseSt`

func TestOnlyRefusedRequestsOfTheUsersAreFound(t *testing.T) {
	start := controlplane.Window{
		From: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 24, 3, 0, 5, 0, time.UTC),
	}
	found, err := refused(strings.NewReader(auditLog), []string{"system:node:n"}, []controlplane.Window{start})
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Counted) != 1 || found.Counted[0].String() != "system:node:n: list /b: 403 no" {
		t.Errorf("got %v", found.Counted)
	}
	if tally := found.Excused[Starting]; tally != (Tally{1, 1}) {
		t.Errorf("while the API server was starting: %v", tally)
	}
}

// Refusals that no agent can avoid, each beside those that look like them.
const excusedLog = `{"verb":"create","requestURI":"/api/v1/namespaces/a/serviceaccounts/default/token","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"no relationship found between node 'n' and this object"}}
{"verb":"create","requestURI":"/api/v1/namespaces/b/serviceaccounts/default/token?","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"node requested token bound to a pod scheduled on a different node"}}
{"verb":"create","requestURI":"/api/v1/namespaces/b/serviceaccounts/default/token?","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":201}}
{"verb":"get","requestURI":"/api/v1/namespaces/a/secrets/late","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"no relationship found between node 'n' and this object"}}
{"verb":"get","requestURI":"/api/v1/persistentvolumes/other-kind","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"no relationship found between node 'n' and this object"}}
{"verb":"get","requestURI":"/api/v1/namespaces/a/configmaps/right","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"cannot get"}}
{"verb":"create","requestURI":"/api/v1/namespaces/a/events","user":{"username":"n"},"responseStatus":{"code":403,"details":{"causes":[{"reason":"NamespaceTerminating","message":"namespace a is being terminated"}]}},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"create","requestURI":"/api/v1/namespaces/b/events","user":{"username":"n"},"responseStatus":{"code":403,"details":{"causes":[{"reason":"NamespaceTerminating"}]}},"annotations":{"authorization.k8s.io/decision":"forbid"}}
{"verb":"patch","requestURI":"/api/v1/nodes/n","user":{"username":"n"},"responseStatus":{"code":403,"message":"is not allowed to modify taints"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"create","requestURI":"/api/v1/namespaces/a/serviceaccounts/default/token","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":201}}
{"verb":"get","requestURI":"/api/v1/persistentvolumes/other-kind","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":200}}
{"verb":"get","requestURI":"/api/v1/namespaces/a/configmaps/right","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":200}}
{"verb":"get","requestURI":"/api/v1/namespaces/a/secrets/late","requestReceivedTimestamp":"2026-11-24T03:00:20Z","user":{"username":"n"},"responseStatus":{"code":200}}
`

func TestOnlyRefusalsThatNoAgentCanAvoidDoNotCount(t *testing.T) {
	found, err := refused(strings.NewReader(excusedLog), []string{"n"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, request := range found.Counted {
		got = append(got, request.URI)
	}
	want := []string{
		"/api/v1/namespaces/a/secrets/late", "/api/v1/persistentvolumes/other-kind",
		"/api/v1/namespaces/a/configmaps/right", "/api/v1/namespaces/b/events", "/api/v1/nodes/n",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	const told = "5 requests refused; excused: 0 of 0 of an API server that was starting, " +
		"1 of 6 in namespaces that were ending, 2 of 8 taken back within moments"
	if found.String() != told {
		t.Errorf("got %q, want %q", found, told)
	}
}

func TestExcusesThatAreNeededOftenAreNone(t *testing.T) {
	found := Refusals{Excused: map[Excuse]Tally{
		Starting: {50, 50}, Ending: {35, 100}, Lagging: {20, 90},
	}}
	if got := found.Excesses(); len(got) != 1 || !strings.Contains(got[0], "taken back") {
		t.Errorf("got %q", got)
	}
	found.Excused[Ending] = Tally{36, 100}
	if got := found.Excesses(); len(got) != 2 || !strings.Contains(got[0], "36 of 100 requests were refused in namespaces that were ending, more than 35") {
		t.Errorf("got %q", got)
	}
}

func TestALineThatIsNoRequestIsAnError(t *testing.T) {
	if found, err := refused(strings.NewReader("nonsense\n"), nil, nil); err == nil {
		t.Errorf("got %v", found)
	}
}
