package service

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// seeds are packets of every kind; the rest of the corpus is in testdata/fuzz.
func seeds(f *testing.F) {
	for _, a := range []func(string) string{func(a string) string { return a }, six} {
		e := ends{a("10.160.1.20"), a("10.172.1.1"), 4000, 80}
		reply := ends{a("10.160.2.9"), a("10.160.1.20"), 80, 4000}
		for _, b := range [][]byte{tcp(e, tcpSYN, ""), tcpWith(e, tcpSYN, []byte{2, 4, 5, 0xb4}, ""), udp(e, "x"), echo(e, false, "x"), tcp(reply, tcpSYN|tcpACK, ""),
			udp(reply, "x"), echo(reply, true, "x"), udp(ends{a("10.160.2.9"), a("10.160.1.2"), 65535, 65535}, ""), tcp(ends{a("10.160.1.20"), a("10.172.0.2"), 80, 80}, tcpFIN|tcpACK, "")} {
			f.Add(b)
			f.Add(unreachableAbout(f, b, endsOf(f, b).dst))
			if b[0]>>4 == 4 && len(b) > 44 {
				first, later := fragmented(b, 3, 16)
				f.Add(first)
				f.Add(later)
			}
			if b[0]>>4 == 6 {
				f.Add(extended(b, protoFrag6, fragment6(b[6], 1)...))
				f.Add(extended(b, protoFrag6, fragment6(b[6], 1480)...))
				f.Add(extended(b, 0, b[6], 0, 1, 4, 0, 0, 0, 0))
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var p, q packet
		if p.parse(b) && p.kind != kindLater && (p.l4 > len(b) || p.sum+2 > len(b)) {
			t.Errorf("transport at %d, checksum at %d of %d bytes", p.l4, p.sum, len(b))
		}
		q.parseQuoted(b, true)
		q.parseQuoted(b, false)
		if !bytes.Equal(before, b) {
			t.Error("parse changes the packet")
		}
	})
}

// What divide makes of a packet that parse lets pass is the same again when it is put together. More bytes make the packet long.
func FuzzDivide(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, more := range []int{0, 1281, 9000, 65535} {
			long := append(bytes.Clone(b), make([]byte, max(0, more-len(b)))...)
			if len(long) > 40 && len(long)-40 <= 0xffff {
				binary.BigEndian.PutUint16(long[4:], uint16(len(long)-40))
			}
			var p packet
			if !p.parse(long) || !p.v6 || len(long) <= leastMTU6 {
				continue
			}
			list := divided(t, long)
			if _, _, whole := unfragmentable(long); len(list) > 0 && !bytes.Equal(together(t, list, whole), long) {
				t.Errorf("the pieces of %x do not make it", long)
			}
			if list == nil && long[6] == protoUDP {
				t.Errorf("%x is not divided", long)
			}
		}
	})
}

// fuzzed is a node that has flows in every state.
func fuzzed(t testing.TB) *node {
	n := newNode(t, 1, Options{Flows: 256, MTU: func(netip.Addr) int { return 1280 }})
	closed := remote()
	closed.Name, closed.RoundRobin, closed.Allow = "closed", netip.MustParseAddr("10.172.9.1"), []string{"client"}
	closed.Instances = []Instance{container(0, "10.172.9.10", "10.160.1.30")}
	n.set("10.160.255.0/24", web(), remote(), client(), closed)
	for _, a := range []func(string) string{func(a string) string { return a }, six} {
		e := ends{a("10.160.1.20"), a("10.172.1.1"), 4000, 80}
		for _, b := range [][]byte{tcp(e, tcpSYN, ""), udp(e, ""), echo(e, false, "")} {
			n.out(t, b)
			e.dst = a("10.172.1.10") // one on the wire with the other, but for its port
		}
	}
	return n
}

// good says that what came out of in or out is right when what went in was: its checksums hold, and it is as long.
func good(t *testing.T, what string, sent, got []byte) {
	if got == nil || !valid(sent) {
		return
	}
	if var4 := got[0] >> 4; var4 != 4 && var4 != 6 {
		t.Fatalf("%s: %x", what, got)
	}
	if !valid(got) {
		t.Errorf("%s: a checksum is wrong: %x became %x", what, sent, got)
	}
}

func drain(t *testing.T, n *node, sent []byte) {
	for b := n.kernel(); b != nil; b = n.kernel() {
		good(t, "to the kernel", sent, b)
	}
	for b := n.sent(); b != nil; b = n.sent() {
		good(t, "into the tunnel", sent, b)
	}
}

func FuzzOut(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		n := fuzzed(t)
		drain(t, n, b)
		for range 2 {
			good(t, "out", b, n.out(t, bytes.Clone(b)))
			drain(t, n, b)
		}
	})
}

func FuzzIn(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		n := fuzzed(t)
		drain(t, n, b)
		for range 2 {
			good(t, "in", b, n.in(t, bytes.Clone(b)))
			drain(t, n, b)
		}
	})
}
