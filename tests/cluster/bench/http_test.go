package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// httpPort is where each server of requests listens.
const httpPort = 8080

// asked is a server of requests.
type asked struct {
	name  string
	at    netip.AddrPort
	spent func() time.Duration // its CPU time
}

// answered is what one server did in one round.
type answered struct {
	rate     float64 // requests a second
	p50, p99 float64 // milliseconds
	cpu      float64 // microseconds of the server's CPU time for a request
}

// httpCases are the programs that are compared, and how many requests an instance answers.
var httpCases = []struct {
	name, program string
	annotations   map[string]string
	serve         []string // what says the same to `wasmtime serve`
}{
	{"p2", "http", nil, nil}, // one request
	{"p2-reuse", "http", map[string]string{"http.krustlet.dev/max-instance-reuse-count": "1000"}, []string{"--max-instance-reuse-count=1000"}},
	{"p3", "http3", nil, nil}, // 128 requests, 16 of them at once
}

// BenchmarkHTTP compares http pods with `wasmtime serve` of the same component
// and with a native server that answers the same, in one run and by one way.
func BenchmarkHTTP(b *testing.B) {
	if *wasmtime == "" {
		b.Fatal("-wasmtime=PATH is missing: benches/http installs the program and says where it is")
	}
	s := alone(b)
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Fatal(err)
	}
	var guests []guest
	for _, c := range httpCases {
		guests = append(guests, guest{name: c.name, program: c.program, annotations: c.annotations})
	}
	pods := s.pods(guests...)
	native := portOf(nativePlace, httpPort)
	hyper := s.beside(native, s.native, "http", native.String())
	for i, c := range httpCases {
		other := portOf(otherPlace, httpPort+uint16(i))
		args := append([]string{"serve", "-S", "cli", "--addr=" + other.String()}, c.serve...)
		serve := s.beside(other, *wasmtime, append(args, s.dir+"/pods/"+c.program+".wasm")...)
		compareHTTP(s, c.name, []asked{
			{"krustlet", portOf(pods[c.name], httpPort), s.sandboxes},
			{"wasmtime serve", other, func() time.Duration { return s.clock(serve.Pid()) }},
			{"native hyper", native, func() time.Duration { return s.clock(hyper.Pid()) }},
		})
	}
}

// compareHTTP asks each server in its turn.
func compareHTTP(s *standalone, name string, servers []asked) {
	s.b.Helper()
	for _, server := range servers {
		s.load(server, 1, time.Second) // uncounted: pools fill, code is paged in
	}
	for _, connections := range []int{1, 32} {
		results := make([][]answered, len(servers))
		for round := range *rounds {
			for turn := range servers {
				// Each begins in its turn: what the machine does meanwhile meets all.
				i := (round + turn) % len(servers)
				results[i] = append(results[i], s.load(servers[i], connections, *duration))
			}
		}
		sayHTTP(s.b, name, connections, servers, results)
	}
}

// load has wrk ask a server for a while on so many connections.
func (s *standalone) load(server asked, connections int, time time.Duration) answered {
	s.b.Helper()
	before := server.spent()
	said := s.run("wrk", "--latency", "--threads=1", fmt.Sprintf("--connections=%d", connections),
		fmt.Sprintf("--duration=%ds", int(time.Seconds())), url(server.at))
	used := server.spent() - before
	result, requests, err := parseWrk(said)
	if err != nil {
		s.b.Fatalf("%s: %v:\n%s", server.name, err, said)
	}
	result.cpu = float64(used.Microseconds()) / requests
	return result
}

var (
	wrkQuantile = regexp.MustCompile(`(?m)^ +(50|99)% +([0-9.]+)(us|ms|s)$`)
	wrkRequests = regexp.MustCompile(`(?m)^ +([0-9]+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec: +([0-9.]+)$`)
)

// parseWrk reads what wrk printed, and how many requests were answered.
func parseWrk(said string) (answered, float64, error) {
	for _, bad := range []string{"Socket errors:", "Non-2xx"} {
		if strings.Contains(said, bad) {
			return answered{}, 0, errors.New("not every request was answered well")
		}
	}
	rate, requests := wrkRate.FindStringSubmatch(said), wrkRequests.FindStringSubmatch(said)
	quantiles := map[string]float64{}
	for _, found := range wrkQuantile.FindAllStringSubmatch(said, -1) {
		number, err := strconv.ParseFloat(found[2], 64)
		if err != nil {
			return answered{}, 0, err
		}
		quantiles[found[1]] = number * map[string]float64{"us": 1e-3, "ms": 1, "s": 1e3}[found[3]]
	}
	if rate == nil || requests == nil || len(quantiles) != 2 {
		return answered{}, 0, errors.New("that is not what wrk prints")
	}
	perSecond, err := strconv.ParseFloat(rate[1], 64)
	if err != nil {
		return answered{}, 0, err
	}
	count, err := strconv.ParseFloat(requests[1], 64)
	if err != nil || count == 0 {
		return answered{}, 0, errors.New("no request was answered")
	}
	return answered{rate: perSecond, p50: quantiles["50"], p99: quantiles["99"]}, count, nil
}

// sayHTTP prints all rounds; the first server is compared with the others.
func sayHTTP(b *testing.B, name string, connections int, servers []asked, results [][]answered) {
	b.Helper()
	say("\n%s, %d connection(s), %d rounds of %s, in turn: median (least to greatest)", name, connections, *rounds, *duration)
	figures := []struct {
		name string
		of   func(answered) float64
	}{
		{"requests/s", func(a answered) float64 { return a.rate }},
		{"p50 ms", func(a answered) float64 { return a.p50 }},
		{"p99 ms", func(a answered) float64 { return a.p99 }},
		{"CPU us/request", func(a answered) float64 { return a.cpu }},
	}
	for _, figure := range figures {
		columns := make([][]float64, len(servers))
		for i, rounds := range results {
			for _, round := range rounds {
				columns[i] = append(columns[i], figure.of(round))
			}
			say("  %-16s %-16s %s", figure.name, servers[i].name, few(columns[i]))
		}
		for i := 1; i < len(servers); i++ {
			say("  %-16s %s / %s: %s", "", servers[0].name, servers[i].name, ratio(against(columns[0], columns[i])))
		}
		if figure.name == "requests/s" {
			b.ReportMetric(summarize(columns[0]).p50, fmt.Sprintf("requests/s-%s-%d", name, connections))
			b.ReportMetric(summarize(against(columns[0], columns[1])).p50, fmt.Sprintf("of-wasmtime-%s-%d", name, connections))
			b.ReportMetric(summarize(against(columns[0], columns[2])).p50, fmt.Sprintf("of-native-%s-%d", name, connections))
		}
	}
}

func TestWhatWrkPrintsIsRead(t *testing.T) {
	text, err := os.ReadFile("testdata/wrk.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, requests, err := parseWrk(string(text))
	if want := (answered{rate: 31714.91, p50: 0.97, p99: 2.31}); err != nil || got != want || requests != 158600 {
		t.Errorf("%+v of %v requests (%v), not %+v", got, requests, err, want)
	}
	for _, bad := range []string{"  Socket errors: connect 0, read 3, write 0, timeout 0\n", "  Non-2xx or 3xx responses: 2\n"} {
		if _, _, err := parseWrk(string(text) + bad); err == nil {
			t.Errorf("taken: %q", bad)
		}
	}
	if _, _, err := parseWrk(""); err == nil {
		t.Error("nothing is taken for an answer")
	}
}
