package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"krustlet.dev/tests/cluster/room"
)

// pause between two looks at something that is starting.
const pause = 100 * time.Millisecond

// retry calls try until it succeeds, the process it depends on ends, or the
// context does.
func retry(ctx context.Context, process *room.Process, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; the end of its log:\n%s", process.Name, err, process.Tail())
		case <-process.Done():
			_, ended := process.Running()
			return ended
		case <-time.After(pause):
		}
	}
}

// answers waits until a GET of the URL is answered with 200.
func (c *Cluster) answers(ctx context.Context, process *room.Process, url string) error {
	return answers(ctx, process, c.Authority(), url)
}

// answers does so for a server that this authority vouches for.
func answers(ctx context.Context, process *room.Process, authorityFile, url string) error {
	authority, err := os.ReadFile(authorityFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	return retry(ctx, process, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
			return fmt.Errorf("%s: %s: %s", url, response.Status, body)
		}
		return nil
	})
}

func kubectl(ctx context.Context, program, kubeconfig, input string, args ...string) (string, error) {
	stdout, stderr := &strings.Builder{}, &strings.Builder{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "HOME=" + os.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
