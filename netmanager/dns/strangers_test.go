//go:build linux

package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/nettest"
)

// On a kernel without IPv6 names are answered at the addresses of IPv4.
func TestWithoutIPv6(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	nettest.WithoutIPv6(t)
	six := netip.MustParseAddrPort("[fd5c:ae11:9::1]:53")
	_, addr := start(t, Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.53.0.1:0"), six}})
	for _, network := range []string{"udp", "tcp"} {
		if got := brief(exchange(t, network, addr, "web.skerry.internal.", wire.TypeA)); got != "A 10.172.0.1" {
			t.Errorf("%s: got %q", network, got)
		}
	}
	_, err := New(t.Context(), Config{Listen: []netip.AddrPort{six}, Zone: "skerry.internal", Upstreams: list()}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("at no address at all: got %v", err)
	}
}

// A neighbour who routes packets for the bridge's address to this host gets no answer: the weak host model of Linux would let it in.
func TestStrangers(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	u := newUpstream(t, says("192.0.2.1"))
	_, addr := start(t, Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("10.160.0.1:53")}, Upstreams: list(u)}) // before the address is there
	for _, a := range []string{"10.160.0.1/26", "10.160.0.7/32", "192.168.1.5/24"} {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(lo, address); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(network, from string, patience time.Duration) (*wire.Msg, error) {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c := wire.Client{Net: network, Dialer: &d, Timeout: patience}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		got, _, err := c.ExchangeContext(ctx, new(wire.Msg).SetQuestion("example.com.", wire.TypeA), addr.String())
		return got, err
	}
	for _, network := range []string{"udp", "tcp"} {
		if got, err := ask(network, "192.168.1.5", 300*time.Millisecond); err == nil {
			t.Errorf("%s: a stranger got %s", network, brief(got))
		}
		for _, from := range []string{"10.160.0.7", "10.160.0.1"} {
			got, err := ask(network, from, 10*time.Second)
			if err != nil || brief(got) != "A 192.0.2.1" {
				t.Errorf("%s from %s: got %v, %v", network, from, got, err)
			}
		}
	}
}
