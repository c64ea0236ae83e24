package controlplane

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/netip"
	"os"
	"testing"
)

func TestANodesKubeconfigNamesTheNodeAndIsSignedByTheCluster(t *testing.T) {
	dir := t.TempDir()
	keys, err := makeKeys(dir+"/pki", "https://198.18.1.1:6443", []netip.Addr{netip.MustParseAddr("198.18.1.1")})
	if err != nil {
		t.Fatal(err)
	}
	path, err := NodeKubeconfig(dir, "https://198.18.1.1:6443", "wasm-1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(config.Users[0].User.Certificate)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if name := certificate.Subject; name.CommonName != "system:node:wasm-1" || len(name.Organization) != 1 || name.Organization[0] != "system:nodes" {
		t.Errorf("subject is %v", name)
	}
	roots := x509.NewCertPool()
	roots.AddCert(keys.cluster.certificate)
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
}

func TestSecretsAreNotReadableByOthers(t *testing.T) {
	dir := t.TempDir() + "/pki"
	if _, err := makeKeys(dir, "https://198.18.1.1:6443", nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("%s has mode %v", dir, info.Mode())
	}
}
