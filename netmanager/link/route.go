//go:build linux

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// protocol marks our routes and rules; the number is nobody's in /etc/iproute2/rt_protos.
	protocol = 91
	// rulePriority is before those of the VPNs seen (Tailscale 5210, wg-quick 32764), which send everything their way.
	rulePriority = 5100
	// directMark is the bit of a packet's mark that keeps it out of the TUN device. Only what stays on our bridge gets it.
	directMark = 1 << 12
)

// present lists the routes of a family that are like the given one in the fields that the mask names.
func (s *setting) present(v4 bool, like *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) { return s.handle.RouteListFiltered(familyOf(v4), like, mask) })
}

// setRoutes sends the overlay into the TUN device. The main table has it for the host itself; what comes in by our bridge or TUN device, or
// has our gateway as its source, goes by a table of our own, so that several engines of a host do not mix. What containers send, to others of this
// node too, goes by one that knows no blocks. A kernel without rules has the main table alone; there the firewall keeps containers apart.
func (s *setting) setRoutes() error {
	for _, v4 := range families() {
		wantMain, wantOwn := s.routes(v4)
		present, err := s.present(v4, &netlink.Route{Protocol: protocol, Table: unix.RT_TABLE_MAIN, LinkIndex: s.tun.Attrs().Index},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err == nil {
			err = s.setTable(present, wantMain)
		}
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		if err := s.setRules(v4); rulesUnsupported(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("rules: %w", err)
		}
		for _, number := range []int{table(s.Name), tableOut(s.Name)} {
			present, err = s.present(v4, &netlink.Route{Table: number}, netlink.RT_FILTER_TABLE)
			if err == nil {
				err = s.setTable(present, slices.DeleteFunc(slices.Clone(wantOwn), func(r netlink.Route) bool { return r.Table != number }))
			}
			if err != nil {
				return fmt.Errorf("own routes: %w", err)
			}
		}
	}
	return nil
}

// routes are those of the main table, and those of our own ones.
func (s *setting) routes(v4 bool) (main, own []netlink.Route) {
	addresses := ofFamily(s.Addresses, v4)
	if len(addresses) == 0 {
		return nil, nil
	}
	route := func(dst netip.Prefix, device netlink.Link, source netip.Addr) netlink.Route {
		r := netlink.Route{Dst: netOf(dst.Masked()), LinkIndex: device.Attrs().Index, Src: source.AsSlice(), Protocol: protocol,
			Family: familyOf(v4), Table: table(s.Name), Type: unix.RTN_UNICAST, Scope: netlink.SCOPE_LINK}
		if !v4 { // which knows no scopes, and where 0 is not a metric
			r.Scope, r.Priority = netlink.SCOPE_UNIVERSE, 1024
		}
		return r
	}
	for _, overlay := range ofFamily(s.Overlay, v4) {
		r := route(overlay, s.tun, s.Gateway(v4))
		own = append(own, r)
		if s.marks[v4] {
			r.Table = tableOut(s.Name)
			own = append(own, r)
		}
		r.Table, r.Priority = unix.RT_TABLE_MAIN, table(s.Name)
		main = append(main, r)
	}
	for _, address := range addresses {
		own = append(own, route(address, s.bridge, address.Addr()))
	}
	return main, own
}

// setTable makes a list of routes that is present into one that is wanted, the new before the old goes.
func (s *setting) setTable(present, want []netlink.Route) error {
	var there []bool
	for _, w := range want {
		found := false
		for _, p := range present {
			found = found || sameRoute(p, w)
		}
		there = append(there, found)
	}
	for i, w := range want {
		if there[i] {
			continue
		}
		if err := s.handle.RouteReplace(&w); err != nil {
			return fmt.Errorf("add %s: %w", w.Dst, err)
		}
	}
	for _, p := range present {
		wanted := false
		for _, w := range want {
			// A route of the same key has been replaced and is not there any more.
			wanted = wanted || (p.Dst.String() == w.Dst.String() && p.Priority == w.Priority)
		}
		if wanted || p.Type != unix.RTN_UNICAST {
			continue
		}
		if err := s.handle.RouteDel(&p); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove %s: %w", p.Dst, err)
		}
	}
	return nil
}

func sameRoute(a, b netlink.Route) bool {
	return a.Dst.String() == b.Dst.String() && a.LinkIndex == b.LinkIndex && a.Src.Equal(b.Src) && a.Priority == b.Priority &&
		a.Protocol == b.Protocol && a.Scope == b.Scope && a.Table == b.Table && a.Gw == nil
}

// rules are what leads to our own tables.
func (s *setting) rules(v4 bool) []netlink.Rule {
	var rules []netlink.Rule
	add := func(iif string, source *net.IPNet) {
		r := netlink.NewRule()
		r.Priority, r.Family, r.Table, r.Protocol, r.IifName, r.Src = rulePriority, familyOf(v4), table(s.Name), protocol, iif, source
		rules = append(rules, *r)
	}
	addresses := ofFamily(s.Addresses, v4)
	if len(addresses) == 0 {
		return nil
	}
	add(Bridge(s.Name), nil)
	if s.marks[v4] {
		mask, out := uint32(directMark), rules[0]
		out.Priority, out.Table, out.Mask = rulePriority-1, tableOut(s.Name), &mask
		rules = append(rules, out)
	}
	add(TUN(s.Name), nil)
	for _, a := range addresses {
		add("", netOf(netip.PrefixFrom(a.Addr(), a.Addr().BitLen())))
	}
	return rules
}

func (s *setting) setRules(v4 bool) error {
	present, err := ownRules(s.handle, s.Name, v4)
	if err != nil {
		return err
	}
	want := s.rules(v4)
	for _, w := range want {
		found := false
		for _, p := range present {
			found = found || sameRule(p, w)
		}
		if found {
			continue
		}
		if err := s.handle.RuleAdd(&w); err != nil {
			return fmt.Errorf("add %s: %w", w, err)
		}
	}
	for _, p := range present {
		wanted := false
		for _, w := range want {
			wanted = wanted || sameRule(p, w)
		}
		if wanted {
			continue
		}
		if err := s.handle.RuleDel(&p); err != nil {
			return fmt.Errorf("remove %s: %w", p, err)
		}
	}
	return nil
}

func sameRule(a, b netlink.Rule) bool {
	source := func(n *net.IPNet) string {
		if n == nil {
			return ""
		}
		return n.String()
	}
	return a.Priority == b.Priority && a.Table == b.Table && a.IifName == b.IifName && source(a.Src) == source(b.Src) &&
		a.Mark == b.Mark && (a.Mask == nil) == (b.Mask == nil) && (a.Mask == nil || *a.Mask == *b.Mask)
}

// ownRules are those that lead to the engine's tables.
func ownRules(handle *netlink.Handle, name string, v4 bool) ([]netlink.Rule, error) {
	var all []netlink.Rule
	for _, number := range []int{table(name), tableOut(name)} {
		rules, err := Whole(func() ([]netlink.Rule, error) {
			return handle.RuleListFiltered(familyOf(v4), &netlink.Rule{Table: number}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			r.Family = familyOf(v4)
			all = append(all, r)
		}
	}
	return all, nil
}

// removeRules takes them and what is left of the table away.
func removeRules(handle *netlink.Handle, name string) error {
	var errs []error
	for _, v4 := range families() {
		rules, err := ownRules(handle, name, v4)
		if err != nil && !rulesUnsupported(err) {
			errs = append(errs, fmt.Errorf("list rules: %w", err))
		}
		for _, r := range rules {
			if err := handle.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove %s: %w", r, err))
			}
		}
	}
	return errors.Join(errs...)
}

// rulesUnsupported says whether the kernel was built without rules, or without this family.
func rulesUnsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

func familyOf(v4 bool) int {
	if v4 {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
