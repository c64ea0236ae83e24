package bed

import (
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
	if len(found) != 1 || found[0].String() != "system:node:n: list /b: 403 no" {
		t.Errorf("got %v", found)
	}
}

const lagLog = `{"verb":"create","requestURI":"/token","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"no relationship found between node 'n' and this object"}}
{"verb":"create","requestURI":"/other","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"no relationship found between node 'n' and this object"}}
{"verb":"create","requestURI":"/right","requestReceivedTimestamp":"2026-11-24T03:00:00Z","user":{"username":"n"},"responseStatus":{"code":403,"message":"cannot create"}}
{"verb":"create","requestURI":"/events","user":{"username":"n"},"responseStatus":{"code":403},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"create","requestURI":"/token","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":201}}
{"verb":"create","requestURI":"/right","requestReceivedTimestamp":"2026-11-24T03:00:01Z","user":{"username":"n"},"responseStatus":{"code":201}}
{"verb":"create","requestURI":"/other","requestReceivedTimestamp":"2026-11-24T03:00:20Z","user":{"username":"n"},"responseStatus":{"code":201}}
`

func TestARefusalThatIsTakenBackAtOnceOrIsNotAboutRightsDoesNotCount(t *testing.T) {
	found, err := refused(strings.NewReader(lagLog), []string{"n"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].URI != "/other" || found[1].URI != "/right" {
		t.Errorf("got %v", found)
	}
}

func TestALineThatIsNoRequestIsAnError(t *testing.T) {
	if found, err := refused(strings.NewReader("nonsense\n"), nil, nil); err == nil {
		t.Errorf("got %v", found)
	}
}
