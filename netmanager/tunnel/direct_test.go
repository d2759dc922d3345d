package tunnel

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"skerry.internal/netmanager/nettest"
)

// overlay returns the addresses of the i-th node.
func overlay(i int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.160.0.%d/24", i)),
		netip.MustParsePrefix(fmt.Sprintf("fd5c:ae11:9::%d/64", i)),
	}
}

func endpoint(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestDirect(t *testing.T) {
	t.Parallel()
	ha, hb := nettest.NewHost(t, "a"), nettest.NewHost(t, "b")
	nettest.Cable(t,
		nettest.End{Host: ha, Interface: "eth0", Addresses: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		nettest.End{Host: hb, Interface: "eth0", Addresses: []string{"192.0.2.2/24", "2001:db8::2/64"}})
	plugged := []string{"10.160.0.2:80", "[fd5c:ae11:9::2]:80"}
	for i, family := range []string{"192.0.2.2:7000", "[2001:db8::2]:7000"} {
		t.Run(family, func(t *testing.T) {
			a := startNode(t, ha, nodeConfig{Name: "a", Port: 7000, Address: overlay(1)})
			b := startNode(t, hb, nodeConfig{Name: "b", Port: 7000, Address: overlay(2)})
			a.set(b.peer(endpoint(family)))
			b.set(a.peer())
			for _, addr := range plugged {
				if i == 0 {
					echo(t, hb, addr)
				}
				exchange(t, ha, addr, 1<<20, 10*time.Second)
			}
			a.waitWay(b, Direct, 5*time.Second)
			b.waitWay(a, Direct, 5*time.Second)
			deadline := time.Now().Add(5 * time.Second)
			for got := a.to(b); got.PathMTU != 1500 || got.RTT == 0 || got.Tx == 0 || got.Rx == 0 || got.Handshake.IsZero(); got = a.to(b) {
				if time.Now().After(deadline) {
					t.Fatalf("got %+v", got)
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Logf("%+v", a.to(b))
		})
	}
}
