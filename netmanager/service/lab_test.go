package service

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"skerry.internal/netmanager/tun"
	"skerry.internal/netmanager/tun/tuntest"
)

// The addresses of the tests: node n has 10.160.n.0/26, services are in 10.172.0.0/14, and IPv6 is mapped from IPv4.
var (
	testNetwork = netip.MustParsePrefix("10.160.0.0/12")
	testRange   = netip.MustParsePrefix("10.172.0.0/14")
)

func six(a string) string {
	v4 := netip.MustParseAddr(a).As4()
	return fmt.Sprintf("fd5c:ae11:9::%x:%x", uint16(v4[0])<<8|uint16(v4[1]&15), uint16(v4[2])<<8|uint16(v4[3]))
}

func both(a string) (netip.Addr, netip.Addr) {
	if a == "" {
		return netip.Addr{}, netip.Addr{}
	}
	return netip.MustParseAddr(a), netip.MustParseAddr(six(a))
}

func bothPrefixes(p string) []netip.Prefix {
	v4 := netip.MustParsePrefix(p)
	return []netip.Prefix{v4, netip.PrefixFrom(netip.MustParseAddr(six(v4.Addr().String())), v4.Bits()+96)}
}

// container builds an instance; healthy.
func container(ordinal int, service, address string) Instance {
	in := Instance{Ordinal: ordinal, Healthy: true}
	in.Service, in.Service6 = both(service)
	in.Address, in.Address6 = both(address)
	return in
}

func service(name, roundRobin, closest string, instances ...Instance) Service {
	s := Service{Name: name, Instances: instances}
	s.RoundRobin, s.RoundRobin6 = both(roundRobin)
	s.Closest, s.Closest6 = both(closest)
	return s
}

// node is a Device over a TUN made of channels.
type node struct {
	*Device
	tun    *tuntest.TUN
	block  []netip.Prefix
	number int
	missed []netip.Addr
}

func newNode(t testing.TB, number int, o Options) *node {
	n := &node{tun: tuntest.New(1420, 20000), block: bothPrefixes(fmt.Sprintf("10.160.%d.0/26", number)), number: number}
	if o.OnMiss == nil {
		o.OnMiss = func(a netip.Addr) { n.missed = append(n.missed, a) }
	}
	n.Device = Wrap(n.tun, o)
	t.Cleanup(func() { n.Close() })
	return n
}

// set puts services in force.
func (n *node) set(guests string, services ...Service) {
	c := Config{Blocks: n.block, ServiceRange: bothPrefixes(testRange.String())}
	if guests != "" {
		c.Guests = bothPrefixes(guests)
	}
	for i := range services {
		c.Services = append(c.Services, &services[i])
	}
	n.SetTable(NewTable(c))
}

// out sends one packet from the kernel through the Device and returns what goes into the tunnel; nil when nothing does.
func (n *node) out(t testing.TB, b []byte) []byte {
	t.Helper()
	slab, packets := make([]byte, len(b)+2*tun.Spacing), make([]tun.ReadPacket, 1)
	packets[0] = tun.ReadPacket{Offset: tun.Spacing, Size: copy(slab[tun.Spacing:], b)}
	if n.queues[0].(*queue).outbound(slab, packets) == 0 {
		return nil
	}
	return slab[packets[0].Offset : packets[0].Offset+packets[0].Size]
}

// in sends one packet from the tunnel through the Device and returns what the kernel gets; nil when it gets nothing.
func (n *node) in(t testing.TB, b []byte) []byte {
	t.Helper()
	buf := append(make([]byte, headroom), b...)
	if _, err := n.Write([][]byte{buf}, headroom); err != nil {
		t.Fatal(err)
	}
	return n.kernel()
}

// kernel returns the next packet that the kernel got.
func (n *node) kernel() []byte {
	select {
	case b := <-n.tun.In:
		return b
	default:
		return nil
	}
}

// sent returns the next packet of the Device's own.
func (n *node) sent() []byte {
	select {
	case b := <-n.injected:
		return b
	default:
		return nil
	}
}

// join carries packets between nodes by the block of their destination, as the tunnel does, until the devices are closed.
func join(wg *sync.WaitGroup, nodes ...*node) {
	for _, n := range nodes {
		for _, q := range n.Queues() {
			wg.Go(func() { carry(q, nodes) })
		}
	}
}

func carry(q tun.Queue, nodes []*node) {
	slab, packets := make([]byte, 1<<17), make([]tun.ReadPacket, 128)
	for {
		n, err := q.Read(slab, packets)
		for _, at := range packets[:n] {
			var p packet
			if !p.parse(slab[at.Offset : at.Offset+at.Size]) {
				panic("the tunnel got a packet that is none")
			}
			for _, to := range nodes {
				if to.block[0].Contains(p.dst.netip()) || to.block[1].Contains(p.dst.netip()) {
					to.Write([][]byte{slab[at.Offset-headroom : at.Offset+at.Size]}, headroom)
				}
			}
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
