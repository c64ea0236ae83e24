package bed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// commandLimit bounds one call of kubectl or krustlet.
const commandLimit = 2 * time.Minute

// deleteLimit bounds the end of a namespace: thirty seconds of grace for its
// pods and the namespace controller's own pace.
const deleteLimit = 90 * time.Second

// ending is a namespace that is being deleted.
type ending struct{ name, test string }

// Kubectl runs kubectl as the administrator and returns its standard output.
// The test fails if kubectl does.
func (b *Bed) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := b.TryKubectl(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryKubectl is Kubectl where failing is one of the outcomes.
func (b *Bed) TryKubectl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	return b.cluster.Kubectl(ctx, "", args...)
}

// Apply gives a manifest to `kubectl apply`, as a person would.
func (b *Bed) Apply(t testing.TB, namespace, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	if _, err := b.cluster.Kubectl(ctx, manifest, "--namespace="+namespace, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// Follow starts a kubectl that goes on printing, such as `logs -f`, and returns
// its lines. It is killed when the test ends; the channel is closed at its end.
func (b *Bed) Follow(t testing.TB, args ...string) <-chan string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), b.cluster.Program("kubectl"), args...)
	cmd.Env = []string{"KUBECONFIG=" + b.cluster.AdminKubeconfig(), "HOME=" + os.TempDir()}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// More than any test reads; a reader that is slow holds kubectl, no more.
	lines := make(chan string, 1024)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			select {
			case lines <- scanner.Text():
			case <-t.Context().Done():
			}
		}
		_ = cmd.Wait() // killed, as a rule
	}()
	return lines
}

// Namespace makes a namespace in which pods can be created. When the test ends it
// is deleted, and pods that do not go are an error. What else is in it goes while
// other tests run: the namespace controller waits for five seconds before it begins
// (namespaceDeletionGracePeriod in pkg/controller/namespace).
func (b *Bed) Namespace(t testing.TB) string {
	t.Helper()
	made, err := b.Client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := made.Name
	t.Cleanup(func() { b.endNamespace(t, name) })
	b.WaitFor(t, "namespace "+name+" is ready for pods", time.Minute, func() error {
		if _, err := b.Client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := b.Client.CoreV1().ConfigMaps(name).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	return name
}

func (b *Bed) endNamespace(t testing.TB, name string) {
	ctx := context.Background() // the test's own has ended
	if t.Failed() {
		b.tell(ctx, t, name)
	}
	// First, so that no controller makes another pod.
	if err := b.Client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleting namespace %s: %v", name, err)
		return
	}
	pods := b.Client.CoreV1().Pods(name)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Errorf("deleting the pods of %s: %v", name, err)
	}
	for end := time.Now().Add(deleteLimit); ; time.Sleep(tick) {
		left, err := pods.List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil && len(left.Items) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("pods of namespace %s are not gone %s after its deletion (%v)", name, deleteLimit, err)
			b.tell(ctx, t, name)
			// Out of the way of the tests that follow.
			zero := int64(0)
			_ = pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{})
			return
		}
	}
	if b.measures {
		// What clears it away would be measured along with what comes next.
		if err := b.gone(name); err != nil {
			t.Error(err)
		}
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = append(b.ending, ending{name: name, test: t.Name()})
}

// allGone waits until the namespaces of tests that have ended are gone.
func (b *Bed) allGone() error {
	b.mu.Lock()
	left := b.ending
	b.mu.Unlock()
	var failed []error
	for _, one := range left {
		if err := b.gone(one.name); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", one.test, err))
		}
	}
	return errors.Join(failed...)
}

// gone waits until a namespace is.
func (b *Bed) gone(name string) error {
	for end := time.Now().Add(deleteLimit); ; time.Sleep(tick) {
		_, err := b.Client.CoreV1().Namespaces().Get(context.Background(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("namespace %s, without pods, is not gone after %s (%v)", name, deleteLimit, err)
		}
	}
}

// tell shows what is known of a namespace's pods.
func (b *Bed) tell(ctx context.Context, t testing.TB, namespace string) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	told := &strings.Builder{}
	for _, args := range [][]string{
		{"get", "pods", "--output=wide"},
		{"get", "pods", "--output=jsonpath={range .items[*]}{.metadata.name}: {.status}{\"\\n\"}{end}"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out, err := b.cluster.Kubectl(ctx, "", append([]string{"--namespace=" + namespace}, args...)...)
		if err != nil {
			out += err.Error()
		}
		fmt.Fprintf(told, "$ kubectl -n %s %s\n%s\n", namespace, strings.Join(args[:2], " "), out)
	}
	t.Log(told)
}
