package tun

import (
	"encoding/binary"
	"testing"

	"github.com/tailscale/wireguard-go/tun"
)

// whole is a TCP packet of IPv4 with that much payload, as the kernel hands it out: its checksum is that of the pseudo header.
func whole(payload int) []byte {
	b := make([]byte, 40+payload)
	b[0], b[8], b[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{10, 160, 1, 2, 10, 160, 2, 2})
	binary.BigEndian.PutUint16(b[10:], ^tun.Checksum(b[:20], 0))
	b[32], b[33] = 5<<4, 0x18
	binary.BigEndian.PutUint16(b[36:], tun.PseudoHeaderChecksum(6, b[12:16], b[16:20], uint16(len(b)-20)))
	return b
}

func header(flags, kind uint8, size, start, offset uint16) []byte {
	h := []byte{flags, kind, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.NativeEndian.PutUint16(h[4:], size)
	binary.NativeEndian.PutUint16(h[6:], start)
	binary.NativeEndian.PutUint16(h[8:], offset)
	return h
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name             string
		header           []byte
		payload, segment int
		want             []int
	}{
		{"three segments", header(1, 1, 1000, 20, 16), 2500, 1040, []int{1040, 1040, 540}},
		{"one that is whole", header(1, 0, 0, 20, 16), 100, 140, []int{140}},
	} {
		packet := whole(c.payload)
		s, err := decode(c.header, packet)
		if err != nil {
			t.Fatal(err)
		}
		if s.Segment() != c.segment || !s.Partial() {
			t.Errorf("%s: %d bytes at most, partial %v", c.name, s.Segment(), s.Partial())
		}
		slab, packets := make([]byte, 1<<16), make([]ReadPacket, 128)
		copy(slab[Spacing:], packet)
		n, err := Split(slab, s, packets)
		if err != nil || n != len(c.want) {
			t.Fatalf("%s: %d packets, %v", c.name, n, err)
		}
		for i, p := range packets[:n] {
			b := slab[p.Offset : p.Offset+p.Size]
			if p.Size != c.want[i] || tun.Checksum(b[20:], tun.PseudoHeaderChecksum(6, b[12:16], b[16:20], uint16(len(b)-20))) != 0xffff {
				t.Errorf("%s: packet %d of %d bytes, want %d and a right checksum", c.name, i, p.Size, c.want[i])
			}
		}
	}
	if _, err := decode(header(0, 0x81, 9, 20, 16), whole(9)); err == nil {
		t.Error("an offload that nobody asked for was taken")
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(header(1, 1, 1000, 20, 16), whole(2500))
	f.Add(header(1, 5, 1000, 20, 6), whole(2500))
	f.Add(header(1, 0, 0, 20, 16), whole(10))
	f.Add(header(0, 4, 1, 0xffff, 0xffff), whole(1))
	f.Fuzz(func(t *testing.T, h, packet []byte) {
		slab, packets := make([]byte, 1<<17), make([]ReadPacket, 128)
		if len(h) != vnetHeader || len(packet) > len(slab)-2*Spacing {
			return
		}
		s, err := decode(h, packet)
		if err != nil {
			return
		}
		copy(slab[Spacing:], packet)
		if s.Segment() > s.Size {
			t.Error("a segment is longer than the whole")
		}
		n, err := Split(slab, s, packets)
		if err == nil && n == 0 {
			t.Error("neither packets nor an error")
		}
	})
}
