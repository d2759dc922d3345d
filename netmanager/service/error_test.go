package service

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// unreachableAbout builds what a router or host with the address from says about a packet that it got.
func unreachableAbout(t testing.TB, b []byte, from string) []byte {
	p := read(t, b)
	p.dst = addrOf(netip.MustParseAddr(from))
	return icmpError(&p, unreachable, 0)
}

// quotedIn returns the ends of the packet inside an ICMP error, whose checksums must be right.
func quotedIn(t testing.TB, b []byte) ends {
	t.Helper()
	p := read(t, b)
	if p.kind != kindError {
		t.Fatalf("no error: %x", b)
	}
	inner := p.b[p.l4+8:]
	return endsOf(t, inner)
}

// An error about a packet of a flow is understood by its sender: the packet inside is the one that it sent.
func TestErrorsFollowTheirFlow(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		for _, p := range protocols {
			one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
			one.set("", remote(), client(), web())
			two.set("", remote(), client(), web())
			asked := ends{a("10.160.1.20"), a("10.172.1.1"), 4000, p.port}
			got := two.in(t, one.out(t, p.build(asked, false)))
			// The server says so itself; its address becomes the one that was dialled.
			wire := two.out(t, unreachableAbout(t, got, a("10.160.2.9")))
			expect(t, "server's error", wire, ends{a("10.160.2.9"), a("10.160.1.20"), 0, 0})
			back := one.in(t, wire)
			expect(t, "server's error", back, ends{a("10.172.1.1"), a("10.160.1.20"), 0, 0})
			if got := quotedIn(t, back); got != asked {
				t.Errorf("%s: quoted %v, want %v", p.name, got, asked)
			}
			// Its node says so.
			back = one.in(t, two.out(t, unreachableAbout(t, got, a("10.160.2.1"))))
			expect(t, "node's error", back, ends{a("10.160.2.1"), a("10.160.1.20"), 0, 0})
			// The client refuses the answer.
			served := endsOf(t, got)
			answer := one.in(t, two.out(t, p.build(served.swapped(), true)))
			back = two.in(t, one.out(t, unreachableAbout(t, answer, a("10.160.1.20"))))
			expect(t, "client's error", back, ends{a("10.172.2.10"), a("10.160.2.9"), 0, 0})
			if got := quotedIn(t, back); got != served.swapped() {
				t.Errorf("%s: quoted %v, want %v", p.name, got, served.swapped())
			}
			// And between two of one node.
			asked.dst, asked.dport = a("10.172.0.2"), p.port
			one.out(t, p.build(asked, false))
			if b := one.out(t, unreachableAbout(t, one.kernel(), a("10.160.1.2"))); b != nil {
				t.Fatal("an error about a local flow left the node")
			}
			back = one.kernel()
			expect(t, "local error", back, ends{a("10.172.0.2"), a("10.160.1.20"), 0, 0})
			if got := quotedIn(t, back); got != asked {
				t.Errorf("%s: quoted %v, want %v", p.name, got, asked)
			}
			if b := two.in(t, unreachableAbout(t, p.build(ends{a("10.160.2.9"), a("10.160.1.5"), 7, p.port}, false), a("10.160.1.5"))); b != nil {
				t.Error("an error about a packet that was never sent came through")
			}
		}
	})
}

// With ports that were changed, an error still finds back.
func TestErrorWithChangedPort(t *testing.T) {
	one := newNode(t, 1, Options{})
	one.set("", remote(), client())
	one.out(t, udp(ends{"10.160.1.20", "10.172.1.1", 4000, 53}, "a"))
	asked := ends{"10.160.1.20", "10.172.1.10", 4000, 53}
	wire := append([]byte(nil), one.out(t, udp(asked, "b"))...)
	if sent := endsOf(t, wire); sent.sport == 4000 {
		t.Fatalf("two flows are one on the wire: %v", sent)
	}
	back := one.in(t, unreachableAbout(t, wire, "10.160.2.9"))
	expect(t, "error", back, ends{"10.172.1.10", "10.160.1.20", 0, 0})
	if got := quotedIn(t, back); got != asked {
		t.Errorf("quoted %v, want %v", got, asked)
	}
}

func TestFragments(t *testing.T) {
	payload := string(bytes.Repeat([]byte("0123456789abcdef"), 8))
	for _, dialled := range []string{"10.172.1.1", "10.172.0.2"} { // elsewhere and here
		one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
		one.set("", remote(), client(), web())
		two.set("", remote(), client(), web())
		asked := ends{"10.160.1.20", dialled, 4000, 53}
		first, later := fragmented(udp(asked, payload), 77, 64)
		carry := func(b []byte) []byte {
			wire := one.out(t, b)
			if wire == nil {
				return one.kernel()
			}
			return two.in(t, append([]byte(nil), wire...))
		}
		if got := carry(later); got != nil {
			t.Fatal("a later fragment came before the first")
		}
		got := joined(carry(first), carry(later))
		want := ends{"10.172.2.10", "10.160.2.9", 4000, 53}
		if dialled == "10.172.0.2" {
			want.dst = "10.160.1.2"
		}
		expect(t, "joined", got, want)
		if !bytes.HasSuffix(got, []byte(payload)) {
			t.Error("the payload changed")
		}
	}
}

func TestFragments6(t *testing.T) {
	one, two := newNode(t, 1, Options{}), newNode(t, 2, Options{})
	one.set("", remote(), client())
	two.set("", remote(), client())
	whole := udp(ends{six("10.160.1.20"), six("10.172.1.1"), 4000, 53}, string(make([]byte, 100)))
	part := func(from, to int, where uint16) []byte {
		b := append(append([]byte(nil), whole[:40]...), protoUDP, 0, 0, 0, 0, 0, 0, 9)
		binary.BigEndian.PutUint16(b[42:], where)
		b = append(b, whole[40+from:40+to]...)
		b[6] = 44
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
	first := two.in(t, append([]byte(nil), one.out(t, part(0, 64, 1))...))
	later := two.in(t, append([]byte(nil), one.out(t, part(64, 108, 64))...))
	if first == nil || later == nil {
		t.Fatal("a fragment was lost")
	}
	b := append(append(append([]byte(nil), first[:40]...), first[48:]...), later[48:]...)
	b[6] = protoUDP
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	expect(t, "joined", b, ends{six("10.172.2.10"), six("10.160.2.9"), 4000, 53})
}

func TestPathMTU(t *testing.T) {
	families(t, func(t *testing.T, a func(string) string) {
		one := newNode(t, 1, Options{MTU: func(to netip.Addr) int {
			if to.String() == a("10.160.2.9") {
				return 1300
			}
			return 0
		}})
		one.set("", remote(), client(), web())
		asked := ends{a("10.160.1.20"), a("10.172.1.1"), 4000, 80}
		long := tcp(asked, tcpACK, string(make([]byte, 1400)))
		if b := one.out(t, append([]byte(nil), long...)); b != nil {
			t.Fatal("a packet that is too big for the path went out")
		}
		b := one.kernel()
		expect(t, "too big", b, ends{a("10.172.1.1"), a("10.160.1.20"), 0, 0})
		p := read(t, b)
		if kind, mtu := b[p.l4], int(binary.BigEndian.Uint16(b[p.l4+6:])); mtu != 1300 || kind != 3 && kind != 2 {
			t.Errorf("got ICMP %d with MTU %d", kind, mtu)
		}
		if !bytes.Equal(p.b[p.l4+8:][:60], long[:60]) {
			t.Error("the error does not quote the packet that was sent")
		}
		if !p.v6 {
			long[6] = 0 // may be fragmented
			long[10], long[11] = 0, 0
			binary.BigEndian.PutUint16(long[10:], ^fold(wordSum(long[:20], false)))
			if one.out(t, long) == nil {
				t.Error("a packet that may be fragmented was dropped")
			}
		}
		for _, options := range [][]byte{{2, 4, 0x23, 0x28}, {1, 2, 4, 0x23, 0x28, 0, 0, 0}, {1, 1, 2, 4, 0x23, 0x28, 3, 99}} {
			asked.sport++
			wire := one.out(t, tcpWith(asked, tcpSYN, options, ""))
			at := bytes.Index(wire, []byte{2, 4})
			want := uint16(1300 - 40)
			if p.v6 {
				want -= 20
			}
			for at > 0 && binary.BigEndian.Uint16(wire[at+2:]) != want { // the first 2, 4 may be elsewhere
				if next := bytes.Index(wire[at+1:], []byte{2, 4}); next < 0 {
					at = -1
				} else {
					at += 1 + next
				}
			}
			if at < 0 || !valid(wire) {
				t.Errorf("MSS not clamped: %x", wire)
			}
		}
	})
}

func TestPathMTUOfAnswer(t *testing.T) {
	two := newNode(t, 2, Options{MTU: func(netip.Addr) int { return 1280 }})
	two.set("", remote(), client())
	got := two.in(t, tcpWith(ends{"10.160.1.20", "10.160.2.9", 4000, 80}, tcpSYN, []byte{2, 4, 5, 0xb4}, ""))
	if mss := binary.BigEndian.Uint16(got[42:]); mss != 1240 || !valid(got) {
		t.Errorf("got MSS %d, want 1240", mss)
	}
}
