package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager"
	"skerry.internal/netmanager/dns"
	"skerry.internal/netmanager/ipam"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

// guestKeepalive keeps the way to a guest behind a NAT open, which may sleep for long.
const guestKeepalive = 25 * time.Second

// ground is what of a NetworkConfig does not change from one peer to the next.
type ground struct {
	plan    ipam.Plan
	blocks  []ipam.Block
	gateway netip.Addr
}

// readGround checks the addresses of a configuration.
func readGround(c *messages.NetworkConfig) (ground, error) {
	var g ground
	v4, err4 := netip.ParsePrefix(c.Network)
	v6, err6 := netip.ParsePrefix(c.Network6)
	if err := errors.Join(err4, err6); err != nil {
		return g, err
	}
	var err error
	if g.plan, err = ipam.NewPlan(v4, v6); err != nil {
		return g, err
	}
	for _, text := range c.Blocks {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return g, err
		}
		block, err := ipam.BlockOf(prefix)
		if err != nil {
			return g, err
		}
		g.blocks = append(g.blocks, block)
	}
	g.gateway, err = netip.ParseAddr(c.Gateway)
	return g, err
}

// both returns an IPv4 prefix and the one beside it.
func (g ground) both(p netip.Prefix) []netip.Prefix {
	if other := g.plan.MapPrefix(p); other.IsValid() {
		return []netip.Prefix{p, other}
	}
	return []netip.Prefix{p}
}

// address parses an IPv4 address and returns the one beside it too; both invalid where text is empty or none.
func (g ground) address(text string) (v4, v6 netip.Addr) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, netip.Addr{}
	}
	return a, g.plan.Map(a)
}

// translate makes of what the manager says, of the leases, and of where guests were seen, what the network shall be.
func translate(g ground, c *messages.NetworkConfig, services []messages.ServiceEntry, leases []lease, guests map[tunnel.Key]netip.AddrPort) (netmanager.Config, error) {
	out := netmanager.Config{
		Network: g.plan.V4, Network6: g.plan.V6, Services: g.plan.Services(), Services6: g.plan.MapPrefix(g.plan.Services()),
		Gateway: g.gateway, Gateway6: g.plan.Map(g.gateway), Zone: messages.Zone,
	}
	for _, b := range g.blocks {
		out.Blocks = append(out.Blocks, g.both(b.Prefix())...)
	}
	var errs []error
	for i := range c.Peers {
		errs = append(errs, g.peer(&c.Peers[i], guests, &out))
	}
	held := make(map[messages.InstanceID]netip.Addr, len(leases))
	for _, l := range leases {
		held[l.Instance] = l.Address
		out.Ports = append(out.Ports, g.published(l)...)
	}
	for i := range services {
		out.ServiceTable = append(out.ServiceTable, g.service(&services[i], held))
	}
	return out, errors.Join(errs...)
}

// peer adds a peer and what is known of its instances.
func (g ground) peer(p *messages.Peer, guests map[tunnel.Key]netip.AddrPort, out *netmanager.Config) error {
	var q tunnel.Peer
	if err := q.Key.UnmarshalText([]byte(p.Key)); err != nil {
		return fmt.Errorf("peer %s%s: %w", p.Node, p.Guest, err)
	}
	for _, text := range p.Prefixes {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("peer %s%s: %w", p.Node, p.Guest, err)
		}
		q.Prefixes = append(q.Prefixes, g.both(prefix)...)
	}
	if !p.RelayOnly {
		for _, text := range p.Endpoints {
			at, err := netip.ParseAddrPort(text)
			if err != nil {
				return fmt.Errorf("peer %s%s: %w", p.Node, p.Guest, err)
			}
			q.Endpoints = append(q.Endpoints, at)
		}
	}
	if p.Guest != "" {
		q.Keepalive = guestKeepalive
		if at, seen := guests[q.Key]; seen {
			q.Endpoints = []netip.AddrPort{at}
		}
		out.Guests = append(out.Guests, q.Prefixes...)
	}
	out.Peers = append(out.Peers, q)
	for _, i := range p.Instances {
		at, at6 := g.address(i.Address)
		svc, svc6 := g.address(i.Service)
		out.Aliases = append(out.Aliases, service.Alias{Address: at, Service: svc, Job: string(i.Job)})
		if at6.IsValid() && svc6.IsValid() {
			out.Aliases = append(out.Aliases, service.Alias{Address: at6, Service: svc6, Job: string(i.Job)})
		}
	}
	return nil
}

// service is one line of the table. What this node holds it knows better than a manager, which may be away.
func (g ground) service(s *messages.ServiceEntry, held map[messages.InstanceID]netip.Addr) netmanager.Service {
	out := netmanager.Service{PlainClosest: s.Policy == messages.Closest}
	out.Name = string(s.Job)
	out.RoundRobin, out.RoundRobin6 = g.address(s.RoundRobin)
	out.Closest, out.Closest6 = g.address(s.Closest)
	if s.Allow != nil {
		out.Allow = make([]string, 0, len(s.Allow))
		for _, job := range s.Allow {
			out.Allow = append(out.Allow, string(job))
		}
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: p.Protocol, Number: uint16(p.Container)}) //nolint:gosec // validated
	}
	for _, i := range s.Instances {
		one := service.Instance{Ordinal: i.Ordinal}
		one.Service, one.Service6 = g.address(i.Service)
		one.Address, one.Address6 = g.address(i.Address)
		if own, ok := held[messages.NewInstanceID(s.Job, i.Ordinal, i.Generation)]; ok {
			one.Address, one.Address6 = own, g.plan.Map(own)
		}
		one.Local = g.local(one.Address)
		one.Healthy = i.Healthy && one.Address.IsValid()
		out.Instances = append(out.Instances, one)
	}
	return out
}

// local reports whether an address is one of this node's containers.
func (g ground) local(a netip.Addr) bool {
	for _, b := range g.blocks {
		if b.Prefix().Contains(a) {
			return true
		}
	}
	return false
}

// published returns the ports of an instance as the kernel is told of them.
func (g ground) published(l lease) []link.Port {
	var ports []link.Port
	for _, p := range l.Ports {
		for _, a := range []netip.Addr{l.Address, g.plan.Map(l.Address)} {
			if a.IsValid() {
				ports = append(ports, link.Port{HostPort: uint16(p.Host), Protocol: link.Protocol(p.Protocol), //nolint:gosec // validated
					Target: netip.AddrPortFrom(a, uint16(p.Container))}) //nolint:gosec // validated
			}
		}
	}
	return ports
}
