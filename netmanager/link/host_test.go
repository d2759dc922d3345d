//go:build linux

package link_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
)

// TestKeepsItsRouter: a host that has its IPv6 default route from a router's advertisements keeps it, and goes on listening to them, though
// the kernel becomes a router for the containers.
func TestKeepsItsRouter(t *testing.T) {
	s := newSite(t, false)
	s.node.Sysctl("net.ipv6.conf.eth0.accept_ra", "1")
	s.client.Sysctl("net.ipv6.conf.eth0.forwarding", "1")
	advertise := func(lifetime byte) {
		t.Helper()
		s.client.Do(func() {
			conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "ip6:ipv6-icmp", "::")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := setHopLimit(conn.(*net.IPConn)); err != nil {
				t.Fatal(err)
			}
			message := []byte{134, 0, 0, 0, 64, 0, 0, lifetime, 0, 0, 0, 0, 0, 0, 0, 0}
			if _, err := conn.WriteTo(message, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "eth0"}); err != nil {
				t.Fatal(err)
			}
		})
	}
	hears := func(what string) {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if routes := s.node.Run("ip", "-6", "route", "show", "default"); strings.Contains(routes, "proto ra") {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: no default route by advertisement", what)
			}
			advertise(200)
		}
	}
	hears("before")
	s.set(s.config)
	if routes := s.node.Run("ip", "-6", "route", "show", "default"); !strings.Contains(routes, "proto ra") {
		t.Errorf("Set lost the route: %q", routes)
	}
	s.node.Run("ip", "-6", "route", "del", "default")
	hears("under the overlay")
	serve(t, s.server, ":8080")
	s.wants(s.other, "[2001:db8::3]:8080", "server to 2001:db8::1")
	s.node.Do(func() {
		if err := link.CleanUp("lab", s.config.StateDir); err != nil {
			t.Fatal(err)
		}
	})
	if routes := s.node.Run("ip", "-6", "route", "show", "default"); !strings.Contains(routes, "proto ra") {
		t.Errorf("CleanUp lost the route: %q", routes)
	}
}

// TestForwardingOfOthersStays: who turns forwarding on for the host after us keeps it.
func TestForwardingOfOthersStays(t *testing.T) {
	s := newSite(t, false)
	far := s.far()
	s.set(s.config)
	s.refuses(s.client, "198.51.100.2:8080")
	s.node.Sysctl("net.ipv4.ip_forward", "1") // Docker, or the administrator
	s.set(s.config)
	s.wants(s.client, "198.51.100.2:8080", "far to 192.0.2.2")
	s.node.Do(func() {
		if err := link.CleanUp("lab", s.config.StateDir); err != nil {
			t.Fatal(err)
		}
	})
	s.wants(s.client, "198.51.100.2:8080", "far to 192.0.2.2")
	_ = far
}

// TestNewInterface: an uplink that is plugged in later works after the next Set.
func TestNewInterface(t *testing.T) {
	s := newSite(t, false)
	s.set(s.config)
	late := nettest.NewHost(t, "late")
	nettest.Cable(t, nettest.End{Host: s.node, Interface: "usb0", Addresses: []string{"198.51.100.1/24"}},
		nettest.End{Host: late, Interface: "eth0", Addresses: []string{"198.51.100.2/24"}})
	serve(t, s.web, ":80")
	serve(t, late, ":8080")
	s.set(s.config)
	s.wants(late, "198.51.100.1:8080", "web to 198.51.100.2")
	s.wants(s.other, "198.51.100.2:8080", "late to 198.51.100.1")
}

// TestFlushedFirewall: what somebody took away comes back with the next Set.
func TestFlushedFirewall(t *testing.T) {
	s := newSite(t, true)
	s.set(s.config)
	serve(t, s.web, ":80")
	s.node.Do(func() {
		if err := removeTable("skerry_lab"); err != nil {
			t.Fatal(err)
		}
	})
	s.refuses(s.client, "192.0.2.1:8080")
	for range 2 {
		s.set(s.config)
		s.wants(s.client, "192.0.2.1:8080", "web to 192.0.2.2")
	}
}

// TestSeveralDefaultRoutes sends egress by the interface that the kernel routes by, with that interface's address.
func TestSeveralDefaultRoutes(t *testing.T) {
	for _, c := range []struct{ family, place, container, server, far, byServer, byFar string }{
		{"-4", "203.0.113.1/32", "10.160.0.3", "192.0.2.3", "198.51.100.2", "192.0.2.1", "198.51.100.1"},
		{"-6", "2001:db8:2::1/128", "fd5c:ae11:9::3", "2001:db8::3", "2001:db8:1::2", "2001:db8::1", "2001:db8:1::1"},
	} {
		t.Run(c.family, func(t *testing.T) {
			s := newSite(t, false)
			far := s.far()
			far.Address("lo", c.place)
			s.server.Address("lo", c.place)
			serve(t, s.server, ":8080")
			s.set(s.config)
			place := netip.AddrPortFrom(netip.MustParsePrefix(c.place).Addr(), 8080).String()
			s.node.Run("ip", c.family, "route", "add", "default", "via", c.server, "metric", "100")
			s.node.Run("ip", c.family, "route", "add", "default", "via", c.far, "metric", "200")
			s.wants(s.other, place, "server to "+c.byServer)
			s.node.Run("ip", c.family, "route", "add", "default", "via", c.far, "metric", "50")
			s.wants(s.other, place, "far to "+c.byFar)
			s.node.Run("ip", c.family, "rule", "add", "from", c.container, "lookup", "77", "pref", "6000")
			s.node.Run("ip", c.family, "route", "add", "default", "via", c.server, "table", "77")
			s.wants(s.other, place, "server to "+c.byServer)
		})
	}
}
