package bind

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/netmanager/relay"
)

// boxes returns the two ends of a pair of keys that are always the same.
func boxes(t testing.TB) (a, b box) {
	t.Helper()
	ka, kb := relay.Key{8, 31: 64}, relay.Key{16, 31: 64}
	a, errA := newBox(ka, ka.Public(), kb.Public())
	b, errB := newBox(kb, kb.Public(), ka.Public())
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	return a, b
}

var compareAddrs = cmp.Options{cmp.AllowUnexported(message{}), cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })}

func TestFrames(t *testing.T) {
	a, b := boxes(t)
	many := slices.Repeat([]netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:7000")}, maxOffered)
	for _, m := range []message{
		{kind: ping, boot: 1, gen: 2, tx: 3},
		{kind: ping, boot: 1, gen: 2, tx: 3, session: true, pad: 8900},
		{kind: pong, boot: 1<<64 - 1, gen: 1<<32 - 1, tx: 1<<64 - 1, seen: netip.MustParseAddrPort("192.0.2.1:65535")},
		{kind: pong, tx: 3, seen: netip.MustParseAddrPort("[::]:0")},
		{kind: punch, offer: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7000"), netip.MustParseAddrPort("[2001:db8::1]:1")}},
		{kind: punch, offer: many},
		{kind: punch},
	} {
		frame := a.seal(m)
		if !isFrame(frame) || [tagSize]byte(frame[len(magic):]) != b.theirs {
			t.Errorf("%+v: not known as a's", m)
		}
		got, err := b.open(frame)
		if err != nil {
			t.Errorf("%+v: %v", m, err)
			continue
		}
		if diff := cmp.Diff(m, got, compareAddrs); diff != "" {
			t.Error(diff)
		}
		if _, err := a.open(frame); err == nil {
			t.Errorf("%+v: its sender took it for the other's", m)
		}
		for i := range frame {
			broken := bytes.Clone(frame)
			broken[i] ^= 1
			if _, err := b.open(broken); err == nil && i >= len(magic) {
				t.Fatalf("%+v: passed with byte %d changed", m, i)
			}
			if i > 200 {
				break
			}
		}
	}
	question, answer := a.seal(message{kind: ping}), b.seal(message{kind: pong})
	if len(answer) > len(question) {
		t.Errorf("an answer of %d bytes to a question of %d", len(answer), len(question))
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message{kind: ping, boot: 1, gen: 2, tx: 3, pad: 5}.append(nil))
	f.Add(message{kind: pong, session: true, seen: netip.MustParseAddrPort("192.0.2.1:7000")}.append(nil))
	f.Add(message{kind: punch, offer: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:7000")}}.append(nil))
	f.Fuzz(func(t *testing.T, plain []byte) {
		m, err := parseMessage(plain)
		if err != nil {
			return
		}
		again, err := parseMessage(m.append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, again, compareAddrs); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzFrame(f *testing.F) {
	a, b := boxes(f)
	good := a.seal(message{kind: ping, tx: 1})
	f.Add(good)
	f.Add(a.seal(message{kind: punch, offer: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7000")}}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if !isFrame(datagram) {
			return
		}
		_, _ = b.open(datagram)
	})
}

func FuzzControl(f *testing.F) {
	f.Add(appendSegment(nil, 1452))
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, oob []byte) {
		src, segment := control(bytes.Clone(oob))
		if len(src) > len(oob) || segment < 0 || segment > 1<<16 {
			t.Fatalf("got %d bytes of source and segments of %d", len(src), segment)
		}
	})
}

// FuzzHandshake holds for packets of any content that look like WireGuard's: of a message of a handshake without a proof of where it comes from one copy
// passes, of an answer to nobody's question none, and all others as often as they come.
func FuzzHandshake(f *testing.F) {
	f.Add(append([]byte{initiation, 0, 0, 0}, make([]byte, initiationLength-4)...))
	f.Add(append([]byte{initiation, 0, 0, 0}, bytes.Repeat([]byte{7}, initiationLength-4)...))
	f.Add(append([]byte{response, 0, 0, 0}, make([]byte, responseLength-4)...))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if !new(Bind).sealed(packet) {
			return
		}
		h := handshakes{begun: map[uint32]*Peer{}, seed: maphash.MakeSeed()}
		first, second := h.pass(packet), h.pass(packet)
		want, again := packet[0] != response && (packet[0] != initiation || len(packet) == initiationLength), true
		if packet[0] == initiation && want {
			again = !bytes.Equal(packet[len(packet)-macLength:], make([]byte, macLength))
		}
		if first != want || second != (want && again) {
			t.Errorf("%x passed: %v, %v", packet, first, second)
		}
	})
}
