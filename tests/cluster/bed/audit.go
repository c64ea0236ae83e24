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

// An Excuse is why a refusal does not count: no agent can avoid it.
type Excuse string

// All excuses there are.
const (
	// Starting is that the API server was not ready: it knew no pods yet.
	Starting Excuse = "of an API server that was starting"
	// Ending is that the namespace was ending.
	Ending Excuse = "in namespaces that were ending"
	// Lagging is that the authorizer took the refusal back within moments.
	Lagging Excuse = "taken back within moments"
)

// Tally is how often an excuse was needed.
type Tally struct {
	Excused int
	// Requests are all that might have needed it.
	Requests int
}

// bounded are the excuses that are no accidents if they are needed often, and by
// what part of the requests that is. While the API server starts it may refuse all.
var bounded = []struct {
	excuse Excuse
	part   int
}{
	// A pod that runs when its namespace ends has asked for a token and told of its
	// image, its making and its start; that it is killed is refused: one in five.
	{Ending, 4},
	{Lagging, 10},
}

// few is how often an excuse may be needed however short the run.
const few = 10

// Refusals are the requests of some users that a ready API server answered with 403.
type Refusals struct {
	// Counted are those without an excuse.
	Counted []Request
	Excused map[Excuse]Tally
}

// Excesses tell of excuses that were needed too often.
func (r Refusals) Excesses() []string {
	var found []string
	for _, one := range bounded {
		tally := r.Excused[one.excuse]
		if most := few + tally.Requests/one.part; tally.Excused > most {
			found = append(found, fmt.Sprintf("%d of %d requests were refused %s, more than %d",
				tally.Excused, tally.Requests, one.excuse, most))
		}
	}
	return found
}

func (r Refusals) String() string {
	var parts []string
	for _, excuse := range []Excuse{Starting, Ending, Lagging} {
		tally := r.Excused[excuse]
		parts = append(parts, fmt.Sprintf("%d of %d %s", tally.Excused, tally.Requests, excuse))
	}
	return fmt.Sprintf("%d requests refused; excused: %s", len(r.Counted), strings.Join(parts, ", "))
}

// Refused are the refusals of these users' requests since the cluster started.
func (b *Bed) Refused(users ...string) (Refusals, error) {
	file, err := os.Open(b.cluster.AuditLog())
	if err != nil {
		return Refusals{}, err
	}
	defer file.Close()
	return refused(file, users, b.cluster.Starts())
}

func refused(log io.Reader, users []string, starts []controlplane.Window) (Refusals, error) {
	found := Refusals{Excused: map[Excuse]Tally{}}
	tell := func(excuse Excuse, excused int) {
		tally := found.Excused[excuse]
		found.Excused[excuse] = Tally{tally.Excused + excused, tally.Requests + 1}
	}
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return found, nil // a last line without its end is still being written
		}
		if err != nil {
			return Refusals{}, err
		}
		var request Request
		if err := json.Unmarshal(line, &request); err != nil {
			return Refusals{}, fmt.Errorf("%w in %.200s", err, line)
		}
		if !slices.Contains(users, request.User.Username) {
			continue
		}
		isRefusal := request.Status.Code == http.StatusForbidden
		counted := 0
		if isRefusal {
			counted = 1
		}
		early := slices.ContainsFunc(starts, func(start controlplane.Window) bool {
			return request.Received.After(start.From) && request.Received.Before(start.To)
		})
		if early {
			tell(Starting, counted)
			continue
		}
		if request.Verb == "create" {
			if isRefusal && request.isEndOfNamespace() {
				tell(Ending, 1)
				continue
			}
			tell(Ending, 0)
		}
		taken := len(found.Counted)
		found.Counted = slices.DeleteFunc(found.Counted, func(refusal Request) bool {
			return refusal.isLag() && request.allows(refusal)
		})
		taken -= len(found.Counted)
		if ofPods.MatchString(request.URI) {
			tell(Lagging, taken)
		}
		if isRefusal {
			found.Counted = append(found.Counted, request)
		}
	}
}
