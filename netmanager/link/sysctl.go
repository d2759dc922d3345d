//go:build linux

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// aSwitch is a file below /proc/sys/net of a link of ours, with % for its name.
type aSwitch struct{ path, value string }

var bridgeSwitches = []aSwitch{
	{"ipv4/conf/%/rp_filter", "2"}, // loose: a container's address is reached by the bridge, its alias by the TUN device
	{"ipv4/conf/%/forwarding", "1"},
	{"ipv4/conf/%/route_localnet", "1"}, // 127.0.0.1 and a published port; the firewall keeps containers away from 127/8
	{"ipv4/conf/%/send_redirects", "0"},
	{"ipv4/conf/%/accept_redirects", "0"},
	{"ipv6/conf/%/disable_ipv6", "0"},
	{"ipv6/conf/%/accept_dad", "0"}, // addresses are leased: nobody else has them, and nothing waits a second for that
	{"ipv6/conf/%/accept_ra", "0"},
	{"ipv6/conf/%/autoconf", "0"},
	{"ipv6/conf/%/accept_redirects", "0"},
	{"ipv6/conf/%/forwarding", "0"}, // only the host's as a whole counts; 1 makes the kernel drop what it learned from routers
}

var tunSwitches = []aSwitch{
	{"ipv4/conf/%/rp_filter", "2"},
	{"ipv4/conf/%/forwarding", "1"},
	{"ipv4/conf/%/accept_local", "1"}, // the host's own packet to a service comes back in when the instance runs here
	{"ipv4/conf/%/send_redirects", "0"},
	{"ipv4/conf/%/accept_redirects", "0"},
	{"ipv6/conf/%/disable_ipv6", "0"},
	{"ipv6/conf/%/addr_gen_mode", "1"}, // no link-local address, so nothing of the kernel's own goes into the tunnel
	{"ipv6/conf/%/accept_dad", "0"},
	{"ipv6/conf/%/accept_ra", "0"},
	{"ipv6/conf/%/autoconf", "0"},
	{"ipv6/conf/%/accept_redirects", "0"},
	{"ipv6/conf/%/forwarding", "0"}, // only the host's as a whole counts; 1 makes the kernel drop what it learned from routers
}

// switches sets those of a link of ours. They go with the link, so nothing is written down. A switch that this kernel does not have is passed over.
func (s *setting) switches(switches []aSwitch, link string) error {
	for _, sw := range switches {
		if sw.path == "ipv6/conf/%/disable_ipv6" && len(ofFamily(s.Addresses, false)) == 0 { // there is no wall
			sw.value = "1"
		}
		err := writeSwitch(strings.Replace(sw.path, "%", link, 1), sw.value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

const switchRoot = "/proc/sys/net"

func readSwitch(path string) (string, error) {
	content, err := os.ReadFile(filepath.Join(switchRoot, path))
	return strings.TrimSpace(string(content)), err
}

// writeSwitch writes only where the value differs: some switches do something even when they are set to what they are, and /proc/sys may be read-only.
func writeSwitch(path, value string) error {
	present, err := readSwitch(path)
	if err != nil || present == value {
		return err
	}
	return os.WriteFile(filepath.Join(switchRoot, path), []byte(value), 0o644) //nolint:gosec // the kernel's file; the mode is not used
}

const (
	forwardAll4 = "ipv4/ip_forward"
	forwardAll6 = "ipv6/conf/all/forwarding"
	forwardNew6 = "ipv6/conf/default/forwarding"
)

func forward4(link string) string  { return "ipv4/conf/" + link + "/forwarding" }
func forward6(link string) string  { return "ipv6/conf/" + link + "/forwarding" }
func acceptRA6(link string) string { return "ipv6/conf/" + link + "/accept_ra" }

// hostLinks are all but ours and those of other engines.
func (s *setting) hostLinks() ([]netlink.Link, error) {
	links, err := Whole(s.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		a := l.Attrs() // a crash can have left ours without alias
		return strings.HasPrefix(a.Alias, aliasPrefix) || a.Name == TUN(s.Name) || a.Name == Bridge(s.Name) || IsVeth(l, s.Name)
	}), nil
}

// noteIPv6 enters what of the host has to change and what it is now. IPv6 knows only the host as a whole, so the interfaces' own switches (which also
// decide whether a host listens to its router) are put back at once. What the host did not forward before, the firewall keeps from being
// forwarded now: see quiet.
func (s *setting) noteIPv6(links []netlink.Link) {
	if all, err := readSwitch(forwardAll6); err == nil && all == "0" && len(ofFamily(s.Addresses, false)) > 0 {
		for _, path := range []string{forwardAll6, forwardNew6} {
			s.record.note(path)
		}
		for _, link := range links {
			s.record.note(forward6(link.Attrs().Name))
			if value, err := readSwitch(acceptRA6(link.Attrs().Name)); err == nil && value == "1" {
				s.record.note(acceptRA6(link.Attrs().Name))
			}
		}
		s.record.unsettled()
	}
}

// noteIPv4 does so for IPv4: where the host does not forward, forwarding is turned on for each interface that has an address, because replies to
// containers and connections to published ports come in there, and not for the host as a whole.
func (s *setting) noteIPv4(links []netlink.Link) error {
	if all, err := readSwitch(forwardAll4); err != nil || all != "0" {
		return nil
	}
	addresses, err := Whole(func() ([]netlink.Addr, error) { return s.handle.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, link := range links {
		attributes := link.Attrs()
		addressed := slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.LinkIndex == attributes.Index })
		if attributes.Flags&net.FlagLoopback != 0 || !addressed {
			continue
		}
		if value, err := readSwitch(forward4(attributes.Name)); err == nil && value == "0" {
			s.record.note(forward4(attributes.Name))
		}
	}
	return nil
}

// quiet are the interfaces of the host that did not forward before us. New connections that come in there and are not for us stay
// unforwarded, until somebody turns forwarding on for the host as a whole.
func (s *setting) quiet(v4 bool) []string {
	if all, _ := readSwitch(forwardAll4); v4 && all == "1" {
		return nil
	}
	prefix := "ipv6/conf/"
	if v4 {
		prefix = "ipv4/conf/"
	}
	var names []string
	for _, e := range s.record.entries {
		rest, _ := strings.CutPrefix(e.path, prefix)
		name, ok := strings.CutSuffix(rest, "/forwarding")
		if ok && len(rest) < len(e.path) && e.value == "0" && name != "all" && name != "default" && name != "lo" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// setHost turns on what was noted.
func (s *setting) setHost() error {
	for _, name := range s.quiet(true) {
		if err := writeSwitch(forward4(name), "1"); err != nil && !errors.Is(err, fs.ErrNotExist) { // unplugged meanwhile
			return err
		}
	}
	if s.record.settled || !s.record.has(forwardAll6) {
		return nil // another has turned it on, or nobody wants it
	}
	return s.setForward6()
}

// setForward6 turns the host into a router for IPv6 without making routers of its interfaces: routes learned from advertisements are dropped
// in that moment unless accept_ra is 2, and afterwards only a host's interface accepts them. Until all is put back the record is not settled,
// so that another process ends what a crash cut short.
func (s *setting) setForward6() error {
	var errs []error
	write := func(path, value string) { errs = append(errs, ignoreMissing(writeSwitch(path, value))) } // unplugged meanwhile
	for _, e := range s.record.entries {
		if strings.HasSuffix(e.path, "/accept_ra") {
			write(e.path, "2")
		}
	}
	write(forwardAll6, "1")
	for _, name := range []string{Bridge(s.Name), TUN(s.Name)} {
		write(forward6(name), "0")
	}
	for _, e := range s.record.entries {
		if strings.HasPrefix(e.path, "ipv6/") && strings.HasSuffix(e.path, "/forwarding") && e.path != forwardAll6 {
			write(e.path, e.value)
		}
	}
	for _, e := range s.record.entries {
		if strings.HasSuffix(e.path, "/accept_ra") {
			write(e.path, e.value)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.record.settle()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
