package netmanager

import (
	"net/netip"

	"skerry.internal/netmanager/tunnel/bind"
)

// usualMTU is an Ethernet's, less the overhead.
const usualMTU = 1500 - overhead

// overhead is what a tunnel adds to a packet: 40 bytes of IPv6, 8 of UDP, 32 of WireGuard.
const overhead = 80

// containerMTU returns the MTU of the containers' interfaces: what the way out of this host carries, less the tunnel's overhead. Where the path to
// a peer carries less, the peer's own MTU says so.
func containerMTU() int { return min(max(underlayMTU()-overhead, 1280), 65535-overhead) }

// underlayMTU returns the MTU of the interface that the host's default route leads out of, 1500 where there is none. Nothing is sent.
func underlayMTU() int {
	for _, outside := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		if mtu, _ := bind.LinkMTU(netip.MustParseAddrPort(outside)); mtu > 0 {
			return mtu
		}
	}
	return usualMTU + overhead
}
