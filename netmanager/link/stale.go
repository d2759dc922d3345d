//go:build linux

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dropStale makes the kernel forget which way datagrams to published ports went before the ports were what they are now. It decides once for
// a flow of datagrams, and a sender that never pauses keeps that alive: a sensor that began before its container was there would be sent to a
// closed port of the host for ever, or to a container that is gone. Streams begin anew by themselves, so their entries stay.
func (s *setting) dropStale() error {
	if !s.changed {
		return nil
	}
	handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil // no connection tracking to ask
	}
	defer handle.Close()
	for _, v4 := range families() {
		present, err := Whole(func() ([]netlink.Addr, error) { return s.handle.AddrList(nil, familyOf(v4)) })
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		old := staleFlows{targets: map[uint16]netip.AddrPort{}, blocks: ofFamily(s.Addresses, v4)}
		for _, a := range present {
			if p, ok := prefixOf(a.IPNet); ok {
				old.local = append(old.local, p.Addr())
			}
		}
		for _, p := range s.Ports {
			if p.Protocol == UDP && p.Target.Addr().Is4() == v4 {
				old.targets[p.HostPort] = p.Target
			}
		}
		_, err = handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(familyOf(v4)), old)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !unsupported(err) {
			return fmt.Errorf("forget flows: %w", err)
		}
	}
	return nil
}

// staleFlows matches flows of datagrams that would go another way if they began now.
type staleFlows struct {
	targets map[uint16]netip.AddrPort // of the published ports
	blocks  []netip.Prefix
	local   []netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	dialled, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	answers, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 || flow.Forward.Protocol != UDP.number() {
		return false
	}
	dialled, answers = dialled.Unmap(), answers.Unmap()
	target, published := s.targets[flow.Forward.DstPort]
	if dialled == answers { // not translated
		byName := flow.Forward.DstPort == namePort && slices.ContainsFunc(s.blocks, func(b netip.Prefix) bool { return b.Addr() == dialled })
		return published && slices.Contains(s.local, dialled) && !byName
	}
	ours := slices.ContainsFunc(s.blocks, func(b netip.Prefix) bool { return b.Masked().Contains(answers) })
	return ours && slices.Contains(s.local, dialled) && (!published || target != netip.AddrPortFrom(answers, flow.Reverse.SrcPort))
}
