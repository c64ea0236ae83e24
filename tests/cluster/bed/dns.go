package bed

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"krustlet.dev/tests/cluster/room"
)

// Domain is the cluster's domain.
const Domain = "cluster.local"

// dnsHost is the last byte of the name server's address.
const dnsHost = 9

// DNS starts the cluster's name server, CoreDNS, for one test, and returns its
// address. It need not answer yet.
func (b *Bed) DNS(t testing.TB) netip.Addr {
	t.Helper()
	address, err := b.cluster.Room.AddAddress(dnsHost)
	if err != nil {
		t.Fatal(err)
	}
	corefile := filepath.Join(b.Dir, "Corefile")
	text := fmt.Sprintf(`%s:53 {
    bind %s
    errors
    log
    kubernetes %s {
        kubeconfig %s
    }
}
`, Domain, address, Domain, b.cluster.AdminKubeconfig())
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process, err := b.cluster.Room.Start(room.Command{
		Name: "coredns", Path: b.cluster.Program("coredns"), Args: []string{"-conf", corefile},
		Log: filepath.Join(b.Dir, "coredns.log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Kill()
		if t.Failed() {
			if text, err := os.ReadFile(filepath.Join(b.Dir, "coredns.log")); err == nil {
				t.Logf("coredns: %s", text)
			}
		}
	})
	return address
}
