package service

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// ends are the ends of a packet that a test builds.
type ends struct {
	src, dst     string
	sport, dport uint16
}

// make4 and make6 put an IP header with right checksums around a transport header and what follows it.
func makeIP(e ends, proto uint8, t []byte) []byte {
	src, dst := netip.MustParseAddr(e.src), netip.MustParseAddr(e.dst)
	var b []byte
	if src.Is4() {
		b = make([]byte, 20, 20+len(t))
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(t)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^fold(wordSum(b, false)))
	} else {
		b = make([]byte, 40, 40+len(t))
		b[0], b[6], b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(t)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
	}
	return append(b, t...)
}

// addressesOf returns the addresses' bytes of a packet, and where its transport begins when it has no extension headers.
func addressesOf(b []byte) ([]byte, int) {
	if b[0]>>4 == 4 {
		return b[12:20], int(b[0]&15) * 4
	}
	return b[8:40], 40
}

// checksum returns the right checksum of the transport in b, whose field is taken as zero.
func checksum(b []byte, proto uint8, l4, at int) uint16 {
	addresses, _ := addressesOf(b)
	total := wordSum(b[l4:], false) - uint64(binary.BigEndian.Uint16(b[at:]))
	if proto != protoICMP {
		total += wordSum(addresses, false) + uint64(proto) + uint64(len(b)-l4)
	}
	return ^fold(total)
}

func seal(b []byte, proto uint8, offset int) []byte {
	_, l4 := addressesOf(b)
	c := checksum(b, proto, l4, l4+offset)
	if proto == protoUDP && c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[l4+offset:], c)
	return b
}

func udp(e ends, payload string) []byte {
	t := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(t, e.sport)
	binary.BigEndian.PutUint16(t[2:], e.dport)
	binary.BigEndian.PutUint16(t[4:], uint16(8+len(payload)))
	return seal(makeIP(e, protoUDP, append(t, payload...)), protoUDP, 6)
}

func tcp(e ends, flags uint8, payload string) []byte {
	return tcpWith(e, flags, nil, payload)
}

func tcpWith(e ends, flags uint8, options []byte, payload string) []byte {
	t := make([]byte, 20, 60)
	binary.BigEndian.PutUint16(t, e.sport)
	binary.BigEndian.PutUint16(t[2:], e.dport)
	binary.BigEndian.PutUint32(t[4:], 1000)
	binary.BigEndian.PutUint32(t[8:], 2000)
	t[12], t[13] = uint8(20+len(options))/4<<4, flags
	return seal(makeIP(e, protoTCP, append(append(t, options...), payload...)), protoTCP, 16)
}

// echo builds an echo request of the id sport, or a reply to the id dport.
func echo(e ends, reply bool, payload string) []byte {
	t := make([]byte, 8, 8+len(payload))
	id, proto := e.sport, uint8(protoICMP)
	v4 := netip.MustParseAddr(e.src).Is4()
	switch {
	case v4 && !reply:
		t[0] = 8
	case !v4 && !reply:
		t[0], proto = 128, protoICMP6
	case !v4:
		t[0], proto = 129, protoICMP6
	}
	if reply {
		id = e.dport
	}
	binary.BigEndian.PutUint16(t[4:], id)
	return seal(makeIP(e, proto, append(t, payload...)), proto, 2)
}

// valid says whether every checksum of a packet is right, of one inside an ICMP error too.
func valid(b []byte) bool {
	var p packet
	if !p.parse(b) {
		return false
	}
	if !p.v6 && fold(wordSum(b[:int(b[0]&15)*4], false)) != 0xffff {
		return false
	}
	if p.kind == kindLater || p.first || p.sum == 0 {
		return true
	}
	want, got := checksum(b, p.proto, p.l4, p.sum), binary.BigEndian.Uint16(b[p.sum:])
	return want == got || want == 0 && got == 0xffff || want == 0xffff && got == 0
}

func read(t testing.TB, b []byte) packet {
	t.Helper()
	var p packet
	if !p.parse(b) {
		t.Fatalf("does not parse: %x", b)
	}
	if !valid(b) {
		t.Fatalf("a checksum is wrong: %x", b)
	}
	return p
}

// endsOf returns the ends of a packet in the form that tests write.
func endsOf(t testing.TB, b []byte) ends {
	p := read(t, b)
	return ends{p.src.netip().String(), p.dst.netip().String(), p.sport, p.dport}
}

func (e ends) swapped() ends { return ends{e.dst, e.src, e.dport, e.sport} }

// fragmented splits a packet of IPv4 into two fragments; at is a multiple of eight.
func fragmented(b []byte, id uint16, at int) (first, later []byte) {
	split := func(part []byte, where uint16) []byte {
		f := append(append([]byte(nil), b[:20]...), part...)
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[4:], id)
		binary.BigEndian.PutUint16(f[6:], where)
		f[10], f[11] = 0, 0
		binary.BigEndian.PutUint16(f[10:], ^fold(wordSum(f[:20], false)))
		return f
	}
	return split(b[20:20+at], 0x2000), split(b[20+at:], uint16(at/8))
}

// joined puts two fragments of IPv4 together again.
func joined(first, later []byte) []byte {
	b := append(append([]byte(nil), first...), later[20:]...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[6], b[7] = 0, 0
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(wordSum(b[:20], false)))
	return b
}

func TestParseRefuses(t *testing.T) {
	good := udp(ends{"10.160.0.2", "10.160.0.3", 1, 65535}, "x")
	good6 := udp(ends{"fd5c:ae11:9::2", "fd5c:ae11:9::3", 1, 65535}, "x")
	change := func(b []byte, at int, to ...byte) []byte {
		c := append([]byte(nil), b...)
		copy(c[at:], to)
		return c
	}
	extended := func(next uint8, header []byte) []byte {
		b := append(append(append([]byte(nil), good6[:40]...), header...), good6[40:]...)
		b[6] = next
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
	chain := extended(60, append([]byte{60, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 0)...))
	for range maxExtensions {
		b := append(append(append([]byte(nil), chain[:40]...), 60, 0, 0, 0, 0, 0, 0, 0), chain[40:]...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		chain = b
	}
	for name, b := range map[string][]byte{
		"empty": {}, "one byte": {0x45}, "version 5": change(good, 0, 0x55), "version 0": change(good, 0, 5),
		"short header": change(good, 0, 0x44), "header beyond the end": change(good, 0, 0x4f), "shorter than it says": good[:len(good)-1],
		"longer than it says": append(append([]byte(nil), good...), 0), "udp cut": makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoUDP, make([]byte, 7)),
		"udp length": change(good, 24, 0, 7), "udp longer": change(good, 24, 0, 99), "tcp cut": makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoTCP, make([]byte, 19)),
		"tcp offset": makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoTCP, make([]byte, 20)), "fragment at 8": change(good, 6, 0, 1),
		"first fragment cut": change(makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoTCP, make([]byte, 8)), 6, 0x20, 0),
		"icmp cut":           makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoICMP, make([]byte, 7)), "icmp6 in v4": makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoICMP6, make([]byte, 8)),
		"redirect":  makeIP(ends{src: "10.160.0.2", dst: "10.160.0.3"}, protoICMP, []byte{5, 0, 0, 0, 0, 0, 0, 0}),
		"neighbour": makeIP(ends{src: "fd5c:ae11:9::2", dst: "fd5c:ae11:9::3"}, protoICMP6, []byte{135, 0, 0, 0, 0, 0, 0, 0}),
		"v6 short":  good6[:39], "v6 length": change(good6, 5, 99), "v4 in v6": change(good6, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1),
		"v6 extension beyond the end": extended(60, []byte{17, 9, 0, 0, 0, 0, 0, 0}), "v6 route to go": extended(43, []byte{17, 0, 0, 1, 0, 0, 0, 0}),
		"v6 hop by hop twice": extended(0, []byte{0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0}), "v6 chain": chain,
	} {
		if new(packet).parse(b) {
			t.Errorf("%s: taken", name)
		}
	}
	for name, b := range map[string][]byte{"v4": good, "v6": good6, "v6 extension": extended(60, []byte{17, 0, 0, 0, 0, 0, 0, 0}), "v6 route at its end": extended(43, []byte{17, 0, 4, 0, 0, 0, 0, 0})} {
		var p packet
		if !p.parse(b) || p.dport != 65535 || p.kind != kindPorts {
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

func TestDeltaKnowsEveryChange(t *testing.T) {
	if deltaPort(65535, 0) == 0 || deltaPort(0, 65535) == 0 || deltaPort(7, 7) != 0 {
		t.Error("a change of 65535 to 0 is lost")
	}
	a, b := addr{0, mapped | 0x0a000001}, addr{0, mapped | 0x00010a00} // the same words, so the same checksum
	if a.delta(b) == 0 || negated(a.delta(b)) == 0 || a.delta(a) != 0 {
		t.Error("a change of the order of words is lost")
	}
}
