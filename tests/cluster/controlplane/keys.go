package controlplane

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
)

// keys are everything secret of one cluster, in one private folder.
type keys struct {
	dir     string
	cluster *Authority
}

// Names under which the folder keeps what more than one function uses.
const (
	clusterAuthority = "ca"
	proxyAuthority   = "front-proxy-ca"
	adminName        = "admin"
)

func (k *keys) file(name string) string { return filepath.Join(k.dir, name) }

// makeKeys makes the certificates that kubeadm would make for one control plane.
func makeKeys(dir, server string, addresses []netip.Addr) (*keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cluster, err := newAuthority(dir, clusterAuthority, "kubernetes-ca")
	if err != nil {
		return nil, err
	}
	proxy, err := newAuthority(dir, proxyAuthority, "front-proxy-ca")
	if err != nil {
		return nil, err
	}
	made := &keys{dir: dir, cluster: cluster}
	names := []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + domain,
	}
	type request struct {
		file  string
		issue func() (Pair, error)
	}
	for _, wanted := range []request{
		{"apiserver", func() (Pair, error) { return cluster.Server("kube-apiserver", names, addresses) }},
		// What it may do is in manifests/bootstrap.yaml.
		{"apiserver-kubelet-client", func() (Pair, error) { return cluster.Client(kubeletClient) }},
		{"front-proxy-client", func() (Pair, error) { return proxy.Client("front-proxy-client") }},
	} {
		pair, err := wanted.issue()
		if err != nil {
			return nil, err
		}
		if err := pair.write(dir, wanted.file); err != nil {
			return nil, err
		}
	}
	if err := writeTokenKey(dir); err != nil {
		return nil, err
	}
	for _, user := range []struct{ file, name, group string }{
		{adminName, "kubernetes-admin", "system:masters"},
		{"controller-manager", "system:kube-controller-manager", ""},
		{"scheduler", "system:kube-scheduler", ""},
	} {
		var groups []string
		if user.group != "" {
			groups = []string{user.group}
		}
		if _, err := made.writeKubeconfig(server, user.file, user.name, groups...); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// bootstrapToken is a token by which a node asks for its certificate:
// six characters that name it, a dot, and sixteen that are secret.
type bootstrapToken struct{ id, secret string }

func newBootstrapToken() bootstrapToken {
	random := make([]byte, 11)
	_, _ = rand.Read(random) // never fails (crypto/rand)
	return bootstrapToken{id: hex.EncodeToString(random[:3]), secret: hex.EncodeToString(random[3:])}
}

func (t bootstrapToken) String() string { return t.id + "." + t.secret }
