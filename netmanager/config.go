package netmanager

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"skerry.internal/netmanager/dns"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

// Config is everything that the node's part of the network shall be. IPv6 prefixes and addresses may be left out; where they are given they
// stand beside their IPv4 ones.
type Config struct {
	// Network and Network6 are what is routed into the tunnel.
	Network, Network6 netip.Prefix
	// Services and Services6 are the parts of them that hold service addresses.
	Services, Services6 netip.Prefix
	// Blocks are the prefixes of this node's own containers, of both families, those of the gateways among them.
	Blocks []netip.Prefix
	// Gateway and Gateway6 are the bridge's addresses: the containers' way out and their name server.
	Gateway, Gateway6 netip.Addr
	// Peers are the nodes and guests that this node talks to. One whose key is nobody's (see tunnel.Key's Shares) is left out, with a warning.
	Peers []tunnel.Peer
	// Guests are the prefixes of guests whose tunnel ends here; they are among the Peers' prefixes.
	Guests []netip.Prefix
	// ServiceTable holds the services that this node knows, those of its own containers among them.
	ServiceTable []Service
	// Aliases say which instance address stands for a container of another node.
	Aliases []service.Alias
	// Ports are published on this node's own addresses.
	Ports []link.Port
	// Zone is the domain of the services' names.
	Zone string
	// Relay is the URL of the relay; empty: none.
	Relay string
	// STUN are the reflectors that tell this node's address as others see it.
	STUN []netip.AddrPort
}

// Service is one service in the table, with what its name stands for.
type Service struct {
	service.Service
	// PlainClosest lets the plain name stand for the closest instance in place of each in turn.
	PlainClosest bool
	// Ports are what SRV records tell.
	Ports []dns.Port
}

// Validate reports all that is wrong with a configuration, before anything of the system is touched.
func (c Config) Validate() error {
	p := problems{}
	p.prefix("network", c.Network, true)
	p.prefix("network6", c.Network6, false)
	p.within("services", c.Services, c.Network)
	if c.Network6.IsValid() {
		p.within("services6", c.Services6, c.Network6)
	}
	if len(c.Blocks) == 0 {
		p.add(errors.New("no block of addresses"))
	}
	for _, b := range c.Blocks {
		p.block(c, b)
	}
	p.gateway(c, "gateway", c.Gateway)
	if c.Network6.IsValid() {
		p.gateway(c, "gateway6", c.Gateway6)
	}
	p.peers(c)
	p.services(c)
	return errors.Join(p.errs...)
}

type problems struct{ errs []error }

func (p *problems) add(err error) { p.errs = append(p.errs, err) }

func (p *problems) prefix(what string, prefix netip.Prefix, needed bool) {
	switch {
	case !prefix.IsValid():
		if needed {
			p.add(fmt.Errorf("%s: missing", what))
		}
	case prefix.Masked() != prefix:
		p.add(fmt.Errorf("%s %s: has bits beyond its length, want %s", what, prefix, prefix.Masked()))
	}
}

func (p *problems) within(what string, inner, outer netip.Prefix) {
	p.prefix(what, inner, true)
	if inner.IsValid() && outer.IsValid() && !contains(outer, inner) {
		p.add(fmt.Errorf("%s %s: not a part of %s", what, inner, outer))
	}
}

// contains says whether all of inner lies in outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// inNetwork says whether all of a prefix belongs to the network.
func (c Config) inNetwork(prefix netip.Prefix) bool {
	return prefix.IsValid() && (contains(c.Network, prefix) || c.Network6.IsValid() && contains(c.Network6, prefix))
}

func (c Config) services(prefix netip.Prefix) bool {
	return c.Services.Overlaps(prefix) || c.Services6.IsValid() && c.Services6.Overlaps(prefix)
}

func (p *problems) block(c Config, b netip.Prefix) {
	p.prefix("block", b, true)
	switch {
	case !b.IsValid():
	case !c.inNetwork(b):
		p.add(fmt.Errorf("block %s: not a part of the network", b))
	case c.services(b):
		p.add(fmt.Errorf("block %s: belongs to the service addresses", b))
	}
}

func (p *problems) gateway(c Config, what string, a netip.Addr) {
	if !slices.ContainsFunc(c.Blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
		p.add(fmt.Errorf("%s %s: in none of the blocks", what, a))
	}
}

func (p *problems) peers(c Config) {
	keys := map[tunnel.Key]bool{}
	owned := map[netip.Prefix]tunnel.Key{}
	for _, peer := range c.Peers {
		if keys[peer.Key] {
			p.add(fmt.Errorf("peer %s: its key is another peer's too", peer.Key))
		}
		keys[peer.Key] = true
		for _, prefix := range peer.Prefixes {
			other, taken := owned[prefix]
			switch {
			case !c.inNetwork(prefix) || c.services(prefix):
				p.add(fmt.Errorf("peer %s: prefix %s is not one of containers", peer.Key, prefix))
			case taken:
				p.add(fmt.Errorf("peer %s: prefix %s is that of %s too", peer.Key, prefix, other))
			case slices.ContainsFunc(c.Blocks, prefix.Overlaps) && !slices.Contains(c.Guests, prefix):
				p.add(fmt.Errorf("peer %s: prefix %s is this node's own", peer.Key, prefix))
			}
			owned[prefix] = peer.Key
		}
	}
}

func (p *problems) services(c Config) {
	for _, s := range c.ServiceTable {
		addresses := []netip.Addr{s.RoundRobin, s.RoundRobin6, s.Closest, s.Closest6}
		for _, i := range s.Instances {
			addresses = append(addresses, i.Service, i.Service6)
			for _, a := range []netip.Addr{i.Address, i.Address6} {
				if a.IsValid() && !c.inNetwork(netip.PrefixFrom(a, a.BitLen())) {
					p.add(fmt.Errorf("service %s: instance %d has %s, which is not of this network", s.Name, i.Ordinal, a))
				}
			}
		}
		for _, a := range addresses {
			if a.IsValid() && !c.isService(a) {
				p.add(fmt.Errorf("service %s: %s is no service address", s.Name, a))
			}
		}
	}
}

func (c Config) isService(a netip.Addr) bool {
	return c.Services.Contains(a) || c.Services6.IsValid() && c.Services6.Contains(a)
}
