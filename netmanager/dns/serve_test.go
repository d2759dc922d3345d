package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// start runs a server on a loopback address until the test ends.
func start(t *testing.T, cfg Config) (*Server, netip.AddrPort) {
	t.Helper()
	if cfg.Listen == nil {
		// Not 127.0.0.1: the connections of other packages' tests hold so many of its ports that the one of UDP may be taken for TCP.
		cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.53.0.1:0")}
	}
	cfg.Zone, cfg.Networks = "skerry.internal", networks
	if cfg.Upstreams == nil {
		cfg.Upstreams = func() []netip.AddrPort { return nil }
	}
	s, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.SetTable(NewTable([]Job{web()}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s, s.Addrs()[0]
}

// upstream is a name server that behaves as the test wants.
type upstream struct {
	addr netip.AddrPort
	udp  atomic.Int32
	tcp  atomic.Int32
}

func newUpstream(t *testing.T, handle func(wire.ResponseWriter, *wire.Msg)) *upstream {
	t.Helper()
	udp, tcp, err := listen(t.Context(), netip.MustParseAddrPort("127.53.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: udp.LocalAddr().(*net.UDPAddr).AddrPort()}
	handler := wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
		if w.LocalAddr().Network() == "tcp" {
			u.tcp.Add(1)
		} else {
			u.udp.Add(1)
		}
		handle(w, m)
	})
	for _, s := range []*wire.Server{{PacketConn: udp, Handler: handler, UDPSize: 4096}, {Listener: tcp, Handler: handler}} {
		var wg sync.WaitGroup
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		wg.Go(func() { s.ActivateAndServe() })
		<-up
		t.Cleanup(func() { s.Shutdown(); wg.Wait() })
	}
	return u
}

func (u *upstream) asked() int { return int(u.udp.Load() + u.tcp.Load()) }

// says answers with one address.
func says(address string) func(wire.ResponseWriter, *wire.Msg) {
	return func(w wire.ResponseWriter, m *wire.Msg) {
		r := new(wire.Msg).SetReply(m)
		r.Answer = addresses(m.Question[0].Name, wire.TypeA, netip.MustParseAddr(address))
		w.WriteMsg(r)
	}
}

func fails(rcode int) func(wire.ResponseWriter, *wire.Msg) {
	return func(w wire.ResponseWriter, m *wire.Msg) { w.WriteMsg(new(wire.Msg).SetRcode(m, rcode)) }
}

func isSilent(wire.ResponseWriter, *wire.Msg) {}

// wordy answers with far more than fits into a datagram.
func wordy(w wire.ResponseWriter, m *wire.Msg) {
	r := new(wire.Msg).SetReply(m)
	for i := range 300 {
		r.Answer = append(r.Answer, addresses(m.Question[0].Name, wire.TypeA, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))...)
	}
	w.WriteMsg(r) // also by UDP: not every upstream cuts
}

func list(all ...*upstream) func() []netip.AddrPort {
	var out []netip.AddrPort
	for _, u := range all {
		out = append(out, u.addr)
	}
	return func() []netip.AddrPort { return out }
}

func exchange(t *testing.T, network string, at netip.AddrPort, name string, kind uint16) *wire.Msg {
	t.Helper()
	c := wire.Client{Net: network, Timeout: 10 * time.Second}
	got, _, err := c.Exchange(new(wire.Msg).SetQuestion(name, kind), at.String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return got
}

func TestSockets(t *testing.T) {
	u := newUpstream(t, says("192.0.2.1"))
	for _, at := range []string{"127.53.0.1:0", "[::1]:0"} {
		_, addr := start(t, Config{Listen: []netip.AddrPort{netip.MustParseAddrPort(at)}, Upstreams: list(u)})
		for _, network := range []string{"udp", "tcp"} {
			for name, want := range map[string]string{"web.skerry.internal.": "A 10.172.0.1", "nix.skerry.internal.": noName, "example.com.": "A 192.0.2.1"} {
				if got := exchange(t, network, addr, name, wire.TypeA); brief(got) != want {
					t.Errorf("%s, %s: %s: got %q, want %q", at, network, name, brief(got), want)
				}
			}
		}
	}
	if u.udp.Load() != 2 || u.tcp.Load() != 2 {
		t.Errorf("the upstream was asked %d times by UDP and %d times by TCP, want 2 each", u.udp.Load(), u.tcp.Load())
	}
}

// Another implementation than the one that writes the answers reads them: Go's own resolver.
func TestResolver(t *testing.T) {
	_, addr := start(t, Config{})
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr.String())
	}}
	hosts, err := r.LookupHost(t.Context(), "web.skerry.internal.")
	slices.Sort(hosts)
	if want := []string{"10.172.0.1", "fd5c:ae11:9::c:1"}; err != nil || !slices.Equal(hosts, want) {
		t.Errorf("got %v, %v, want %v", hosts, err, want)
	}
	_, srvs, err := r.LookupSRV(t.Context(), "http", "tcp", "closest.web.skerry.internal.")
	if err != nil || len(srvs) != 1 || srvs[0].Port != 8080 || srvs[0].Target != "closest.web.skerry.internal." {
		t.Errorf("got %v, %v", srvs, err)
	}
	for address, want := range map[string]string{"10.172.0.3": "0.web.skerry.internal.", "fd5c:ae11:9::c:2": "closest.web.skerry.internal."} {
		if names, err := r.LookupAddr(t.Context(), address); err != nil || !slices.Equal(names, []string{want}) {
			t.Errorf("%s: got %v, %v, want %s", address, names, err, want)
		}
	}
	_, err = r.LookupHost(t.Context(), "nix.skerry.internal.")
	if e, ok := errors.AsType[*net.DNSError](err); !ok || !e.IsNotFound {
		t.Errorf("got %v, want not found", err)
	}
}

func TestFailover(t *testing.T) {
	good, refuses, broken, mute := newUpstream(t, says("192.0.2.1")), newUpstream(t, fails(wire.RcodeRefused)), newUpstream(t, fails(wire.RcodeServerFailure)), newUpstream(t, isSilent)
	gone := &upstream{addr: netip.MustParseAddrPort("127.53.0.1:1")}
	for name, c := range map[string]struct {
		upstreams []*upstream
		want      string
	}{
		"a dead one before":   {[]*upstream{gone, good}, "A 192.0.2.1"},
		"a broken one before": {[]*upstream{broken, good}, "A 192.0.2.1"},
		"a strict one before": {[]*upstream{refuses, good}, "A 192.0.2.1"},
		"only a broken one":   {[]*upstream{broken}, "SERVFAIL"},
		"only a strict one":   {[]*upstream{gone, refuses}, "REFUSED"},
		"only a dead one":     {[]*upstream{gone}, "SERVFAIL"},
		"none":                {nil, "SERVFAIL"},
		"a mute one before":   {[]*upstream{mute, good}, "A 192.0.2.1"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			_, addr := start(t, Config{Upstreams: list(c.upstreams...)})
			if got := brief(exchange(t, network, addr, "example.com.", wire.TypeA)); got != c.want {
				t.Errorf("%s, %s: got %q, want %q", name, network, got, c.want)
			}
		}
	}
}

// An upstream that was silent is asked last for a while, so that it is waited for once and not in every query.
func TestResentful(t *testing.T) {
	mute, good := newUpstream(t, isSilent), newUpstream(t, says("192.0.2.1"))
	_, addr := start(t, Config{Upstreams: list(mute, good)})
	for range 5 {
		if got := brief(exchange(t, "udp", addr, "example.com.", wire.TypeA)); got != "A 192.0.2.1" {
			t.Errorf("got %q", got)
		}
	}
	if mute.asked() != 1 || good.asked() != 5 {
		t.Errorf("asked the silent one %d times and the good one %d times, want 1 and 5", mute.asked(), good.asked())
	}
}

// Answers under another number, to another question, or that are none, are passed over, and the right one behind them is taken.
func TestForgedReplies(t *testing.T) {
	u := newUpstream(t, func(w wire.ResponseWriter, m *wire.Msg) {
		forged := func(change func(*wire.Msg)) {
			r := new(wire.Msg).SetReply(m)
			r.Answer = addresses(m.Question[0].Name, wire.TypeA, netip.MustParseAddr("203.0.113.66"))
			change(r)
			w.WriteMsg(r)
		}
		forged(func(r *wire.Msg) { r.Id++ })
		forged(func(r *wire.Msg) { r.Question[0].Name = "example.org." })
		forged(func(r *wire.Msg) { r.Question[0].Qtype = wire.TypeAAAA })
		forged(func(r *wire.Msg) { r.Response = false })
		forged(func(r *wire.Msg) { r.Question = nil })
		w.Write([]byte("no packet"))
		w.Write(nil)
		says("192.0.2.1")(w, m)
	})
	_, addr := start(t, Config{Upstreams: list(u)})
	if got := brief(exchange(t, "udp", addr, "example.com.", wire.TypeA)); got != "A 192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

// An answer that is too long for UDP is cut, and comes whole by TCP.
func TestTruncation(t *testing.T) {
	u := newUpstream(t, wordy)
	_, addr := start(t, Config{Upstreams: list(u)})
	for _, edns := range []uint16{0, 512, 1232, 65535} {
		m := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
		if edns > 0 {
			m.SetEdns0(edns, false)
		}
		c := wire.Client{UDPSize: 65535}
		got, _, err := c.Exchange(m, addr.String())
		if err != nil || !got.Truncated {
			t.Errorf("size %d: got %v, %v, want a cut one", edns, got, err)
		}
	}
	if got := exchange(t, "tcp", addr, "example.com.", wire.TypeA); len(got.Answer) != 300 || got.Truncated {
		t.Errorf("got %d records by TCP, want 300", len(got.Answer))
	}
}

// Upstreams that are this server, or another node's in the overlay, are not asked: the question would come back.
func TestNoLoop(t *testing.T) {
	var asked atomic.Int32
	f := newForwarder(func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("10.160.0.1:53"), netip.MustParseAddrPort("[::ffff:10.161.0.1]:53"), netip.MustParseAddrPort("[fd5c:ae11:9::1]:53"), {}}
	}, func(a netip.AddrPort) bool { asked.Add(1); return unplugged(nil).ours(a.Addr()) })
	if got := f.order(); len(got) != 0 || asked.Load() != 3 {
		t.Errorf("would ask %v", got)
	}
	_, addr := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("10.160.0.1:53")} }})
	if got := exchange(t, "udp", addr, "example.com.", wire.TypeA); got.Rcode != wire.RcodeServerFailure {
		t.Errorf("got %s", brief(got))
	}
}

// What waits does not hold up what need not wait, and its number is bounded.
func TestNobodyWaitsForOthers(t *testing.T) {
	mute := newUpstream(t, isSilent)
	_, addr := start(t, Config{Upstreams: list(mute)})
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range maxBusyEach + 50 {
		packet, err := new(wire.Msg).SetQuestion(fmt.Sprintf("%d.example.com.", i), wire.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(packet)
		if i%20 == 0 {
			time.Sleep(time.Millisecond) // so that the socket's buffer never decides
		}
	}
	if got := brief(exchange(t, "udp", addr, "web.skerry.internal.", wire.TypeA)); got != "A 10.172.0.1" {
		t.Errorf("got %q", got)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	first := make([]byte, maxQuery)
	n, err := conn.Read(first)
	if err != nil {
		t.Fatal(err)
	}
	got := new(wire.Msg)
	if err := got.Unpack(first[:n]); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d.example.com.", maxBusyEach); got.Rcode != wire.RcodeServerFailure || got.Question[0].Name != want {
		t.Errorf("got %s for %s first, want the one that is too many refused, %s", brief(got), got.Question[0].Name, want)
	}
}

// One client cannot take all connections.
func TestConnections(t *testing.T) {
	_, addr := start(t, Config{})
	for range maxConnsEach {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	extra, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	extra.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := extra.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one connection more than allowed: got %v, want its end", err)
	}
}

func TestWelcome(t *testing.T) {
	s := unplugged(nil)
	for from, want := range map[string]bool{"10.160.0.7": true, "fd5c:ae11:9::7": true, "127.0.0.1": true, "::1": true, "192.168.1.5": false, "172.17.0.2": false, "fe80::1": false} {
		if got := s.welcome(netip.MustParseAddr(from)); got != want {
			t.Errorf("%s: got %t, want %t", from, got, want)
		}
	}
}

// A read that fails is about one packet: the server goes on.
func TestReadFails(t *testing.T) {
	s, at := start(t, Config{})
	if err := s.udp[0].SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(readPause / 2) // for it to fail
	if err := s.udp[0].SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	exchange(t, "udp", at, "nobody.skerry.internal.", wire.TypeA)
}

// The sockets can be bound before the bridge has its address.
func TestListenBeforeTheAddress(t *testing.T) {
	for _, at := range []string{"10.172.255.254:0", "[fd5c:ae11:9::fffe]:0"} {
		udp, tcp, err := listen(t.Context(), netip.MustParseAddrPort(at))
		if err != nil {
			t.Error(err)
			continue
		}
		udp.Close()
		tcp.Close()
	}
}

func TestConfig(t *testing.T) {
	_, err := New(t.Context(), Config{Zone: "..", Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}, Networks: []netip.Prefix{{}}}, slog.New(slog.DiscardHandler))
	for _, want := range []string{"0.0.0.0:53", `zone ".."`, "a network is not valid", "no upstreams"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
	s, addr := start(t, Config{})
	_, err = New(t.Context(), Config{Zone: "a", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.53.0.1:0"), addr}, Upstreams: NewHost().Upstreams}, s.log)
	if err == nil || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("an address in use: got %v", err)
	}
}
