package bind

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/relay"
)

// stream is a relay's that counts how often it was to be dialled anew.
type stream struct {
	local   netip.Addr
	redials int
}

func (s *stream) Send(relay.Key, []byte) bool { return true }
func (s *stream) Connected() bool             { return s.local.IsValid() }
func (s *stream) Local() netip.Addr           { return s.local }
func (s *stream) Redial()                     { s.redials++ }

// The stream to the relay is dialled anew when its own address is gone, and not for any other, such as that of a bridge of Docker's.
func TestRedialOfTheStreamOfAnAddress(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address := func(change func(netlink.Link, *netlink.Addr) error, text string) {
		t.Helper()
		a, err := netlink.ParseAddr(text)
		if err == nil {
			err = change(lo, a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &stream{local: netip.MustParseAddr("192.0.2.1")}
	b, err := New(Config{PrivateKey: relay.Key{1}, Relay: s}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	address(netlink.AddrAdd, "192.0.2.1/32")
	address(netlink.AddrAdd, "198.51.100.1/32")
	b.look(time.Now())
	for _, step := range []struct {
		gone string
		want int
	}{{"198.51.100.1/32", 0}, {"192.0.2.1/32", 1}} {
		address(netlink.AddrDel, step.gone)
		b.look(time.Now())
		if s.redials != step.want {
			t.Errorf("without %s: dialled anew %d times, want %d", step.gone, s.redials, step.want)
		}
	}
}

// What a reflector saw and what the default route sends from come before the other addresses, of which a machine may have more than are told.
func TestPlaces(t *testing.T) {
	now := time.Now()
	var local []netip.Addr
	for i := range byte(2 * maxOffered) {
		local = append(local, netip.AddrFrom4([4]byte{172, 16 + i, 0, 1}))
	}
	local = append(local, netip.MustParseAddr("192.168.1.5"))
	seen := netip.MustParseAddrPort("203.0.113.9:40000")
	s := surroundings{local: local, sources: []netip.Addr{{}, netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("10.160.0.1")},
		reflectors: []*reflector{{seen: seen, at: now}, {seen: seen, at: now}, {seen: netip.MustParseAddrPort("203.0.113.9:1"), at: now.Add(-reflectFresh)}}}
	got := s.places(51820, now)
	want := []netip.AddrPort{seen, netip.MustParseAddrPort("192.168.1.5:51820"), netip.AddrPortFrom(local[0], 51820)}
	if len(got) != len(local)+1 || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got %v, want %v first", got, want)
	}
}
