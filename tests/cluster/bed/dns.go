package bed

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/room"
)

// Domain is the cluster's domain.
const Domain = "cluster.local"

// dnsHost is the last byte of the name server's address.
const dnsHost = 9

// Names outside the cluster that its name server knows too: one with an address of
// each family, and a domain below which there is but one name, Gate. There are no others.
const (
	OutsideName = "www.example.test"
	OutsideV4   = "192.0.2.80"
	OutsideV6   = "2001:db8::80"
	GateDomain  = "node.example.test"
	Gate        = "gate"
	GateV4      = "192.0.2.81"
)

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
.:53 {
    bind %s
    errors
    log
%s    template IN ANY . {
        rcode NXDOMAIN
    }
}
`, Domain, address, Domain, b.cluster.AdminKubeconfig(), address, records(
		dnsRecord{OutsideName, "A", OutsideV4}, dnsRecord{OutsideName, "AAAA", OutsideV6},
		dnsRecord{Gate + "." + GateDomain, "A", GateV4}, dnsRecord{Gate + "." + GateDomain, "AAAA", ""},
	))
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

// dnsRecord is what a name has of one type; nothing, if the value is empty.
type dnsRecord struct{ name, kind, value string }

// records has CoreDNS answer for these names.
func records(all ...dnsRecord) string {
	text := &strings.Builder{}
	for _, one := range all {
		fmt.Fprintf(text, "    template IN %s %s {\n", one.kind, one.name)
		if one.value == "" {
			fmt.Fprint(text, "        rcode NOERROR\n")
		} else {
			fmt.Fprintf(text, "        answer \"{{ .Name }} 60 IN %s %s\"\n", one.kind, one.value)
		}
		fmt.Fprint(text, "    }\n")
	}
	return text.String()
}
