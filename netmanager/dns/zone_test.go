package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

var networks = []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")}

// web is a job as the tests know it.
func web() Job {
	addr := netip.MustParseAddr
	return Job{Name: "web", RoundRobin: addr("10.172.0.1"), RoundRobin6: addr("fd5c:ae11:9::c:1"), Closest: addr("10.172.0.2"), Closest6: addr("fd5c:ae11:9::c:2"),
		Instances: []Instance{
			{Ordinal: 10, Service: addr("10.172.0.13")},
			{Ordinal: 0, Service: addr("10.172.0.3"), Service6: addr("fd5c:ae11:9::c:3"), Address: addr("10.160.0.5"), Address6: addr("fd5c:ae11:9::5")},
			{Ordinal: 1, Service: addr("10.172.0.4")}},
		Ports: []Port{{Name: "HTTP", Protocol: "tcp", Number: 8080}, {Protocol: "udp", Number: 65535}, {Protocol: "tcp", Number: 443}}}
}

// bench returns a server without sockets.
func unplugged(onMiss func(string)) *Server {
	s := &Server{networks: networks, log: slog.New(slog.DiscardHandler), busy: newLimiter(maxBusy, maxBusyEach), conns: newLimiter(maxConns, maxConnsEach),
		miss: newMisses(onMiss), hit: func(string) {}, zone: newZone("Skerry.Internal", networks, []netip.AddrPort{netip.MustParseAddrPort("10.160.0.1:53")})}
	s.up = newForwarder(func() []netip.AddrPort { return nil }, func(netip.AddrPort) bool { return false })
	s.SetTable(NewTable([]Job{web()}))
	return s
}

// answerTo asks a server for what it answers at once.
func answerTo(t testing.TB, s *Server, name string, kind uint16, change ...func(*wire.Msg)) *wire.Msg {
	t.Helper()
	m := new(wire.Msg).SetQuestion(name, kind)
	for _, c := range change {
		c(m)
	}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	raw, later := s.begin(packet, false)
	if later != nil || raw == nil {
		t.Fatalf("%s %s: no answer at once", name, wire.TypeToString[kind])
	}
	got := new(wire.Msg)
	if err := got.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	if got.Id != m.Id || !got.Response || got.RecursionDesired != m.RecursionDesired || !slices.Equal(got.Question, m.Question) {
		t.Fatalf("%s is no answer to %s", got, m)
	}
	return got
}

// brief writes an answer on one line: the records without their owner, or the code and the zone that says so.
func brief(m *wire.Msg) string {
	var out []string
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		if rr.Header().Rrtype == wire.TypeOPT {
			continue
		}
		out = append(out, wire.TypeToString[rr.Header().Rrtype]+" "+strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	if len(m.Answer) == 0 {
		out = append(out, wire.RcodeToString[m.Rcode])
		for _, rr := range m.Ns {
			out = append(out, rr.Header().Name)
		}
	}
	return strings.Join(out, " ")
}

func TestZone(t *testing.T) {
	for _, c := range []struct {
		name, kind, want string
	}{
		{"web.skerry.internal.", "A", "A 10.172.0.1"},
		{"web.skerry.internal.", "AAAA", "AAAA fd5c:ae11:9::c:1"},
		{"web.skerry.internal.", "ANY", "A 10.172.0.1 AAAA fd5c:ae11:9::c:1"},
		{"web.skerry.internal.", "MX", "NOERROR skerry.internal."},
		{"web.skerry.internal.", "HTTPS", "NOERROR skerry.internal."},
		{"web.skerry.internal.", "SRV", "NOERROR skerry.internal."},
		{"WeB.sKerry.INTERNAL.", "A", "A 10.172.0.1"},
		{"closest.web.skerry.internal.", "A", "A 10.172.0.2"},
		{"Closest.web.skerry.internal.", "AAAA", "AAAA fd5c:ae11:9::c:2"},
		{"0.web.skerry.internal.", "A", "A 10.172.0.3"},
		{"0.web.skerry.internal.", "AAAA", "AAAA fd5c:ae11:9::c:3"},
		{"1.web.skerry.internal.", "A", "A 10.172.0.4"},
		{"1.web.skerry.internal.", "AAAA", "NOERROR skerry.internal."},
		{"10.web.skerry.internal.", "A", "A 10.172.0.13"},
		{"2.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"00.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"-1.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"99999999999999999999.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"www.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"a.0.web.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"db.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"0.db.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{"_.skerry.internal.", "A", "NXDOMAIN skerry.internal."},
		{`web\.skerry.internal.skerry.internal.`, "A", "NXDOMAIN skerry.internal."},
		{"_http._tcp.web.skerry.internal.", "SRV", "SRV 0 0 8080 web.skerry.internal. A 10.172.0.1 AAAA fd5c:ae11:9::c:1"},
		{"_8080._TCP.web.skerry.internal.", "SRV", "SRV 0 0 8080 web.skerry.internal. A 10.172.0.1 AAAA fd5c:ae11:9::c:1"},
		{"_65535._udp.web.skerry.internal.", "SRV", "SRV 0 0 65535 web.skerry.internal. A 10.172.0.1 AAAA fd5c:ae11:9::c:1"},
		{"_http._tcp.closest.web.skerry.internal.", "SRV", "SRV 0 0 8080 closest.web.skerry.internal. A 10.172.0.2 AAAA fd5c:ae11:9::c:2"},
		{"_http._tcp.1.web.skerry.internal.", "SRV", "SRV 0 0 8080 1.web.skerry.internal. A 10.172.0.4"},
		{"_http._tcp.web.skerry.internal.", "A", "NOERROR skerry.internal."},
		{"_tcp.web.skerry.internal.", "SRV", "NOERROR skerry.internal."},
		{"_https._tcp.web.skerry.internal.", "SRV", "SRV 0 0 443 web.skerry.internal. A 10.172.0.1 AAAA fd5c:ae11:9::c:1"},
		{"_ssh._tcp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"_0._tcp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"_http._udp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"_._tcp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"_sctp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"_a._http._tcp.web.skerry.internal.", "SRV", "NXDOMAIN skerry.internal."},
		{"skerry.internal.", "A", "A 10.160.0.1"},
		{"skerry.internal.", "AAAA", "NOERROR skerry.internal."},
		{"skerry.internal.", "NS", "NS skerry.internal."},
		{"1.0.172.10.in-addr.arpa.", "PTR", "PTR web.skerry.internal."},
		{"2.0.172.10.in-addr.arpa.", "PTR", "PTR closest.web.skerry.internal."},
		{"3.0.172.10.IN-ADDR.arpa.", "PTR", "PTR 0.web.skerry.internal."},
		{"5.0.160.10.in-addr.arpa.", "PTR", "PTR 0.web.skerry.internal."},
		{"3.0.172.10.in-addr.arpa.", "A", "NOERROR 172.10.in-addr.arpa."},
		{"6.0.160.10.in-addr.arpa.", "PTR", "NXDOMAIN 160.10.in-addr.arpa."},
		{"0.160.10.in-addr.arpa.", "PTR", "NOERROR 160.10.in-addr.arpa."},
		{"3.0.0.0.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.1.1.e.a.c.5.d.f.ip6.arpa.", "PTR", "PTR 0.web.skerry.internal."},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.1.1.e.a.c.5.d.f.ip6.arpa.", "PTR", "PTR 0.web.skerry.internal."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.1.1.e.a.c.5.d.f.ip6.arpa.", "PTR", "NXDOMAIN 9.0.0.0.1.1.e.a.c.5.d.f.ip6.arpa."},
	} {
		got := answerTo(t, unplugged(nil), c.name, wire.StringToType[c.kind])
		if brief(got) != c.want || !got.Authoritative || !got.RecursionAvailable {
			t.Errorf("%s %s: got %q, want %q; authoritative %t", c.name, c.kind, brief(got), c.want, got.Authoritative)
		}
		for _, rr := range slices.Concat(got.Answer, got.Ns) {
			if rr.Header().Ttl != ttl {
				t.Errorf("%s: lives for %d s, want %d", rr, rr.Header().Ttl, ttl)
			}
		}
		if len(got.Answer) > 0 && got.Answer[0].Header().Name != c.name {
			t.Errorf("%s: answer for %s: a client that plays with case would drop it", c.name, got.Answer[0].Header().Name)
		}
	}
}

// The serial number grows with every table, so that who transfers nothing at least sees that something changed.
func TestSerial(t *testing.T) {
	s := unplugged(nil)
	serial := func() uint32 { return answerTo(t, s, "skerry.internal.", wire.TypeSOA).Answer[0].(*wire.SOA).Serial }
	before := serial()
	s.SetTable(NewTable(nil))
	if got := serial(); got != before+1 {
		t.Errorf("got serial %d, want %d", got, before+1)
	}
}

// What is not about the zone goes to an upstream.
func TestNotOurs(t *testing.T) {
	s := unplugged(func(string) { t.Error("asked for a job") })
	for _, name := range []string{"example.com.", "internal.", ".", "askerry.internal.", `x\.skerry.internal.`, "skerry.internal.example.com.", "1.1.168.192.in-addr.arpa.",
		"10.in-addr.arpa.", "1.0.176.10.in-addr.arpa.", "arpa.", "ip6.arpa.", "x.0.172.10.in-addr.arpa.", "300.0.172.10.in-addr.arpa.", "01.0.172.10.in-addr.arpa.", "1.1.0.172.10.in-addr.arpa.",
		"e.a.c.5.d.f.ip6.arpa.", "10.0.e.a.c.5.d.f.ip6.arpa."} {
		packet, err := new(wire.Msg).SetQuestion(name, wire.TypePTR).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if raw, later := s.begin(packet, false); later == nil || later.miss != "" {
			t.Errorf("%s: got %x and not a query for the upstream", name, raw)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := unplugged(nil)
	for name, c := range map[string]struct {
		change func(*wire.Msg)
		want   int
	}{
		"a transfer":         {func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeAXFR }, wire.RcodeRefused},
		"a class of its own": {func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }, wire.RcodeRefused},
		"EDNS version 1":     {func(m *wire.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) }, wire.RcodeBadVers},
	} {
		if got := answerTo(t, s, "web.skerry.internal.", wire.TypeA, c.change); got.Rcode != c.want || len(got.Answer) != 0 {
			t.Errorf("%s: got %s", name, got)
		}
	}
	for name, c := range map[string]struct {
		packet string
		want   string
	}{
		"an update":        {"\x12\x34\x29\x00\x00\x01\x00\x00\x00\x00\x00\x00", "\x12\x34\xa9\x84\x00\x00\x00\x00\x00\x00\x00\x00"},
		"no question":      {"\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x12\x34\x81\x81\x00\x00\x00\x00\x00\x00\x00\x00"},
		"a cut question":   {"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03we", "\x12\x34\x81\x81\x00\x00\x00\x00\x00\x00\x00\x00"},
		"a name in a ring": {"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01", "\x12\x34\x81\x81\x00\x00\x00\x00\x00\x00\x00\x00"},
		"an answer":        {"\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01", ""},
		"too short":        {"\x12\x34\x01", ""},
		"nothing":          {"", ""},
	} {
		if got, later := s.begin([]byte(c.packet), false); string(got) != c.want || later != nil {
			t.Errorf("%s: got %x, want %x", name, got, c.want)
		}
	}
}

// A client that speaks EDNS is answered in kind, another is not.
func TestEDNS(t *testing.T) {
	s := unplugged(nil)
	if got := answerTo(t, s, "web.skerry.internal.", wire.TypeA); got.IsEdns0() != nil {
		t.Error("an option for a client that knows none")
	}
	got := answerTo(t, s, "web.skerry.internal.", wire.TypeA, func(m *wire.Msg) { m.SetEdns0(4096, true) })
	if o := got.IsEdns0(); o == nil || o.UDPSize() != ownSize || len(got.Answer) != 1 {
		t.Errorf("got %s", got)
	}
}

// jobs makes a table of many.
func many(n int) *Table {
	jobs := make([]Job, 0, n)
	for i := range n {
		o := uint32(10<<24 | 172<<16 + 4*i)
		a := func(k uint32) netip.Addr {
			v := o + k
			return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
		}
		jobs = append(jobs, Job{Name: fmt.Sprintf("job-%d", i), RoundRobin: a(0), Closest: a(1), Instances: []Instance{{Service: a(2)}}})
	}
	return NewTable(jobs)
}

func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprintf("jobs=%d", n), func(b *testing.B) {
			s := unplugged(nil)
			s.SetTable(many(n))
			packet, err := new(wire.Msg).SetQuestion(fmt.Sprintf("0.job-%d.skerry.internal.", n/2), wire.TypeA).Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if raw, _ := s.begin(packet, false); len(raw) < 40 {
					b.Fatalf("got %x", raw)
				}
			}
		})
	}
}

// A table takes little beside the jobs that it is given, and finds each of their names.
func TestTableOfMany(t *testing.T) {
	const n = 20_000
	jobs := many(n).jobs
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	table := NewTable(jobs)
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / n; got > 160 {
		t.Errorf("a job takes %d bytes", got)
	}
	for i := range jobs {
		j := &jobs[i]
		for a, want := range map[netip.Addr]string{j.RoundRobin: j.Name, j.Closest: "closest." + j.Name, j.Instances[0].Service: "0." + j.Name} {
			if got := table.name(a); got != want {
				t.Fatalf("%s has the name %q, want %q", a, got, want)
			}
		}
		if table.job(j.Name) != j {
			t.Fatalf("%s is not found", j.Name)
		}
	}
	if got := table.name(netip.MustParseAddr("10.175.255.254")); got != "" {
		t.Errorf("nobody's address has the name %q", got)
	}
}

func BenchmarkNewTable(b *testing.B) {
	for b.Loop() {
		many(100_000)
	}
}
