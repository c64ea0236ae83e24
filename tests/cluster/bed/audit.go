package bed

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
)

// Request is one line of the audit log, as far as it is of use here.
type Request struct {
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	Verb   string `json:"verb"`
	URI    string `json:"requestURI"`
	Status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"responseStatus"`
}

func (r Request) String() string {
	return fmt.Sprintf("%s: %s %s: %d %s", r.User.Username, r.Verb, r.URI, r.Status.Code, r.Status.Message)
}

// Refused are the requests of these users that were answered with 403 since
// the cluster started.
func (b *Bed) Refused(users ...string) ([]Request, error) {
	file, err := os.Open(b.cluster.AuditLog())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return refused(file, users)
}

func refused(log io.Reader, users []string) ([]Request, error) {
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
		if request.Status.Code == http.StatusForbidden && slices.Contains(users, request.User.Username) {
			found = append(found, request)
		}
	}
}
