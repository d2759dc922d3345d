//go:build linux

package link_test

import (
	"fmt"
	"net/netip"
	"testing"

	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
)

// BenchmarkSet measures a repeat, which changes nothing, and one that publishes another port, by how many ports there are.
func BenchmarkSet(b *testing.B) {
	for _, ports := range []int{1, 1000} {
		h := nettest.NewHost(b, "node")
		h.Tap("labt")
		c := link.Config{Name: "lab", MTU: 1420, StateDir: b.TempDir(),
			Overlay:   []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")},
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.160.0.1/26"), netip.MustParsePrefix("fd5c:ae11:9::1/122")}}
		for n := range ports {
			c.Ports = append(c.Ports, link.Port{HostPort: uint16(n + 1), Protocol: link.TCP, Target: netip.MustParseAddrPort("10.160.0.2:80")})
		}
		set := func(c link.Config) {
			if _, err := link.Set(c); err != nil {
				b.Fatal(err)
			}
		}
		h.Do(func() { set(c) })
		b.Run(fmt.Sprintf("repeat/ports=%d", ports), func(b *testing.B) {
			h.Do(func() {
				for b.Loop() {
					set(c)
				}
			})
		})
		b.Run(fmt.Sprintf("change/ports=%d", ports), func(b *testing.B) {
			h.Do(func() {
				for n := 0; b.Loop(); n++ {
					c.Ports[0].Target = netip.AddrPortFrom(c.Ports[0].Target.Addr(), uint16(n+1))
					set(c)
				}
			})
		})
	}
}
