package netmanager

import (
	"context"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

// Status is what is known of the network.
type Status struct {
	Port      uint16           // UDP, of the tunnels
	Endpoints []netip.AddrPort // where other nodes may reach this one
	MTU       int              // of the containers' interfaces
	Names     string           // why no names are answered; empty: they are
	NoIPv6    string           // why containers have no IPv6 though the Config has; empty: they have
	Shared    string           // who has come to use the network's range since it is there, looked for once a minute; empty: nobody
	Tunnel    tunnel.Stats
	Packets   service.Stats
}

// Status returns what is known now; before the first Set nothing is.
func (n *Network) Status() Status {
	p := n.plane.Load()
	if p == nil {
		return Status{}
	}
	s := Status{Port: p.tunnel.Port(), Endpoints: p.tunnel.Endpoints(), MTU: p.mtu, Tunnel: p.tunnel.Stats(), Packets: p.packets.Stats()}
	if _, err := p.names.present(); err != nil {
		s.Names = err.Error()
	}
	if why := n.noIPv6.Load(); why != nil {
		s.NoIPv6 = *why
	}
	if who := n.shared.Load(); who != nil {
		s.Shared = *who
	}
	return s
}

// Flows returns the flows of one container of this node, all where the address is not valid.
func (n *Network) Flows(local netip.Addr) []service.Flow {
	p := n.plane.Load()
	if p == nil {
		return nil
	}
	return p.packets.Flows(local)
}

// Traffic returns all flows and begins to count their bytes anew.
func (n *Network) Traffic() []service.Flow {
	p := n.plane.Load()
	if p == nil {
		return nil
	}
	return p.packets.Traffic()
}

// PathMTU returns the largest packet that reaches the container's node whole, 0 where nothing is known.
func (n *Network) PathMTU(dst netip.Addr) int {
	p := n.plane.Load()
	if p == nil {
		return 0
	}
	return p.tunnel.MTU(dst)
}

const (
	// measureEvery is how often the peers' round-trip times are looked at.
	measureEvery = 5 * time.Second
	// mendEvery is how often the kernel's side is looked at: others flush firewalls, restart Docker and plug in interfaces.
	mendEvery = time.Minute
)

// rtt is a round-trip time as coarse as the choice of the closest instance needs it: so that noise does not make tables.
type rtt time.Duration

// coarse rounds down to half a power of two of microseconds.
func coarse(d time.Duration) rtt {
	us := uint64(d / time.Microsecond)
	if us < 4 {
		return rtt(us) * rtt(time.Microsecond)
	}
	shift := bits.Len64(us) - 2
	return rtt(us>>shift<<shift) * rtt(time.Microsecond)
}

// measure keeps the table's round-trip times up to date, and the kernel's side as it shall be, until ctx ends.
func (n *Network) measure(ctx context.Context, p *plane) {
	tick, mend := time.NewTicker(measureEvery), time.NewTicker(mendEvery)
	defer tick.Stop()
	defer mend.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-mend.C:
			n.mend(p)
			continue
		case <-tick.C:
		}
		rtts := map[tunnel.Key]rtt{}
		for _, peer := range p.tunnel.Stats().Peers {
			rtts[peer.Key] = coarse(peer.RTT)
		}
		if !n.mu.TryLock() { // a Set is under way, which may wait for the end of this very plane; the next tick will do
			continue
		}
		if n.plane.Load() == p && !maps.Equal(rtts, n.rtts) {
			n.rtts = rtts
			n.table = n.table.WithRTT(n.nearLocked().rtt)
			p.packets.SetTable(n.table)
		}
		n.mu.Unlock()
	}
}

// mend sets the kernel's side again.
func (n *Network) mend(p *plane) {
	if !n.mu.TryLock() { // as above
		return
	}
	defer n.mu.Unlock()
	if n.plane.Load() != p {
		return
	}
	if err := n.setLinksLocked(n.config, p); err != nil {
		n.log.Warn("the network is not as it shall be", "err", err)
	}
}

// near finds the round-trip time to the node of a container.
type near struct {
	rtts   map[netip.Prefix]rtt
	length []int // of the prefixes, longest first
}

func (n *Network) nearLocked() near {
	all := near{rtts: map[netip.Prefix]rtt{}}
	for _, peer := range n.config.Peers {
		if d := n.rtts[peer.Key]; d > 0 {
			for _, prefix := range peer.Prefixes {
				all.rtts[prefix] = d
				all.length = append(all.length, prefix.Bits())
			}
		}
	}
	slices.SortFunc(all.length, func(a, b int) int { return b - a })
	all.length = slices.Compact(all.length)
	return all
}

func (n near) rtt(a netip.Addr) time.Duration {
	for _, length := range n.length {
		if prefix, err := a.Prefix(length); err == nil {
			if d, ok := n.rtts[prefix]; ok {
				return time.Duration(d)
			}
		}
	}
	return 0
}
