package bench

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Ports of the servers of connections.
const (
	sinkPort   = 7001
	sourcePort = 7002
	echoPort   = 7003
)

// peer is one of the two that clients call: the guests, or native programs.
type peer struct {
	name  string
	at    map[string]netip.Addr // by what is done there
	spent func() time.Duration  // CPU time of all its servers
}

// work is what a native client does with a server.
type work struct {
	name, server string
	port         uint16
	client       []string // the client's command, and what follows the address
	unit         string
	scale        float64
}

// BenchmarkTCP compares a guest that sends, takes and echoes bytes with a native
// program that does the same, called by the same clients and by one way.
func BenchmarkTCP(b *testing.B) {
	s := alone(b)
	// A client's ports would be used up by connections that were closed lately.
	s.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse")
	guests := s.pods(
		guest{"sink", "net", []string{"tcp-sink", strconv.Itoa(sinkPort)}, nil},
		guest{"source", "net", []string{"tcp-source", strconv.Itoa(sourcePort)}, nil},
		guest{"echo", "net", []string{"tcp-echo", strconv.Itoa(echoPort)}, nil},
	)
	var pids []int
	natives := map[string]netip.Addr{}
	for name, port := range map[string]uint16{"sink": sinkPort, "source": sourcePort, "echo": echoPort} {
		at := portOf(nativePlace, port)
		pids = append(pids, s.beside(at, s.native, "tcp-"+name, at.String()).Pid())
		natives[name] = nativePlace
	}
	peers := []peer{
		{"guest", guests, s.sandboxes},
		{"native", natives, func() time.Duration { return s.clock(pids...) }},
	}
	seconds := strconv.FormatFloat(duration.Seconds(), 'f', -1, 64)
	for _, work := range []work{
		{"to the server", "sink", sinkPort, []string{"send", seconds}, "MiB/s", 1 << 20},
		{"from the server", "source", sourcePort, []string{"receive", seconds}, "MiB/s", 1 << 20},
		{"one client", "echo", echoPort, []string{"connections", "1", seconds}, "connections/s", 1},
		{"32 clients", "echo", echoPort, []string{"connections", "32", seconds}, "connections/s", 1},
	} {
		s.compare(peers, work)
	}
}

// compare has both do the same work in turn, and prints what came of it.
func (s *standalone) compare(peers []peer, work work) {
	s.b.Helper()
	// Of each peer, a figure of each round: the rate, p50 and p99 in milliseconds
	// where the client tells them, and the CPU time in percent of one processor.
	rates, p50, p99, cpu := make([][]float64, 2), make([][]float64, 2), make([][]float64, 2), make([][]float64, 2)
	for round := range *rounds {
		for turn := range peers {
			i := (round + turn) % len(peers)
			at := portOf(peers[i].at[work.server], work.port)
			args := append([]string{work.client[0], at.String()}, work.client[1:]...)
			before := peers[i].spent()
			figures, err := numbers(s.run(s.native, args...))
			if err != nil {
				s.b.Fatal(err)
			}
			rates[i] = append(rates[i], figures[0]/work.scale)
			cpu[i] = append(cpu[i], 100*(peers[i].spent()-before).Seconds()/duration.Seconds())
			if len(figures) == 3 {
				p50[i], p99[i] = append(p50[i], figures[1]/1000), append(p99[i], figures[2]/1000)
			}
		}
	}
	say("\n%s, %d rounds of %s, in turn: median (least to greatest)", work.name, *rounds, *duration)
	for i, peer := range peers {
		say("  %-8s %s %s; servers' CPU, %% of one %s", peer.name, work.unit, few(rates[i]), few(cpu[i]))
		if len(p50[i]) > 0 {
			say("  %-8s connect to closed: p50 ms %s, p99 ms %s", "", few(p50[i]), few(p99[i]))
		}
	}
	of := against(rates[0], rates[1])
	say("  guest / native: %s", ratio(of))
	s.b.ReportMetric(summarize(of).p50, "of-native-"+strings.ReplaceAll(work.name, " ", "-"))
}

// numbers reads the one line that a native client prints.
func numbers(said string) ([]float64, error) {
	var figures []float64
	for _, field := range strings.Fields(said) {
		number, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return nil, err
		}
		figures = append(figures, number)
	}
	if len(figures) == 0 {
		return nil, errors.New("the client said nothing")
	}
	return figures, nil
}
