package tunnel

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/nettest"
)

// mute makes a router say nothing about packets that are too large: a black hole.
func mute(t *testing.T, router *nettest.Host) {
	t.Helper()
	r := rulesOf(t, router)
	for family, kind := range map[nftables.TableFamily][]byte{nftables.TableFamilyIPv4: {unix.IPPROTO_ICMP, 3}, nftables.TableFamilyIPv6: {unix.IPPROTO_ICMPV6, 2}} {
		table := r.conn.AddTable(&nftables.Table{Family: family, Name: "mute"})
		chain := r.conn.AddChain(&nftables.Chain{Name: "out", Table: table, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter})
		r.rule(chain, protocol(kind[0]), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: kind[1:]},
		}, drop())
	}
	r.flush()
}

func TestPathMTU(t *testing.T) {
	for _, c := range []struct{ link, path, tun int }{
		{1500, 1500, 1420}, {1500, 1280, 1420}, {1500, 1400, 1420}, {1500, 1437, 1420},
		{9000, 9000, 8920}, {9000, 1500, 8920}, {9000, 1280, 8920}, {9000, 4321, 8920}, {1280, 1280, 1420},
	} {
		for _, family := range []string{"192.0.2.2:7000", "[2001:db8:2::2]:7000"} {
			t.Run(fmt.Sprintf("link %d path %d tun %d %s", c.link, c.path, c.tun, family), func(t *testing.T) {
				t.Parallel()
				a, b := throughRouter(t, c.link, c.path, c.tun)
				a.set(b.peer(endpoint(family)))
				b.set(a.peer())
				echo(t, b.host, inner)
				exchange(t, a.host, inner, 1<<18, 20*time.Second) // also while nothing is known
				got := a.waitMTU(b, c.path)
				limit := got - 20 - 8 - 32
				if endpoint(family).Addr().Is6() {
					limit -= 20
				}
				r := a.tell(order{Stats: true})
				if mtu := r.MTU[netip.MustParseAddr("10.160.0.2")]; mtu > limit || mtu < limit-15 || r.Stats.Peers[0].MTU != mtu {
					t.Errorf("got MTU %d for the overlay and %d for the peer, want %d", mtu, r.Stats.Peers[0].MTU, limit)
				}
				exchange(t, a.host, inner, 1<<18, 20*time.Second)
			})
		}
	}
}

// throughRouter starts two nodes with a router between them that has a link of path bytes and says nothing.
func throughRouter(t *testing.T, link, path, tun int) (a, b *node) {
	t.Helper()
	ha, hb, router := nettest.NewHost(t, "a"), nettest.NewHost(t, "b"), nettest.NewHost(t, "router")
	router.Forward()
	nettest.Cable(t,
		nettest.End{Host: ha, Interface: "eth0", Addresses: []string{"198.51.100.1/24", "2001:db8:1::1/64"}, MTU: link},
		nettest.End{Host: router, Interface: "eth0", Addresses: []string{"198.51.100.254/24", "2001:db8:1::fe/64"}, MTU: link})
	nettest.Cable(t,
		nettest.End{Host: router, Interface: "eth1", Addresses: []string{"192.0.2.254/24", "2001:db8:2::fe/64"}, MTU: path},
		nettest.End{Host: hb, Interface: "eth0", Addresses: []string{"192.0.2.2/24", "2001:db8:2::2/64"}, MTU: path})
	mute(t, router)
	return startRouted(t, ha, hb, tun)
}

// startRouted starts the nodes of two hosts that have routers.
func startRouted(t *testing.T, ha, hb *nettest.Host, tun int) (a, b *node) {
	t.Helper()
	for host, via := range map[*nettest.Host][]string{ha: {"198.51.100.254", "2001:db8:1::fe"}, hb: {"192.0.2.254", "2001:db8:2::fe"}} {
		host.Route("default", via[0])
		host.Route("default6", via[1])
	}
	a = startNode(t, ha, nodeConfig{Name: "a", Port: 7000, Address: overlay(1), MTU: tun})
	b = startNode(t, hb, nodeConfig{Name: "b", Port: 7000, Address: overlay(2), MTU: tun})
	return a, b
}

// The path becomes narrower in the middle of a stream, on a link that neither node sees: the stream goes on, and both find out what the path carries.
func TestPathMTUShrinks(t *testing.T) {
	for _, silent := range []bool{false, true} {
		for _, family := range []string{"192.0.2.2:7000", "[2001:db8:2::2]:7000"} {
			t.Run(fmt.Sprintf("silent %v %s", silent, family), func(t *testing.T) {
				t.Parallel()
				ha, hb, r1, r2 := nettest.NewHost(t, "a"), nettest.NewHost(t, "b"), nettest.NewHost(t, "r1"), nettest.NewHost(t, "r2")
				nettest.Cable(t,
					nettest.End{Host: ha, Interface: "eth0", Addresses: []string{"198.51.100.1/24", "2001:db8:1::1/64"}},
					nettest.End{Host: r1, Interface: "eth0", Addresses: []string{"198.51.100.254/24", "2001:db8:1::fe/64"}})
				nettest.Cable(t,
					nettest.End{Host: r1, Interface: "eth1", Addresses: []string{"203.0.113.1/24", "2001:db8:3::1/64"}},
					nettest.End{Host: r2, Interface: "eth1", Addresses: []string{"203.0.113.2/24", "2001:db8:3::2/64"}})
				nettest.Cable(t,
					nettest.End{Host: r2, Interface: "eth0", Addresses: []string{"192.0.2.254/24", "2001:db8:2::fe/64"}},
					nettest.End{Host: hb, Interface: "eth0", Addresses: []string{"192.0.2.2/24", "2001:db8:2::2/64"}})
				for router, other := range map[*nettest.Host][]string{r1: {"203.0.113.2", "2001:db8:3::2"}, r2: {"203.0.113.1", "2001:db8:3::1"}} {
					router.Forward()
					router.Route("default", other[0])
					router.Route("default6", other[1])
					if silent {
						mute(t, router)
					}
				}
				a, b := startRouted(t, ha, hb, 1420)
				a.set(b.peer(endpoint(family)))
				b.set(a.peer())
				echo(t, b.host, inner)
				f := startFlowOf(t, a.host, inner, 5000)
				a.waitMTU(b, 1500)
				b.waitMTU(a, 1500)
				f.flows(t, 5*time.Second)
				f.pause()
				for _, router := range []*nettest.Host{r1, r2} {
					router.Do(func() {
						if err := netlink.LinkSetMTU(router.Link("eth1"), 1300); err != nil {
							t.Error(err)
						}
					})
				}
				f.flows(t, 20*time.Second)
				t.Logf("longest pause %v", f.pause())
				a.waitMTU(b, 1300)
				b.waitMTU(a, 1300)
				f.flows(t, 5*time.Second)
			})
		}
	}
}

func (n *node) waitMTU(other *node, want int) int {
	n.t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		got := n.to(other).PathMTU
		if got <= want && got >= want-8 {
			n.t.Logf("path MTU %d after %v", got, time.Since(began))
			return got
		}
		if time.Since(began) > 20*time.Second {
			n.t.Fatalf("got path MTU %d, want %d; %s", got, want, n.describe())
		}
	}
}
