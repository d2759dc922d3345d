//go:build linux

// Package linktest writes down the kernel's network as text, so that tests can compare it with what it was, or with a golden file.
package linktest

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dump returns everything that Network does, and every switch of every interface below /proc/sys/net.
func Dump(t testing.TB) string {
	t.Helper()
	var out strings.Builder
	out.WriteString(Network(t))
	switches(t, &out)
	return out.String()
}

// Network returns the links, addresses, permanent neighbours, routes, rules and the firewall of the calling thread's namespace, without what
// changes by itself: counters, lifetimes, and the numbers that the kernel gives to links and rules.
func Network(t testing.TB) string {
	t.Helper()
	var out strings.Builder
	names := links(t, &out)
	addresses(t, &out, names)
	neighbours(t, &out, names)
	routes(t, &out, names)
	rules(t, &out)
	firewall(t, &out)
	return out.String()
}

func check(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("dump: %s: %v", what, err)
	}
}

// section writes lines in order, so that a difference is one of content.
func section(out *strings.Builder, title string, lines []string) {
	fmt.Fprintf(out, "# %s\n", title)
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(out, strings.TrimSpace(line))
	}
}

func links(t testing.TB, out *strings.Builder) map[int]string {
	t.Helper()
	list, err := netlink.LinkList()
	check(t, "links", err)
	names := map[int]string{}
	for _, link := range list {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	var lines []string
	for _, link := range list {
		a := link.Attrs()
		mac := "-"
		if b := a.HardwareAddr; len(b) == 6 && b[0] == 0x02 && b[1] == 0x5e { // the others are by chance
			mac = b.String()
		}
		up := a.Flags&net.FlagUp != 0
		lines = append(lines, fmt.Sprintf("%s %s mtu %d queue %d up %v mac %s master %s group %d alias %q", a.Name, link.Type(), a.MTU, a.TxQLen, up,
			mac, cmp.Or(names[a.MasterIndex], "-"), a.Group, a.Alias))
	}
	section(out, "links", lines)
	return names
}

func addresses(t testing.TB, out *strings.Builder, names map[int]string) {
	t.Helper()
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	check(t, "addresses", err)
	var lines []string
	for _, a := range list {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s scope %d", names[a.LinkIndex], a.IPNet, a.Scope))
	}
	section(out, "addresses", lines)
}

func neighbours(t testing.TB, out *strings.Builder, names map[int]string) {
	t.Helper()
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	check(t, "neighbours", err)
	var lines []string
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT != 0 && (n.Family == unix.AF_INET || n.Family == unix.AF_INET6) {
			lines = append(lines, fmt.Sprintf("%s %s %s permanent", names[n.LinkIndex], n.IP, n.HardwareAddr))
		}
	}
	section(out, "neighbours", lines)
}

func routes(t testing.TB, out *strings.Builder, names map[int]string) {
	t.Helper()
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	check(t, "routes", err)
	var lines []string
	for _, r := range list {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue
		}
		lines = append(lines, fmt.Sprintf("table %d %s dev %s via %v src %v metric %d protocol %d scope %d type %d", r.Table, r.Dst, names[r.LinkIndex], r.Gw,
			r.Src, r.Priority, r.Protocol, r.Scope, r.Type))
	}
	section(out, "routes", lines)
}

func rules(t testing.TB, out *strings.Builder) {
	t.Helper()
	var lines []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RuleList(family)
		check(t, "rules", err)
		for _, r := range list {
			marked := ""
			if r.Mask != nil {
				marked = fmt.Sprintf(" mark %#x/%#x", r.Mark, *r.Mask)
			}
			lines = append(lines, fmt.Sprintf("family %d priority %d from %v to %v iif %q%s table %d protocol %d", family, r.Priority, r.Src, r.Dst,
				r.IifName, marked, r.Table, r.Protocol))
		}
	}
	section(out, "rules", lines)
}

// firewall writes every nf_tables rule of the namespace, whoever made it.
func firewall(t testing.TB, out *strings.Builder) {
	t.Helper()
	conn, err := nftables.New()
	check(t, "firewall", err)
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyUnspecified)
	check(t, "firewall", err)
	tables, err := conn.ListTables()
	check(t, "firewall", err)
	slices.SortFunc(tables, func(a, b *nftables.Table) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name))
	})
	fmt.Fprintln(out, "# firewall")
	for _, table := range tables {
		fmt.Fprintf(out, "table %d %s\n", table.Family, table.Name)
		sets, err := conn.GetSets(table)
		check(t, "sets", err)
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			check(t, "elements", err)
			var lines []string
			for _, e := range elements {
				lines = append(lines, fmt.Sprintf("%s -> %s end %v", hex.EncodeToString(e.Key), hex.EncodeToString(e.Val), e.IntervalEnd))
			}
			slices.Sort(lines)
			fmt.Fprintf(out, "  set %s\n    %s\n", set.Name, strings.Join(lines, "\n    "))
		}
		for _, chain := range chains {
			if chain.Table.Name != table.Name || chain.Table.Family != table.Family {
				continue
			}
			fmt.Fprintf(out, "  chain %s %s\n", chain.Name, hook(chain))
			list, err := conn.GetRules(table, chain)
			check(t, "rules of "+chain.Name, err)
			for _, rule := range list {
				fmt.Fprintf(out, "    %s\n", text(rule))
			}
		}
	}
}

func hook(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return ""
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy != nil {
		policy = *c.Policy
	}
	return fmt.Sprintf("type %s hook %d priority %d policy %d", c.Type, *c.Hooknum, *c.Priority, policy)
}

// text is a rule in short; expressions that the library cannot read are not in it.
func text(rule *nftables.Rule) string {
	var parts []string
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			parts = append(parts, fmt.Sprintf("meta %d", e.Key))
		case *expr.Cmp:
			parts = append(parts, fmt.Sprintf("op%d %s", e.Op, value(e.Data)))
		case *expr.Payload:
			parts = append(parts, fmt.Sprintf("payload %d+%d,%d", e.Base, e.Offset, e.Len))
		case *expr.Lookup:
			parts = append(parts, fmt.Sprintf("lookup %s not %v", e.SetName, e.Invert))
		case *expr.Verdict:
			parts = append(parts, fmt.Sprintf("verdict %d %s", e.Kind, e.Chain))
		case *expr.Bitwise:
			parts = append(parts, "and "+hex.EncodeToString(e.Mask))
		case *expr.Match: // of iptables; what it holds is behind a pointer
			parts = append(parts, fmt.Sprintf("match %s %d %v", e.Name, e.Rev, reflect.ValueOf(e.Info).Elem()))
		case *expr.Target:
			parts = append(parts, fmt.Sprintf("target %s %d %v", e.Name, e.Rev, reflect.ValueOf(e.Info).Elem()))
		case *expr.Counter:
		default:
			parts = append(parts, strings.TrimPrefix(fmt.Sprintf("%T%+v", e, e), "*expr."))
		}
	}
	return strings.Join(parts, " ")
}

func value(data []byte) string {
	if name := strings.TrimRight(string(data), "\x00"); len(name) > 1 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
		return name
	}
	return hex.EncodeToString(data)
}

// switches are those of /proc/sys/net that somebody could have changed: every interface's, and forwarding.
func switches(t testing.TB, out *strings.Builder) {
	t.Helper()
	var lines []string
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/*"} {
		paths, err := filepath.Glob("/proc/sys/net/" + pattern)
		check(t, "switches", err)
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if errors.Is(err, os.ErrPermission) || strings.HasSuffix(path, "stable_secret") {
				continue
			}
			check(t, "switches", err)
			lines = append(lines, fmt.Sprintf("%s %s", strings.TrimPrefix(path, "/proc/sys/net/"), strings.TrimSpace(string(content))))
		}
	}
	section(out, "switches", lines)
}
