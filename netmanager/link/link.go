//go:build linux

// Package link is the kernel's side of the overlay on one node: the bridge that the containers hang on, the routes between it and the TUN
// device, the firewall rules around it, and the switches below /proc/sys that make it work. Set makes it so and may be called again, at any
// time and by a process that knows nothing of the one before; CleanUp takes everything away and puts back what was there.
//
//	                       rule iif <name>b, but for published ports → own table: overlay → <name>t
//	                       rule iif <name>b, iif <name>t, from gateway → own table: overlay → <name>t, blocks → <name>b
//	container ─ veth ─┐                                                                       ┌─ service ─ WireGuard
//	container ─ veth ─┴─ <name>b (gateway address) ─── the host's routing ─── <name>t (TUN) ──┘
//	                                  │
//	                            uplinks: masquerade out, published ports in (DNAT, this host's own addresses alone)
//
// Everything is named by Config.Name, so that several engines can share one host. What belongs to the host and not to us (forwarding on its
// uplinks, the FORWARD policy that Docker sets) is changed only where it has to be, written down first (Config.StateDir), and put back by
// CleanUp. It knows no containers: those are attached by package attach.
package link

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultStateDir is where what belongs to the host is written down: all engines of a host share it, and it is empty after a boot, as the
// kernel's own state is.
const DefaultStateDir = "/run/skerry"

// ErrNoTUN says that the TUN device has not been opened yet: package tun makes it.
var ErrNoTUN = errors.New("the TUN device is missing")

// Config is what the kernel shall be like. IPv6 is left out of it on a kernel that has none, or that can put no wall around it.
type Config struct {
	// Name is the engine's, one to eight of a-z and 0-9. Every link, table and rule carries it.
	Name string
	// Overlay are the network's ranges, one for IPv4 and at most one for IPv6. All of them goes into the TUN device.
	Overlay []netip.Prefix
	// Addresses are the bridge's, each with the length of the block it stands for; the first of a family is the gateway and the source
	// address of the host's own packets into the overlay.
	Addresses []netip.Prefix
	// MTU is the bridge's and the TUN device's.
	MTU int
	// Ports are published on the node's addresses.
	Ports []Port
	// StateDir holds what CleanUp puts back; DefaultStateDir when empty.
	StateDir string

	oldKernel map[bool]bool // for tests: as if the kernel had no nf_tables for IPv4 (true), for IPv6 (false)
}

// Port is one published port: who connects to it on any address of this node reaches the target.
type Port struct {
	HostPort uint16
	Protocol Protocol
	// Target is the container's address, within a block of this node. IPv4 and IPv6 are published separately.
	Target netip.AddrPort
}

// Protocol is a transport that has ports.
type Protocol string

// The protocols that can be published.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// number is the protocol's in the IP header, 0 for an unknown one.
func (p Protocol) number() byte {
	return map[Protocol]byte{TCP: 6, UDP: 17}[p]
}

// Bridge is the name of the engine's bridge.
func Bridge(name string) string { return name + "b" }

// TUN is the name of the engine's TUN device.
func TUN(name string) string { return name + "t" }

// Veth is what the names of the host's ends of the engine's veth pairs begin with; six hexadecimal digits follow.
func Veth(name string) string { return name + "v" }

// Alias marks a link as ours for other engines of this host, and says to an administrator whose it is. A veth's goes on behind a space.
func Alias(name string) string { return aliasPrefix + name }

const aliasPrefix = "skerry "

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	errs := []error{CheckName(c.Name), c.validAddresses()}
	if c.MTU < leastMTU || c.MTU > 65535 {
		errs = append(errs, fmt.Errorf("mtu %d is not within %d and 65535", c.MTU, leastMTU))
	}
	type key struct {
		port     uint16
		protocol Protocol
		v4       bool
	}
	seen := map[key]bool{}
	for _, p := range c.Ports {
		k := key{p.HostPort, p.Protocol, p.Target.Addr().Is4()}
		switch {
		case p.HostPort == 0 || p.Target.Port() == 0:
			errs = append(errs, fmt.Errorf("port %d to %s: port 0", p.HostPort, p.Target))
		case p.Protocol.number() == 0:
			errs = append(errs, fmt.Errorf("port %d: protocol %q", p.HostPort, p.Protocol))
		case !slices.ContainsFunc(c.Addresses, func(block netip.Prefix) bool { return block.Masked().Contains(p.Target.Addr()) }):
			errs = append(errs, fmt.Errorf("port %d: target %s is in no block of this node", p.HostPort, p.Target))
		case seen[k]:
			errs = append(errs, fmt.Errorf("port %d/%s is published twice", p.HostPort, p.Protocol))
		}
		seen[k] = true
	}
	return errors.Join(errs...)
}

// CheckName reports what is wrong with the name of a network: the names in the kernel leave room for 8 characters.
func CheckName(name string) error {
	if len(name) < 1 || len(name) > 8 || strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		return fmt.Errorf("name %q: want 1 to 8 of a-z and 0-9", name)
	}
	return nil
}

func (c Config) validAddresses() error {
	var errs []error
	for _, v4 := range []bool{true, false} {
		ranges := ofFamily(c.Overlay, v4)
		if len(ranges) > 1 || (v4 && len(ranges) == 0) {
			errs = append(errs, fmt.Errorf("overlay %v: want one range for IPv4 and at most one for IPv6", c.Overlay))
		}
		if v4 && len(ofFamily(c.Addresses, v4)) == 0 {
			errs = append(errs, errors.New("no IPv4 address for the bridge"))
		}
		for _, address := range ofFamily(c.Addresses, v4) {
			if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= address.Bits() && r.Contains(address.Addr()) }) {
				errs = append(errs, fmt.Errorf("address %s is not within the overlay %v", address, c.Overlay))
			}
		}
	}
	for _, r := range slices.Concat(c.Overlay, c.Addresses) {
		if !r.IsValid() || r.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("prefix %v is not valid", r))
		}
	}
	for i, a := range c.Addresses {
		for _, b := range c.Addresses[:i] {
			if a.Overlaps(b) {
				errs = append(errs, fmt.Errorf("addresses %s and %s are in one block", b, a))
			}
		}
	}
	return errors.Join(errs...)
}

// Set makes the kernel what the configuration says and changes only what differs, so that a repeat changes nothing and established
// connections go on. It is to be repeated now and then: others flush firewalls, restart Docker and plug in interfaces. The TUN device must be there.
// It works in the network namespace of the calling thread. noIPv6 says why the configuration's IPv6 was left out, nil where it was not.
func Set(c Config) (noIPv6, err error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	record, err := openRecord(cmp.Or(c.StateDir, DefaultStateDir))
	if err != nil {
		return nil, err
	}
	defer record.close()
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	s := &setting{Config: c.normal(), handle: handle, record: record, marks: map[bool]bool{}}
	if len(families()) == 1 {
		s.leaveOutIPv6(errors.New("the kernel has none"))
	}
	// The walls stand before the first door is opened, and what has none has no door.
	for _, step := range []func() error{s.checkTUN, s.setWalls, s.record.save, s.setBridge, s.setTUN, s.setHost, s.setRoutes, s.passOthers, s.dropStale} {
		if err := step(); err != nil {
			return s.noIPv6, fmt.Errorf("link %s: %w", c.Name, err)
		}
	}
	return s.noIPv6, nil
}

// setting is one call of Set.
type setting struct {
	Config
	handle      *netlink.Handle
	record      *record
	bridge, tun netlink.Link
	changed     bool          // of the firewall
	marks       map[bool]bool // by family: the firewall sets directMark
	noIPv6      error         // why it was left out
}

// normal sorts what has no order.
func (c Config) normal() Config {
	c.Ports = slices.Clone(c.Ports)
	slices.SortFunc(c.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort), a.Target.Compare(b.Target))
	})
	return c
}

// leaveOutIPv6 makes the configuration one of IPv4 alone.
func (s *setting) leaveOutIPv6(why error) {
	if len(ofFamily(s.Overlay, false)) > 0 {
		s.noIPv6 = why
	}
	s.Overlay, s.Addresses = ofFamily(s.Overlay, true), ofFamily(s.Addresses, true)
	s.Ports = slices.DeleteFunc(s.Ports, func(p Port) bool { return !p.Target.Addr().Is4() })
}

// families are those of the kernel: IPv4 (true), and IPv6 (false) where it has that. One without it answers questions about IPv6 with what it
// knows of IPv4.
func families() []bool {
	if _, err := os.Stat(switchRoot + "/ipv6"); err != nil {
		return []bool{true}
	}
	return []bool{true, false}
}

// ofFamily returns the prefixes of one family, in their order.
func ofFamily(prefixes []netip.Prefix, v4 bool) []netip.Prefix {
	var found []netip.Prefix
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() == v4 {
			found = append(found, p)
		}
	}
	return found
}

// table is the number of the engine's own routing table, and the metric of its route in the main one: made from the name, so that CleanUp
// finds it when nothing else is left. It is far above what people and programs choose.
func table(name string) int {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(name))
	return int(1<<28 | sum.Sum32()&(1<<28-1))
}

// tableOut is the number of the engine's table without blocks.
func tableOut(name string) int { return 1<<29 | table(name) }

// CleanUp removes every link, route, table and rule of an engine, whatever state a crash left them in, and puts back what Set changed of the
// host once no other engine needs it. It may be repeated, and works where nothing was ever set.
func CleanUp(name, stateDir string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	record, err := openRecord(cmp.Or(stateDir, DefaultStateDir))
	if err != nil {
		return err
	}
	defer record.close()
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	// Each is tried whatever came of the others; routes go with their links.
	alive := func(name string) bool {
		_, err := handle.LinkByName(Bridge(name))
		return !errors.As(err, new(netlink.LinkNotFoundError))
	}
	err = errors.Join(removeRules(handle, name), removeLinks(handle, name), removeFirewall(name), record.release(name, alive))
	if err != nil {
		return fmt.Errorf("clean up %s: %w", name, err)
	}
	return nil
}
