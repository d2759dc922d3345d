package service

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"skerry.internal/netmanager/tun"
)

// extended puts extension headers, which name what comes next, before the transport of an IPv6 packet.
func extended(b []byte, next uint8, headers ...byte) []byte {
	b = slices.Insert(bytes.Clone(b), 40, headers...)
	b[6] = next
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// fragment6 returns the header of a fragment, whose offset has the flags in its last bits.
func fragment6(next uint8, offset uint16) []byte {
	return []byte{next, 0, byte(offset >> 8), byte(offset), 1, 2, 3, 4}
}

// divided returns the pieces of a packet, in a slab as the tunnel has them; nil where it cannot be divided.
func divided(t testing.TB, b []byte) (list [][]byte) {
	slab, packets := make([]byte, 1<<17), make([]tun.ReadPacket, 128)
	packets[0] = tun.ReadPacket{Offset: tun.Spacing, Size: copy(slab[tun.Spacing:], b)}
	free := tun.Spacing
	for _, at := range packets[:divide(slab, packets)] {
		if at.Offset < free || at.Offset+at.Size+tun.Spacing > len(slab) {
			t.Fatalf("a piece lies at %v, and before %d is no room", at, free)
		}
		list = append(list, slab[at.Offset:at.Offset+at.Size])
		free = at.Offset + at.Size + tun.Spacing
	}
	return list
}

// together puts pieces together as their receiver would: to the whole packet, or to the fragment that they were before.
func together(t testing.TB, list [][]byte, whole bool) []byte {
	t.Helper()
	first := list[0]
	named, at := 6, 40
	for first[named] != protoFrag6 {
		named, at = at, at+int(first[at+1])*8+8
	}
	body := at + fragHeader6
	got := bytes.Clone(first[:body])
	start := binary.BigEndian.Uint16(first[at+2:])
	for i, b := range list {
		if int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 || len(b) > leastMTU6 {
			t.Fatalf("piece %d says it has %d bytes, and has %d", i, binary.BigEndian.Uint16(b[4:]), len(b)-40)
		}
		if !bytes.Equal(b[:4], first[:4]) || !bytes.Equal(b[6:at+2], first[6:at+2]) || !bytes.Equal(b[at+4:body], first[at+4:body]) {
			t.Fatalf("piece %d has other headers: %x, the first has %x", i, b[:body], first[:body])
		}
		where := binary.BigEndian.Uint16(b[at+2:])
		if int(where&^7) != int(start&^7)+len(got)-body {
			t.Fatalf("piece %d is for %d, want %d", i, where&^7, int(start&^7)+len(got)-body)
		}
		if i < len(list)-1 && (where&1 == 0 || (len(b)-body)%8 != 0) {
			t.Fatalf("piece %d of %d bytes says that it is the last", i, len(b))
		}
		got[at+3] = got[at+3]&^1 | b[at+3]&1
		got = append(got, b[body:]...)
	}
	if whole {
		if got[at+2]|got[at+3] != 0 {
			t.Fatalf("the pieces of a whole packet begin or end within it: %x", got[at:body])
		}
		got[named] = got[at]
		got = slices.Delete(got, at, body)
	}
	binary.BigEndian.PutUint16(got[4:], uint16(len(got)-40))
	return got
}

func TestDivide(t *testing.T) {
	e := ends{six("10.160.1.20"), six("10.172.1.1"), 4000, 53}
	long := func(n int) []byte { return udp(e, strings.Repeat("0123456789abcdefg", n/17+1)[:n]) }
	for name, c := range map[string]struct {
		b     []byte
		whole bool
		want  int
	}{
		"whole":                   {long(1281 - 48), true, 2},
		"largest":                 {long(65535 - 8), true, 54},
		"full pieces":             {long(3*1232 - 8), true, 3},
		"hop by hop":              {extended(long(4000), 0, protoUDP, 0, 1, 4, 0, 0, 0, 0), true, 4},
		"options, route":          {extended(long(4000), 60, 43, 0, 1, 4, 0, 0, 0, 0, protoUDP, 0, 0, 0, 0, 0, 0, 0), true, 4},
		"fragment that is all":    {extended(long(2000), protoFrag6, fragment6(protoUDP, 0)...), false, 2},
		"first fragment":          {extended(long(1400), protoFrag6, fragment6(protoUDP, 1)...), false, 2},
		"middle":                  {extended(long(8872-8), protoFrag6, fragment6(protoUDP, 8872|1)...), false, 8},
		"last":                    {extended(long(3001), protoFrag6, fragment6(protoUDP, 8872)...), false, 3},
		"last possible":           {extended(long(1300-8), protoFrag6, fragment6(protoUDP, 64232)...), false, 2},
		"hop by hop, fragment":    {extended(long(1400), 0, append([]byte{protoFrag6, 0, 1, 4, 0, 0, 0, 0}, fragment6(protoUDP, 1)...)...), false, 2},
		"fragment of a fragment":  {extended(long(1400), protoFrag6, append(fragment6(protoFrag6, 1), fragment6(protoUDP, 1)...)...), false, 2},
		"beyond the end":          {extended(long(1300-8), protoFrag6, fragment6(protoUDP, 64240)...), false, 0},
		"at the end":              {extended(long(1300-8), protoFrag6, fragment6(protoUDP, 65528)...), false, 0},
		"headers as long as that": {extended(long(1400), 0, append([]byte{protoUDP, 153}, make([]byte, 1230)...)...), true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if !new(packet).parse(c.b) {
				t.Fatalf("does not parse: %x", c.b[:60])
			}
			got := divided(t, c.b)
			if len(got) != c.want {
				t.Fatalf("got %d pieces, want %d", len(got), c.want)
			}
			if c.want > 0 && !bytes.Equal(together(t, got, c.whole), c.b) {
				t.Error("the pieces do not make the packet")
			}
		})
	}
	if a, b := divided(t, long(4000)), divided(t, long(4000)); bytes.Equal(a[0], b[0]) {
		t.Error("two packets became one datagram")
	}
}

// kernelQueue plays the kernel's queue, whose packets have a checksum that is whole or partial.
type kernelQueue struct {
	tun.Queue
	next    []byte
	partial bool
}

func (k *kernelQueue) ReadSuper(slab []byte) (tun.Super, error) {
	if k.next == nil {
		return tun.Super{}, os.ErrClosed
	}
	s := tun.Super{Size: copy(slab[tun.Spacing:], k.next)}
	if k.partial {
		s.NeedsCsum, s.CsumStart, s.CsumOffset = true, 40, 6
	}
	k.next = nil
	return s, nil
}

func (k *kernelQueue) WriteSuper([]byte, tun.Super) error { return nil }

// A datagram of IPv6 that is too long for the path goes in pieces where it was put together on the bridge, and its sender hears where it was not.
func TestPathMTUOfFragments(t *testing.T) {
	mtu := 1400
	one, two := newNode(t, 1, Options{MTU: func(netip.Addr) int { return mtu }}), newNode(t, 2, Options{})
	one.set("", remote(), client())
	two.set("", remote(), client())
	asked := ends{six("10.160.1.20"), six("10.172.1.1"), 4000, 53}
	payload := strings.Repeat("0123456789abcdefg", 200)
	whole := udp(asked, payload)
	kernel := &kernelQueue{}
	queue := &superQueue{super: kernel, d: one.Device}
	slab, packets := make([]byte, 1<<17), make([]tun.ReadPacket, 128)
	send := func(b []byte) (list [][]byte) { // what the other node's kernel gets
		kernel.next = b
		n, _ := queue.Read(slab, packets)
		for _, at := range packets[:n] {
			if got := two.in(t, bytes.Clone(slab[at.Offset:at.Offset+at.Size])); got != nil {
				list = append(list, got)
			}
		}
		return list
	}
	arrives := func(what, payload string, list [][]byte) {
		t.Helper()
		if len(list) < 2 {
			t.Fatalf("%s: %d pieces arrive", what, len(list))
		}
		b := together(t, list, true)
		expect(t, what, b, ends{six("10.172.2.10"), six("10.160.2.9"), 4000, 53})
		if !bytes.HasSuffix(b, []byte(payload)) {
			t.Errorf("%s: the payload changed", what)
		}
	}
	kernel.partial = true
	if got := send(whole); got != nil {
		t.Error("what its sender could cut went out in pieces")
	}
	told := one.kernel()
	expect(t, "too big", told, ends{six("10.172.1.1"), six("10.160.1.20"), 0, 0})
	kernel.partial = false
	if got := send(tcp(asked, tcpACK, payload)); got != nil || one.kernel() == nil {
		t.Error("TCP went in pieces")
	}
	arrives("put together", payload, send(whole))

	cut := func(from, to int, where uint16) []byte {
		b := append(bytes.Clone(whole[:40]), whole[40+from:40+to]...)
		b[6] = protoUDP
		return extended(b, protoFrag6, fragment6(protoUDP, uint16(from)|where)...)
	}
	arrives("cut anew", payload, append(append(send(cut(0, 1600, 1)), send(cut(1600, 3200, 1))...), send(cut(3200, 3408, 0))...))

	short := udp(asked, payload[:1300])
	if got := send(short); len(got) != 1 {
		t.Errorf("what the path carries went in %d pieces", len(got))
	}
	mtu = 0 // no limit, but for the link of the container there
	far := read(t, udp(ends{six("10.160.1.20"), six("10.160.2.9"), 4000, 53}, payload[:1300]))
	if one.in(t, icmpError(&far, packetTooBig, 1300)) == nil {
		t.Fatal("the container does not hear of it")
	}
	arrives("told from beyond", payload[:1300], send(short))
	if b := one.kernel(); b != nil {
		t.Errorf("the container hears more: %x", b)
	}
}

// A packet that waited for its service goes in pieces too.
func TestPathMTUAfterMiss(t *testing.T) {
	one := newNode(t, 1, Options{MTU: func(netip.Addr) int { return 1280 }})
	one.set("", client())
	payload := strings.Repeat("x", 1300-48)
	one.out(t, udp(ends{six("10.160.1.20"), six("10.172.1.1"), 4000, 53}, payload))
	one.set("", client(), remote())
	b := together(t, [][]byte{one.sent(), one.sent()}, true)
	expect(t, "after a miss", b, ends{six("10.160.1.20"), six("10.160.2.9"), 4000, 53})
}
