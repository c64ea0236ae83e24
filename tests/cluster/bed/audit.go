package bed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/controlplane"
)

// Request is one line of the audit log, as far as it is of use here.
type Request struct {
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	Received time.Time `json:"requestReceivedTimestamp"`
	Verb     string    `json:"verb"`
	URI      string    `json:"requestURI"`
	Status   struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Details struct {
			Causes []metav1.StatusCause `json:"causes"`
		} `json:"details"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
}

// lag is how long the node authorizer may take to hear of a pod that its node
// has heard of already: each follows a watch of its own. Agents ask again.
const lag = 10 * time.Second

// ofPods are the requests for what belongs to a node only by its pods: named
// secrets and config maps, and tokens of service accounts.
var ofPods = regexp.MustCompile(`^/api/v1/namespaces/[^/]+/(secrets|configmaps|serviceaccounts/[^/]+/token)\b`)

// isEndOfNamespace tells a refusal that is not about rights: the authorizer
// allowed the request, and then the namespace was being deleted and takes nothing
// new, from the kubelet neither. A node cannot know before it asks. Other refusals
// after the authorizer's consent do count: NodeRestriction's are among them.
// Source: API server, pkg/admission/plugin/namespace/lifecycle.
func (r Request) isEndOfNamespace() bool {
	return r.Verb == "create" && r.Annotations["authorization.k8s.io/decision"] == "allow" &&
		slices.ContainsFunc(r.Status.Details.Causes, func(cause metav1.StatusCause) bool {
			return cause.Type == corev1.NamespaceTerminatingCause
		})
}

// isLag tells whether the refusal may be the API server's being behind: the
// authorizer knows of no pod by which the object would be the node's, or
// NodeRestriction knows the pod but not yet where it was bound. Only if it takes
// that back ([Request.allows]) was it. Source: plugin/pkg/auth/authorizer/node,
// admitServiceAccount in plugin/pkg/admission/noderestriction.
func (r Request) isLag() bool {
	return ofPods.MatchString(r.URI) && (strings.Contains(r.Status.Message, "no relationship found between node") ||
		strings.Contains(r.Status.Message, "node requested token bound to a pod scheduled on a different node"))
}

// allows tells whether this answer takes the refusal back.
func (r Request) allows(refusal Request) bool {
	return r.Status.Code < 300 && r.User.Username == refusal.User.Username && r.Verb == refusal.Verb &&
		r.URI == refusal.URI && !r.Received.Before(refusal.Received) && r.Received.Sub(refusal.Received) <= lag
}

func (r Request) String() string {
	return fmt.Sprintf("%s: %s %s: %d %s", r.User.Username, r.Verb, r.URI, r.Status.Code, r.Status.Message)
}

// Refused are the requests of these users that a ready API server answered with
// 403 since the cluster started. Two kinds do not count, for no agent can avoid
// them: those of a namespace that is ending, and those that the authorizer took
// back within moments.
func (b *Bed) Refused(users ...string) ([]Request, error) {
	file, err := os.Open(b.cluster.AuditLog())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return refused(file, users, b.cluster.Starts())
}

func refused(log io.Reader, users []string, starts []controlplane.Window) ([]Request, error) {
	var found []Request
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return found, nil // a last line without its end is still being written
		}
		if err != nil {
			return nil, err
		}
		var request Request
		if err := json.Unmarshal(line, &request); err != nil {
			return nil, fmt.Errorf("%w in %.200s", err, line)
		}
		early := slices.ContainsFunc(starts, func(start controlplane.Window) bool {
			return request.Received.After(start.From) && request.Received.Before(start.To)
		})
		if !slices.Contains(users, request.User.Username) || early {
			continue
		}
		if request.Status.Code == http.StatusForbidden && !request.isEndOfNamespace() {
			found = append(found, request)
		}
		found = slices.DeleteFunc(found, func(refusal Request) bool {
			return refusal.isLag() && request.allows(refusal)
		})
	}
}
