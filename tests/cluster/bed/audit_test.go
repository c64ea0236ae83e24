package bed

import (
	"strings"
	"testing"
)

const auditLog = `{"verb":"get","requestURI":"/a","user":{"username":"system:node:n"},"responseStatus":{"code":200}}
{"verb":"list","requestURI":"/b","user":{"username":"system:node:n"},"responseStatus":{"code":403,"message":"no"}}
{"verb":"list","requestURI":"/c","user":{"username":"someone"},"responseStatus":{"code":403}}
{"verb":"list","requestURI":"/d","user":{"username":"system:node:n"},"responseSt`

func TestOnlyRefusedRequestsOfTheUsersAreFound(t *testing.T) {
	found, err := refused(strings.NewReader(auditLog), []string{"system:node:n"})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].String() != "system:node:n: list /b: 403 no" {
		t.Errorf("got %v", found)
	}
}

func TestALineThatIsNoRequestIsAnError(t *testing.T) {
	if found, err := refused(strings.NewReader("nonsense\n"), nil); err == nil {
		t.Errorf("got %v", found)
	}
}
