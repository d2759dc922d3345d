//go:build linux

package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
)

// config is a node's with one block and one published port in each family.
func config(t *testing.T) Config {
	return Config{
		Name:      "lab",
		Overlay:   []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.160.0.1/26"), netip.MustParsePrefix("fd5c:ae11:9::1/122")},
		MTU:       1420,
		Ports: []Port{
			{HostPort: 8080, Protocol: TCP, Target: netip.MustParseAddrPort("10.160.0.2:80")},
			{HostPort: 8080, Protocol: TCP, Target: netip.MustParseAddrPort("[fd5c:ae11:9::2]:80")},
			{HostPort: 5353, Protocol: UDP, Target: netip.MustParseAddrPort("10.160.0.2:53")},
		},
		StateDir: t.TempDir(),
	}
}

func mustSet(t *testing.T, c Config) {
	t.Helper()
	if _, err := Set(c); err != nil {
		t.Fatal(err)
	}
}

func TestSetTwiceAndCleanUp(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	c := config(t)
	before := linktest.Dump(t)
	if _, err := Set(c); !errors.Is(err, ErrNoTUN) {
		t.Fatalf("got %v without a TUN device, want %v", err, ErrNoTUN)
	}
	if err := nettest.AddTUN(TUN(c.Name)); err != nil {
		t.Fatal(err)
	}
	mustSet(t, c)
	once := linktest.Dump(t)
	linktest.Golden(t, "set", linktest.Network(t))
	began := time.Now()
	mustSet(t, c)
	t.Logf("a repeat took %v", time.Since(began))
	if diff := cmp.Diff(once, linktest.Dump(t)); diff != "" {
		t.Errorf("a repeat changed (-once +twice):\n%s", diff)
	}
	for range 2 {
		if err := CleanUp(c.Name, c.StateDir); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, linktest.Dump(t)); diff != "" {
			t.Errorf("clean-up left a difference (-before +after):\n%s", diff)
		}
	}
}

func TestValidate(t *testing.T) {
	good := config(t)
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	for want, spoil := range map[string]func(*Config){
		`name "Lab"`:        func(c *Config) { c.Name = "Lab" },
		"1 to 8":            func(c *Config) { c.Name = "" },
		"no IPv4 address":   func(c *Config) { c.Addresses = c.Addresses[1:] },
		"not within the ov": func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("192.0.2.1/26") },
		"in one block":      func(c *Config) { c.Addresses = append(c.Addresses, netip.MustParsePrefix("10.160.0.9/29")) },
		"one range":         func(c *Config) { c.Overlay = c.Overlay[1:] },
		"not valid":         func(c *Config) { c.Overlay = append(c.Overlay, netip.Prefix{}) },
		"mtu 576":           func(c *Config) { c.MTU = 576 },
		"port 0":            func(c *Config) { c.Ports[0].HostPort = 0 },
		`protocol "icmp"`:   func(c *Config) { c.Ports[0].Protocol = "icmp" },
		"in no block":       func(c *Config) { c.Ports[0].Target = netip.MustParseAddrPort("10.160.9.9:1") },
		"published twice":   func(c *Config) { c.Ports = append(c.Ports, c.Ports[0]) },
	} {
		c := config(t)
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
