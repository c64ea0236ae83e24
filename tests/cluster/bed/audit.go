package bed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

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
	} `json:"responseStatus"`
}

func (r Request) String() string {
	return fmt.Sprintf("%s: %s %s: %d %s", r.User.Username, r.Verb, r.URI, r.Status.Code, r.Status.Message)
}

// Refused are the requests of these users that a ready API server answered with
// 403 since the cluster started.
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
		if request.Status.Code == http.StatusForbidden && slices.Contains(users, request.User.Username) && !early {
			found = append(found, request)
		}
	}
}
