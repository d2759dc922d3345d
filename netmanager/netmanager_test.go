package netmanager

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/dns"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tunnel"
)

// A network that has ended opens nothing any more, which nobody would carry or close: the next one finds the device and the ports free.
func TestAfterTheEnd(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	key, err := tunnel.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	static := Static{Name: "lab", PrivateKey: key, StateDir: t.TempDir()}
	start := func() (*Network, <-chan error) {
		n, err := New(static, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		var wg sync.WaitGroup
		wg.Go(func() { ended <- n.Run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
		return n, ended
	}
	c := Config{Network: netip.MustParsePrefix("10.160.0.0/12"), Services: netip.MustParsePrefix("10.172.0.0/14"), Blocks: []netip.Prefix{netip.MustParsePrefix("10.160.0.0/26")},
		Gateway: netip.MustParseAddr("10.160.0.1"), Zone: "skerry.internal"}
	first, ended := start()
	if err := first.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	device, err := netlink.LinkByName(link.TUN(static.Name))
	if err == nil {
		err = netlink.LinkDel(device)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Fatal("it has ended without an error though its device is gone")
	}
	other := c
	other.Zone = "other.internal"
	if err := first.Set(t.Context(), other); err == nil {
		t.Error("it was set after its end")
	}
	second, _ := start()
	if err := second.Set(t.Context(), c); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if s := second.Status(); s.Names != "" {
		t.Errorf("the next one has no names: %s", s.Names)
	}
}

// Who only asks does not wait for a Set, which may take as long as the kernel and its programs do.
func TestNobodyWaitsForASet(t *testing.T) {
	n, err := New(Static{Name: "lab", PrivateKey: tunnel.Key{1}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		n.Unknown("web")
		n.Status()
		n.Flows(netip.Addr{})
		n.PathMTU(netip.Addr{})
	}()
	select {
	case <-asked:
	case <-time.After(10 * time.Second):
		t.Error("they wait")
	}
}

// A guest's address within its gateway's block has the time of the guest.
func TestNearest(t *testing.T) {
	block, guest := netip.MustParsePrefix("10.160.0.64/26"), netip.MustParsePrefix("10.160.0.70/32")
	n := &Network{config: Config{Peers: []tunnel.Peer{{Key: tunnel.Key{1}, Prefixes: []netip.Prefix{block}}, {Key: tunnel.Key{2}, Prefixes: []netip.Prefix{guest}}}},
		rtts: map[tunnel.Key]rtt{{1}: rtt(time.Millisecond), {2}: rtt(time.Second)}}
	for range 100 { // once it may be right by chance
		near := n.nearLocked()
		if got := near.rtt(guest.Addr()); got != time.Second {
			t.Fatalf("guest: got %v", got)
		}
		if got := near.rtt(block.Addr()); got != time.Millisecond {
			t.Fatalf("node: got %v", got)
		}
	}
}

// A container on a node without a wall for IPv6 has IPv4 alone, and the node says why; once there is a wall it has both.
func TestWithoutIPv6(t *testing.T) {
	var said bytes.Buffer
	n, err := New(Static{Name: "lab", PrivateKey: tunnel.Key{1}}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Network6: netip.MustParsePrefix("fd5c:ae11:9::/48"), Blocks: []netip.Prefix{netip.MustParsePrefix("10.160.0.0/26"), netip.MustParsePrefix("fd5c:ae11:9::/122")}}
	a := Attachment{ID: "web.0", Address: netip.MustParseAddr("10.160.0.2"), Address6: netip.MustParseAddr("fd5c:ae11:9::2")}
	for range 2 {
		n.note(&n.noIPv6, "no IPv6", errors.New("no firewall"))
	}
	if got, err := n.attachment(a, c); err != nil || !slices.Equal(got.Addresses, []netip.Addr{a.Address}) {
		t.Errorf("got %v, %v", got.Addresses, err)
	}
	if got := strings.Count(said.String(), "no IPv6"); got != 1 {
		t.Errorf("said %d times", got)
	}
	n.note(&n.noIPv6, "", nil)
	if got, err := n.attachment(a, c); err != nil || !slices.Equal(got.Addresses, []netip.Addr{a.Address, a.Address6}) {
		t.Errorf("got %v, %v", got.Addresses, err)
	}
}

// Links that cannot be listed are nobody who uses the range.
func TestOthersThatCannotBeSeen(t *testing.T) {
	var said bytes.Buffer
	n := &Network{log: slog.New(slog.NewTextHandler(&said, nil))}
	unseen, vpn := errors.New("link: list links: no buffer"), &link.ConflictError{Link: "wg0"}
	for i, step := range []struct {
		others error
		shared bool
	}{{unseen, false}, {errors.Join(vpn), true}, {unseen, true}, {nil, false}} {
		n.noteOthers(step.others)
		if got := n.shared.Load() != nil; got != step.shared {
			t.Errorf("step %d: somebody uses it: %v", i, got)
		}
	}
	if got := said.String(); strings.Count(got, "not known") != 2 || strings.Count(got, "wg0") != 1 {
		t.Errorf("said %q", got)
	}
}

// A name server whose plane is replaced before it was run gives its sockets back: the next one needs them.
func TestNamesThatNeverRan(t *testing.T) {
	t.Parallel()
	// Not 127.0.0.1, of which a connection of another test may have the port by then.
	zone := dns.Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.53.0.2:0")}, Zone: "skerry.internal",
		Upstreams: func() []netip.AddrPort { return nil }}
	log := slog.New(slog.DiscardHandler)
	m := &names{open: func(ctx context.Context) (*dns.Server, error) { return dns.New(ctx, zone, log) }, log: log}
	if err := m.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	server, err := m.present()
	if err != nil {
		t.Fatal(err)
	}
	zone.Listen = server.Addrs()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m.run(ended)
	if next, err := dns.New(t.Context(), zone, log); err != nil {
		t.Error(err)
	} else if err := next.Run(ended); err != nil {
		t.Error(err)
	}
}
