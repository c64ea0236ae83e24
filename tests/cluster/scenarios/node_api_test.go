package scenarios

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"krustlet.dev/tests/cluster/bed"
	"krustlet.dev/tests/cluster/controlplane"
)

// visitor asks a node's own API, as who it shows itself.
type visitor struct {
	token       string
	certificate *controlplane.Pair
}

// ask asks for a path, and returns the answer's status and text.
func (v visitor) ask(t *testing.T, node *bed.Node, path string) (int, string, error) {
	t.Helper()
	// The node signed its certificate itself: this is it.
	own, err := os.ReadFile(filepath.Join(node.Root, "pki", "kubelet.crt"))
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(own) {
		t.Fatal("kubelet.crt holds no certificate")
	}
	if v.certificate != nil {
		pair, err := tls.X509KeyPair(v.certificate.Certificate, v.certificate.Key)
		if err != nil {
			t.Fatal(err)
		}
		// Shown also to a server that says that it takes no such authority's.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	url := fmt.Sprintf("https://%s:%d%s", node.Address, node.Port, path)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.token != "" {
		request.Header.Set("Authorization", "Bearer "+v.token)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: limit}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// account makes a ServiceAccount that may get these parts of nodes, and returns
// a token of it.
func account(t *testing.T, b *bed.Bed, namespace, name string, audiences []string, parts ...string) string {
	t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	accounts := b.Client.CoreV1().ServiceAccounts(namespace)
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := accounts.CreateToken(t.Context(), name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(parts) > 0 {
		allow(t, b, namespace+"-"+name, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}, parts...)
	}
	return token.Status.Token
}

// allow lets somebody get these parts of nodes until the test ends.
func allow(t *testing.T, b *bed.Bed, name string, who rbacv1.Subject, parts ...string) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	rbac := b.Client.RbacV1()
	role, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: meta,
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: parts, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Whoever removes the role removes the binding.
	meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole", Name: name, UID: role.UID}}
	if _, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{who},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rbac.ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// TestTheNodesAPIKnowsWhoAsks: the API server says who a token's holder is
// (TokenReview) and what anybody may do (SubjectAccessReview).
func TestTheNodesAPIKnowsWhoAsks(t *testing.T) {
	b := bed.Start(t)
	node := b.Node(t)
	ns := b.Namespace(t)
	same(t, "log", output(t, b, ns, on(node, wasmPod("talker", b.Image(t, "hello.wasm"), "args", "said"))), "said\n")
	certificate := func(pair controlplane.Pair, err error) *controlplane.Pair {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return &pair
	}
	cluster := b.Cluster()
	stranger, _, err := cluster.NewAuthority("strangers-ca")
	if err != nil {
		t.Fatal(err)
	}
	allow(t, b, ns+"-ann", rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "ann"}, "nodes/proxy")
	reader := account(t, b, ns, "reader", nil, "nodes/proxy")
	for _, one := range []struct {
		name string
		who  visitor
		want int
		says string
	}{
		{"a token whose holder may", visitor{token: reader}, http.StatusOK, "said\n"},
		{
			"a token whose holder may not", visitor{token: account(t, b, ns, "nobody", nil)}, http.StatusForbidden,
			"Forbidden (user=system:serviceaccount:" + ns + ":nobody, verb=get, resource=nodes, subresource(s)=[proxy])",
		},
		{
			// The logs of containers are not those of the node.
			"a token whose holder may something else", visitor{token: account(t, b, ns, "other", nil, "nodes/log", "nodes/stats")},
			http.StatusForbidden, "subresource(s)=[proxy]",
		},
		{"nothing", visitor{}, http.StatusUnauthorized, "Unauthorized"},
		{"a text that is no token", visitor{token: "nonsense"}, http.StatusUnauthorized, "Unauthorized"},
		{"a token with another signature", visitor{token: forged(reader)}, http.StatusUnauthorized, "Unauthorized"},
		{
			"a token for others than the API server",
			visitor{token: account(t, b, ns, "elsewhere", []string{"somebody"}, "nodes/proxy")}, http.StatusUnauthorized, "Unauthorized",
		},
		{"a certificate whose user may", visitor{certificate: certificate(cluster.ClientCertificate("ann"))}, http.StatusOK, "said\n"},
		{
			"a certificate whose user may not", visitor{certificate: certificate(cluster.ClientCertificate("bob"))},
			http.StatusForbidden, "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[proxy])",
		},
	} {
		t.Run(one.name, func(t *testing.T) {
			code, text, err := one.who.ask(t, node, "/containerLogs/"+ns+"/talker/"+containerName)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "status", code, one.want)
			if !strings.Contains(text, one.says) {
				t.Errorf("it says %q, not %q", text, one.says)
			}
		})
	}

	// A kubelet takes the connection and answers 401; here there is none, whatever
	// else the client shows.
	t.Run("a certificate of another authority", func(t *testing.T) {
		pair := certificate(stranger.Client("kubernetes-admin", "system:masters"))
		for name, who := range map[string]visitor{"alone": {certificate: pair}, "with a token": {certificate: pair, token: reader}} {
			code, text, err := who.ask(t, node, "/containerLogs/"+ns+"/talker/"+containerName)
			if err == nil || !strings.Contains(err.Error(), "tls: ") {
				t.Errorf("%s: %d %q, %v", name, code, text, err)
			}
		}
	})
}

// forged is a token with a signature that does not fit.
func forged(token string) string {
	middle := strings.LastIndexByte(token, '.') + 10
	other := byte('A')
	if token[middle] == other {
		other = 'B'
	}
	return token[:middle] + string(other) + token[middle+1:]
}
