package bed

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"krustlet.dev/tests/cluster/room"
)

// NameServers are addresses of the nodes' network at which one CoreDNS answers by
// a configuration of the test's own.
type NameServers struct {
	log string
}

// NameServers starts CoreDNS for one test, at these addresses, which become the
// room's own. It need not answer yet.
func (b *Bed) NameServers(t testing.TB, corefile string, addresses ...netip.Addr) *NameServers {
	t.Helper()
	for _, address := range addresses {
		b.IP(t, "address", "add", address.String()+"/32", "dev", "lo")
		t.Cleanup(func() { b.IP(t, "address", "delete", address.String()+"/32", "dev", "lo") })
	}
	config := filepath.Join(b.Dir, "nameservers.conf")
	if err := os.WriteFile(config, []byte(corefile), 0o644); err != nil {
		t.Fatal(err)
	}
	servers := &NameServers{log: filepath.Join(b.Dir, "nameservers.log")}
	process, err := b.cluster.Room.Start(room.Command{
		Name: "coredns", Path: b.cluster.Program("coredns"), Args: []string{"-conf", config}, Log: servers.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Kill()
		if t.Failed() {
			t.Logf("coredns: %s", process.Tail())
		}
	})
	return servers
}

// question is a line of the log: who asks for the A records of which name, and how.
var question = regexp.MustCompile(`(\S+):\d+ - \d+ "A IN (\S+)\. (udp|tcp) `)

// Question is one that was asked.
type Question struct{ Name, By string }

// Asked are the questions for IPv4 addresses that came from an address, in the order
// in which they were answered.
func (s *NameServers) Asked(t testing.TB, from netip.Addr) []Question {
	t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	var all []Question
	for _, found := range question.FindAllStringSubmatch(string(text), -1) {
		if found[1] == from.String() {
			all = append(all, Question{Name: found[2], By: found[3]})
		}
	}
	return all
}
