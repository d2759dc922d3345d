//go:build linux

package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ConflictError says that somebody uses addresses of a range that the overlay shall have.
type ConflictError struct {
	// Range is what was asked for, Used what is in its way, on the link Link.
	Range, Used netip.Prefix
	Link        string
	// Proposal is a range of the same size that nobody on this node uses; not valid when there is none.
	Proposal netip.Prefix
}

// Error names the range, what is in its way, and a way out.
func (e *ConflictError) Error() string {
	text := fmt.Sprintf("the range %s of the overlay is in use on this node: %s on %s", e.Range, e.Used, e.Link)
	if !e.Proposal.IsValid() {
		return text + "; no range of its size is free"
	}
	return fmt.Sprintf("%s; %s is free", text, e.Proposal)
}

// Conflicts reports, as ConflictErrors, which of the ranges somebody else on this node uses: by an address of an interface (a Docker network
// is a bridge with one) or a route (a VPN). Engines' own links are not in the way. Nor is a route that catches everything or nearly so,
// such as the default one and the halves that VPNs make of it, nor one that leads nowhere.
func Conflicts(ranges []netip.Prefix, name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	used, err := usedRanges(name)
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	var errs []error
	for _, r := range ranges {
		for _, u := range used {
			if r.Overlaps(u.prefix) {
				errs = append(errs, &ConflictError{Range: r, Used: u.prefix, Link: u.link, Proposal: propose(r, used)})
				break // one reason is enough
			}
		}
	}
	return errors.Join(errs...)
}

// usedRange is a range that somebody uses, and by which link.
type usedRange struct {
	prefix netip.Prefix
	link   string
}

func usedRanges(name string) ([]usedRange, error) {
	links, err := Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{} // of links that are not ours
	for _, link := range links {
		a := link.Attrs()
		if !strings.HasPrefix(a.Alias, aliasPrefix) && a.Name != Bridge(name) && a.Name != TUN(name) {
			names[a.Index] = a.Name
		}
	}
	var used []usedRange
	add := func(n *net.IPNet, index int) {
		if p, ok := prefixOf(n); ok && names[index] != "" && !catchAll(p) && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			used = append(used, usedRange{p.Masked(), names[index]})
		}
	}
	addresses, err := Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		add(a.IPNet, a.LinkIndex)
		add(a.Peer, a.LinkIndex)
	}
	routes, err := Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Dst == nil {
			continue
		}
		add(r.Dst, r.LinkIndex)
		for _, hop := range r.MultiPath {
			add(r.Dst, hop.LinkIndex)
		}
	}
	slices.SortFunc(used, func(a, b usedRange) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.link, b.link))
	})
	return used, nil
}

// catchAll are ranges that no one site can own: they say where everything else goes.
func catchAll(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 7 // fc00::/7 is one site's
}

// private are the ranges from which to propose, those seen least first.
var private = []string{"10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10", "192.168.0.0/16"}

// propose returns a free range of a range's size, beginning behind it within 10.0.0.0/8 or its own unique local prefix.
func propose(r netip.Prefix, used []usedRange) netip.Prefix {
	free := func(p netip.Prefix) bool {
		return !slices.ContainsFunc(used, func(u usedRange) bool { return p.Overlaps(u.prefix) })
	}
	if !r.Addr().Is4() {
		next := r.Masked().Addr().As16()
		for range 1 << 16 { // other values of the 40 bits that a site chooses by chance
			if next[3]++; next[3] == 0 {
				next[2]++
			}
			if p := netip.PrefixFrom(netip.AddrFrom16(next), r.Bits()).Masked(); free(p) {
				return p
			}
		}
		return netip.Prefix{}
	}
	for _, text := range private {
		space := netip.MustParsePrefix(text)
		if space.Bits() > r.Bits() {
			continue
		}
		candidates := candidatesIn(space, r.Bits())
		slices.Reverse(candidates) // people begin at the bottom
		for _, p := range candidates {
			if free(p) && !p.Overlaps(r) {
				return p
			}
		}
	}
	return netip.Prefix{}
}

// candidatesIn cuts a space into ranges of a size, at most 4,096 of them.
func candidatesIn(space netip.Prefix, bits int) []netip.Prefix {
	var all []netip.Prefix
	for address := space.Addr(); space.Contains(address) && len(all) < 1<<12; {
		p := netip.PrefixFrom(address, bits)
		all = append(all, p)
		next, ok := netip.AddrFromSlice(after(p))
		if !ok || next.Less(address) {
			break
		}
		address = next
	}
	return all
}

// Standing reports whether an engine's bridge has an address of a network: containers of a process before may be in it.
func Standing(network netip.Prefix, name string) bool {
	bridge, err := netlink.LinkByName(Bridge(name))
	if err != nil || bridge.Attrs().Alias != Alias(name) {
		return false
	}
	addresses, err := Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(bridge, netlink.FAMILY_ALL) })
	return err == nil && slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
		p, ok := prefixOf(a.IPNet)
		return ok && network.Contains(p.Addr())
	})
}

// Taken says which of an engine's blocks another engine of this host has: two clusters that give out the same range, or what an engine has left
// that is no more. Two bridges with the same addresses would take each other's packets.
func Taken(blocks []netip.Prefix, name string) error {
	links, err := Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("link: list links: %w", err)
	}
	others := map[int]string{}
	for _, link := range links {
		if a := link.Attrs(); a.Alias != Alias(name) && strings.HasPrefix(a.Alias, aliasPrefix) && link.Type() == "bridge" {
			others[a.Index] = a.Name
		}
	}
	addresses, err := Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("link: list addresses: %w", err)
	}
	for _, a := range addresses {
		p, ok := prefixOf(a.IPNet)
		if other := others[a.LinkIndex]; ok && other != "" && slices.ContainsFunc(blocks, p.Overlaps) {
			return fmt.Errorf("another engine on this machine has the block %s (link %s): give one of the clusters another range (cluster-manager --network), or, "+
				"where that engine is no more, take its links away (node-engine --clean-up with its --data, or: ip link delete %s)", p.Masked(), other, other)
		}
	}
	return nil
}
