package service

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"testing"
	"time"
)

// web has an instance on node 1, which is the client's, and two elsewhere.
func web() Service {
	return service("web", "10.172.0.1", "10.172.0.2",
		container(0, "10.172.0.10", "10.160.1.2"), container(1, "10.172.0.11", "10.160.2.2"), container(2, "10.172.0.12", "10.160.3.2"))
}

// remote has its only instance on node 2.
func remote() Service {
	return service("db", "10.172.1.1", "10.172.1.2", container(0, "10.172.1.10", "10.160.2.9"))
}

func client() Service {
	return service("client", "10.172.2.1", "10.172.2.2", container(0, "10.172.2.10", "10.160.1.20"), container(1, "10.172.2.11", "10.160.1.21"))
}

// families runs a test with the addresses of both.
func families(t *testing.T, f func(t *testing.T, a func(string) string)) {
	t.Run("IPv4", func(t *testing.T) { f(t, func(a string) string { return a }) })
	t.Run("IPv6", func(t *testing.T) { f(t, six) })
}

type protocol struct {
	name  string
	build func(e ends, reply bool) []byte
	port  uint16 // of the server; 0 for an echo
}

var protocols = []protocol{
	{"TCP", func(e ends, reply bool) []byte {
		if reply {
			return tcp(e, tcpSYN|tcpACK, "")
		}
		return tcp(e, tcpSYN, "")
	}, 80},
	{"UDP", func(e ends, _ bool) []byte { return udp(e, "hello") }, 53},
	{"echo", func(e ends, reply bool) []byte { return echo(e, reply, "ping") }, 0},
}

func expect(t testing.TB, what string, b []byte, want ends) {
	t.Helper()
	if b == nil {
		t.Fatalf("%s: nothing, want %v", what, want)
	}
	if got := endsOf(t, b); got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// A request to a service on another node and its answer, seen at all four places.
func TestRemoteFlow(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		for _, p := range protocols {
			for _, dialled := range []string{"10.172.1.1", "10.172.1.2", "10.172.1.10"} {
				one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
				one.set("", remote(), client())
				two.set("", remote(), client())
				asked := ends{a("10.160.1.20"), a(dialled), 4000, p.port}
				wire := one.out(t, p.build(asked, false))
				expect(t, p.name+" out", wire, ends{a("10.160.1.20"), a("10.160.2.9"), 4000, p.port})
				got := two.in(t, wire)
				served := ends{a("10.172.2.10"), a("10.160.2.9"), 4000, p.port}
				expect(t, p.name+" in", got, served)
				wire = two.out(t, p.build(served.swapped(), true))
				expect(t, p.name+" answer out", wire, ends{a("10.160.2.9"), a("10.160.1.20"), p.port, 4000})
				expect(t, p.name+" answer in", one.in(t, wire), asked.swapped())
			}
		}
	})
}

// A request to an instance of the same node goes back into the TUN, and so does its answer; a container may even reach itself.
func TestLocalFlow(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		for _, p := range protocols {
			for _, c := range []struct {
				name, src, seen string
				port            uint16
			}{
				{"neighbour", "10.160.1.20", "10.172.2.10", 4000},
				{"itself", "10.160.1.2", "10.172.0.10", 4000},
				{"itself from the same port", "10.160.1.2", "10.172.0.10", p.port},
				{"the node", "10.160.1.1", "10.172.0.2", 4000},
			} {
				if c.port == 0 {
					continue // an echo of id 0 is like any other
				}
				one := newNode(t, 1, Options{})
				one.set("", web(), client())
				asked := ends{a(c.src), a("10.172.0.2"), c.port, p.port}
				if b := one.out(t, p.build(asked, false)); b != nil {
					t.Fatalf("%s %s: left the node: %v", p.name, c.name, endsOf(t, b))
				}
				got := one.kernel()
				if got == nil {
					t.Fatalf("%s %s: not handed back", p.name, c.name)
				}
				served := endsOf(t, got)
				if served.src != a(c.seen) || served.dst != a("10.160.1.2") || served.dport != p.port {
					t.Fatalf("%s %s: the server got %v", p.name, c.name, served)
				}
				if b := one.out(t, p.build(served.swapped(), true)); b != nil {
					t.Fatalf("%s %s: the answer left the node: %v", p.name, c.name, endsOf(t, b))
				}
				expect(t, p.name+" "+c.name, one.kernel(), asked.swapped())
			}
		}
	})
}

// Two containers of one node with one source port, at one service with one instance; and one container that dials two addresses which lead to the
// same instance from one port.
func TestSameSourcePort(t *testing.T) {
	for _, target := range []Service{remote(), service("db", "10.172.1.1", "10.172.1.2", container(0, "10.172.1.10", "10.160.1.9"))} {
		one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
		one.set("", target, client())
		two.set("", target, client())
		asked := []ends{{"10.160.1.20", "10.172.1.1", 4000, 80}, {"10.160.1.21", "10.172.1.1", 4000, 80},
			{"10.160.1.20", "10.172.1.2", 4000, 80}, {"10.160.1.20", "10.172.1.10", 4000, 80}, {"10.160.1.1", "10.172.1.1", 4000, 80}, {"10.160.1.3", "10.172.1.1", 4000, 80}}
		served := map[ends]ends{} // by what the server saw
		for _, e := range asked {
			wire := one.out(t, tcp(e, tcpSYN, ""))
			got := one.kernel()
			if wire != nil {
				got = two.in(t, wire)
			}
			if got == nil {
				t.Fatalf("%v: did not arrive", e)
			}
			saw := endsOf(t, got)
			if other, ok := served[saw]; ok {
				t.Fatalf("%v and %v are the same to the server: %v", e, other, saw)
			}
			served[saw] = e
		}
		for saw, e := range served {
			answer := tcp(saw.swapped(), tcpSYN|tcpACK, "")
			var got []byte
			if target.Instances[0].Address.String() == "10.160.2.9" {
				got = one.in(t, two.out(t, answer))
			} else {
				one.out(t, answer)
				got = one.kernel()
			}
			expect(t, "answer", got, e.swapped())
		}
	}
}

// The checksum of SCTP covers the ports and not the addresses: these are rewritten, and a flow that would need another port does not come about.
func TestSCTPKeepsItsPorts(t *testing.T) {
	sctp := func(e ends) []byte {
		b := make([]byte, 12, 16)
		binary.BigEndian.PutUint16(b, e.sport)
		binary.BigEndian.PutUint16(b[2:], e.dport)
		b = append(b, 0, 0, 0, 4) // an empty chunk of data
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return makeIP(e, protoSCTP, b)
	}
	families(t, func(t *testing.T, a func(string) string) {
		one := newNode(t, 1, Options{})
		one.set("", remote(), client())
		asked, wire := ends{a("10.160.1.20"), a("10.172.1.1"), 4000, 80}, ends{a("10.160.1.20"), a("10.160.2.9"), 4000, 80}
		if got, want := one.out(t, sctp(asked)), sctp(wire); !bytes.Equal(got, want) {
			t.Errorf("got %x, want %x", got, want)
		}
		again := asked
		again.dst = a("10.172.1.2") // leads to the same instance
		if got := one.out(t, sctp(again)); got != nil {
			t.Errorf("the second flow: got %v", endsOf(t, got))
		}
		if got := one.Stats().Unavailable; got != 1 {
			t.Errorf("counted %d, want 1", got)
		}
	})
}

// Who dials a container's own address gets its answer from that address.
func TestContainerAddress(t *testing.T) {
	one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
	one.set("", remote(), client())
	two.set("", remote(), client())
	asked := ends{"10.160.1.20", "10.160.2.9", 4000, 80}
	wire := one.out(t, tcp(asked, tcpSYN, ""))
	expect(t, "out", wire, asked)
	served := ends{"10.172.2.10", "10.160.2.9", 4000, 80}
	expect(t, "in", two.in(t, wire), served)
	expect(t, "answer", one.in(t, two.out(t, tcp(served.swapped(), tcpSYN|tcpACK, ""))), asked.swapped())
}

func TestRoundRobin(t *testing.T) {
	one := newNode(t, 1, Options{})
	s := web()
	s.Instances = append(s.Instances, container(3, "10.172.0.13", "10.160.4.2"), container(4, "10.172.0.14", "10.160.4.3"))
	s.Instances[3].Healthy = false
	one.set("", s, client())
	const flows = 10000
	got := map[string]int{}
	for i := range flows {
		e := ends{"10.160.1.20", "10.172.0.1", uint16(10000 + i), 80}
		wire := one.out(t, tcp(e, tcpSYN, ""))
		if wire == nil {
			wire = one.kernel()
		}
		got[endsOf(t, wire).dst]++
	}
	if len(got) != 4 || got["10.160.4.2"] != 0 {
		t.Fatalf("got %v, want the four healthy instances", got)
	}
	for a, n := range got {
		if n < flows/4*98/100 || n > flows/4*102/100 {
			t.Errorf("%s got %d of %d flows, want a quarter within 2 %%", a, n, flows)
		}
	}
}

func TestClosest(t *testing.T) {
	one, four := newNode(t, 1, Options{}), newNode(t, 4, Options{})
	s := web()
	one.set("", s)
	four.set("", s)
	far := map[string]time.Duration{"10.160.2.2": 3e6, "10.160.3.2": 2e6}
	for _, n := range []*node{one, four} {
		n.SetTable(n.table.Load().WithRTT(func(a netip.Addr) time.Duration { return far[a.String()] }))
	}
	for i := range 100 {
		e := ends{"10.160.1.20", "10.172.0.2", uint16(5000 + i), 80}
		if one.out(t, tcp(e, tcpSYN, "")) != nil || endsOf(t, one.kernel()).dst != "10.160.1.2" {
			t.Fatal("a closest instance that is here was not chosen")
		}
		e.src = "10.160.4.20"
		expect(t, "by round-trip time", four.out(t, tcp(e, tcpSYN, "")), ends{"10.160.4.20", "10.160.3.2", e.sport, 80})
	}
}

// Flows stay where they are when their instance becomes unhealthy or another comes, new ones avoid it; a new SYN on a flow whose instance is gone gets
// another, and 0.web follows the ordinal.
func TestFlowsOverTables(t *testing.T) {
	one := newNode(t, 1, Options{})
	s := remote()
	one.set("", s, client())
	old := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
	byOrdinal := ends{"10.160.1.20", "10.172.1.10", 4001, 80}
	first, moved := ends{"10.160.1.20", "10.160.2.9", 4000, 80}, ends{"10.160.1.20", "10.160.3.9", 4000, 80}
	expect(t, "first", one.out(t, tcp(old, tcpSYN, "")), first)
	one.out(t, tcp(byOrdinal, tcpSYN, ""))
	one.in(t, tcp(first.swapped(), tcpSYN|tcpACK, ""))

	s.Instances = []Instance{s.Instances[0], container(1, "10.172.1.11", "10.160.3.9")}
	s.Instances[0].Healthy = false
	one.set("", s, client())
	expect(t, "goes on", one.out(t, tcp(old, tcpACK, "x")), first)
	for i := range 10 {
		e := ends{"10.160.1.20", "10.172.1.1", uint16(5000 + i), 80}
		expect(t, "avoids", one.out(t, tcp(e, tcpSYN, "")), ends{"10.160.1.20", "10.160.3.9", e.sport, 80})
	}

	s.Instances = []Instance{container(0, "10.172.1.10", "10.160.3.9")} // ordinal 0 moved
	one.set("", s, client())
	expect(t, "still goes on", one.out(t, tcp(old, tcpACK, "y")), first)
	expect(t, "begins anew", one.out(t, tcp(old, tcpSYN, "")), moved)
	expect(t, "0.db", one.out(t, tcp(byOrdinal, tcpSYN, "")), ends{"10.160.1.20", "10.160.3.9", 4001, 80})
}

// Traffic tells what went since it was asked last, in both directions and on both sides of a service.
func TestTraffic(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
		one.set("", remote(), client())
		two.set("", remote(), client())
		begin := tcp(ends{a("10.160.1.20"), a("10.172.1.1"), 4000, 80}, tcpACK, "ask")
		answer := func(payload string) []byte {
			return tcp(ends{a("10.160.2.9"), a("10.172.2.10"), 80, 4000}, tcpACK, payload)
		}
		ask, reply, more := len(begin), len(answer("reply")), len(answer("more of it"))
		two.in(t, one.out(t, begin))
		one.in(t, two.out(t, answer("reply")))
		told := func(n *node, server bool, sent, received int) {
			t.Helper()
			if f := n.Traffic(); len(f) != 1 || f[0].Server != server || f[0].Sent != uint64(sent) || f[0].Received != uint64(received) {
				t.Errorf("got %+v, want %d bytes sent and %d received", f, sent, received)
			}
		}
		told(one, false, ask, reply)
		told(two, true, reply, ask)
		one.in(t, two.out(t, answer("more of it")))
		if f := one.Flows(netip.Addr{}); len(f) != 1 || f[0].Received != uint64(more) {
			t.Errorf("flows: got %+v, want %d bytes received", f, more)
		}
		told(one, false, 0, more)
		told(two, true, more, 0)
		told(one, false, 0, 0)
	})
}

func TestGuards(t *testing.T) {
	one := newNode(t, 1, Options{})
	closed := client()
	closed.Allow = []string{"web"}
	one.set("", web(), remote(), closed)
	for _, c := range []struct {
		name  string
		b     []byte
		out   bool
		count func(Stats) uint64
	}{
		{"spoofed out", udp(ends{"10.160.2.2", "10.172.1.1", 1, 2}, ""), true, func(s Stats) uint64 { return s.Spoofed }},
		{"multicast out", udp(ends{"10.160.1.20", "224.0.0.251", 1, 2}, ""), true, func(s Stats) uint64 { return s.Stray }},
		{"spoofed in", udp(ends{"10.160.1.20", "10.160.1.2", 1, 2}, ""), false, func(s Stats) uint64 { return s.Spoofed }},
		{"service as source", udp(ends{"10.172.1.1", "10.160.1.2", 1, 2}, ""), false, func(s Stats) uint64 { return s.Spoofed }},
		{"not for this node", udp(ends{"10.160.2.2", "192.168.1.1", 1, 2}, ""), false, func(s Stats) uint64 { return s.Stray }},
		{"service from no guest", udp(ends{"10.160.2.2", "10.172.1.1", 1, 2}, ""), false, func(s Stats) uint64 { return s.Stray }},
		{"not allowed", udp(ends{"10.160.2.9", "10.160.1.20", 1, 2}, ""), false, func(s Stats) uint64 { return s.Denied }},
		{"unknown is not allowed", udp(ends{"10.160.7.7", "10.160.1.20", 1, 2}, ""), false, func(s Stats) uint64 { return s.Denied }},
		{"later without first", func() []byte {
			_, l := fragmented(udp(ends{"10.160.2.9", "10.160.1.2", 1, 2}, "0123456789012345"), 7, 16)
			return l
		}(), false, func(s Stats) uint64 { return s.Fragments }},
	} {
		before := c.count(one.Stats())
		got := []byte(nil)
		if c.out {
			got = one.out(t, c.b)
		} else {
			got = one.in(t, c.b)
		}
		if got != nil || c.count(one.Stats()) != before+1 {
			t.Errorf("%s: got %x, counted %d times", c.name, got, c.count(one.Stats())-before)
		}
	}
	before := one.Stats()
	for _, e := range []ends{{"fe80::1", "ff02::2", 1, 2}, {"192.0.2.7", "224.0.0.22", 1, 2}} {
		if got, after := one.out(t, udp(e, "")), one.Stats(); got != nil || after != before {
			t.Errorf("%v, of the kernel itself: got %x, counted %+v, was %+v", e, got, after, before)
		}
	}
	if got := one.in(t, udp(ends{"10.160.2.2", "10.160.1.20", 1, 2}, "")); got == nil {
		t.Error("an allowed job was kept out")
	}
	b := one.sent()
	expect(t, "denial", b, ends{"10.160.1.20", "10.160.2.9", 0, 0})
	if b[20] != 3 || b[21] != 13 {
		t.Errorf("got ICMP %d/%d, want 3/13", b[20], b[21])
	}
}

// A guest's packets come out of the tunnel, go through the kernel and into the tunnel again.
func TestGuest(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		one := newNode(t, 1, Options{})
		one.set("10.160.255.0/24", web(), remote(), client())
		for _, dialled := range []string{"10.172.1.1", "10.172.0.2"} { // elsewhere and here
			asked := ends{a("10.160.255.7"), a(dialled), 4000, 80}
			routed := one.in(t, tcp(asked, tcpSYN, ""))
			expect(t, "to the kernel", routed, asked)
			wire := one.out(t, routed)
			if dialled == "10.172.1.1" {
				expect(t, "out", wire, ends{a("10.160.255.7"), a("10.160.2.9"), 4000, 80})
				answer := one.in(t, tcp(endsOf(t, wire).swapped(), tcpSYN|tcpACK, ""))
				expect(t, "answer to the kernel", answer, asked.swapped())
				expect(t, "answer to the guest", one.out(t, answer), asked.swapped())
				continue
			}
			here := one.kernel()
			expect(t, "here", here, ends{a("10.160.255.7"), a("10.160.1.2"), 4000, 80})
			expect(t, "answer from here", one.out(t, tcp(endsOf(t, here).swapped(), tcpSYN|tcpACK, "")), asked.swapped())
		}
	})
}

// A guest that dials a container of its node, or the node (for names), by its own address gets the answer from there.
func TestGuestDialsAnAddress(t *testing.T) {
	one := newNode(t, 1, Options{})
	one.set("10.160.255.0/24", web(), client())
	for _, dst := range []string{"10.160.1.1", "10.160.1.2"} {
		asked := ends{"10.160.255.7", dst, 4000, 53}
		for range 2 {
			expect(t, "in", one.in(t, udp(asked, "?")), asked)
			expect(t, "answer", one.out(t, udp(asked.swapped(), "!")), asked.swapped())
		}
	}
	// The other way round the guest sees who calls, and its answer finds back.
	call := ends{"10.160.1.2", "10.160.255.7", 4000, 80}
	seen := ends{"10.172.0.10", "10.160.255.7", 4000, 80}
	expect(t, "to the guest", one.out(t, tcp(call, tcpSYN, "")), seen)
	answer := one.in(t, tcp(seen.swapped(), tcpSYN|tcpACK, ""))
	expect(t, "answer to the kernel", answer, seen.swapped())
	if one.out(t, answer) != nil {
		t.Fatal("the answer left the node")
	}
	expect(t, "answer", one.kernel(), call.swapped())
}

// A guest moves to another gateway, and back: the answers follow.
func TestGuestMoves(t *testing.T) {
	one := newNode(t, 1, Options{})
	asked := ends{"10.160.255.7", "10.160.1.2", 4000, 80}
	for _, guests := range []string{"10.160.255.0/24", "", "10.160.255.0/24"} {
		one.set(guests, web(), client())
		expect(t, "in", one.in(t, tcp(asked, tcpACK, "x")), asked)
		answer := one.out(t, tcp(asked.swapped(), tcpACK, "y"))
		expect(t, "answer", answer, asked.swapped())
	}
}

// A guest that may not is told so in terms of what it dialled.
func TestGuestIsDenied(t *testing.T) {
	one := newNode(t, 1, Options{})
	s := web()
	s.Allow = []string{}
	one.set("10.160.255.0/24", s, client())
	asked := ends{"10.160.255.7", "10.172.0.2", 4000, 80}
	if one.out(t, one.in(t, tcp(asked, tcpSYN, ""))) != nil || one.kernel() != nil {
		t.Fatal("a guest came through")
	}
	b := one.sent()
	expect(t, "denial", b, ends{"10.172.0.2", "10.160.255.7", 0, 0})
	if got := quotedIn(t, b); got != asked {
		t.Errorf("quoted %v, want %v", got, asked)
	}
}

// The third SYN without an answer tries another instance: a node may be dead and the table not know yet.
func TestSilentInstance(t *testing.T) {
	four := newNode(t, 4, Options{})
	four.set("", web())
	e := ends{"10.160.4.20", "10.172.0.1", 4000, 80}
	first := endsOf(t, four.out(t, tcp(e, tcpSYN, "")))
	expect(t, "second", four.out(t, tcp(e, tcpSYN, "")), first)
	other := endsOf(t, four.out(t, tcp(e, tcpSYN, "")))
	if other.dst == first.dst {
		t.Fatalf("the third SYN goes to %s again", first.dst)
	}
	expect(t, "answer", four.in(t, tcp(other.swapped(), tcpSYN|tcpACK, "")), e.swapped())
	expect(t, "stays", four.out(t, tcp(e, tcpSYN, "")), other)
}

func ExampleTable() {
	s := remote()
	t := NewTable(Config{Services: []*Service{&s}})
	real, _ := t.choose(addrOf(remote().RoundRobin))
	fmt.Println(real.netip())
	// Output: 10.160.2.9
}
