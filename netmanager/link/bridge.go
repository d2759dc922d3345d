//go:build linux

package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// queueLength is how many packets wait in the kernel for the TUN device's reader: the default of 500 is less than one burst of small datagrams.
const queueLength = 1000

// leastMTU is what IPv6 asks of every link.
const leastMTU = 1280

// group is the device group of every engine's bridge and TUN device, by which one engine's firewall knows the others'.
const group = protocol

// MAC is the hardware address of whoever holds an IPv4 address of the overlay, so that neighbours can be entered without asking. Its first
// bytes mark it as locally administered.
func MAC(address netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x5e, 0, 0, 0, 0}
	if address.Is4() {
		four := address.As4()
		copy(mac[2:], four[:])
	} else {
		sixteen := address.As16()
		copy(mac[2:], sixteen[12:])
	}
	return mac
}

// Gateway is the first address of the family, the zero value where there is none.
func (c Config) Gateway(v4 bool) netip.Addr {
	if addresses := ofFamily(c.Addresses, v4); len(addresses) > 0 {
		return addresses[0].Addr()
	}
	return netip.Addr{}
}

func (s *setting) checkTUN() (err error) {
	s.tun, err = s.handle.LinkByName(TUN(s.Name))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("%w: %s", ErrNoTUN, TUN(s.Name))
	}
	return err
}

func (s *setting) setBridge() error {
	name := Bridge(s.Name)
	found, err := s.handle.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		found, err = s.makeBridge(name)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	if found.Type() != "bridge" {
		return fmt.Errorf("a link %s of type %s is in the way of the bridge", name, found.Type())
	}
	s.bridge = found
	if mac := MAC(s.Gateway(true)); !bytes.Equal(found.Attrs().HardwareAddr, mac) {
		if err := s.handle.LinkSetHardwareAddr(found, mac); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	if err := s.switches(bridgeSwitches, name); err != nil {
		return err
	}
	if err := s.common(found); err != nil {
		return err
	}
	return s.setAddresses(found, s.Addresses, netlink.SCOPE_UNIVERSE)
}

// makeBridge has its own hardware address from the start, and an MTU that is changed in a moment: a bridge that was never given one takes on
// the least of its ports', and changes with them.
func (s *setting) makeBridge(name string) (netlink.Link, error) {
	snooping := false // nobody queries; multicast would stop after a few minutes
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = name, leastMTU, MAC(s.Gateway(true))
	if s.MTU == leastMTU {
		attributes.MTU++
	}
	if err := s.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attributes, MulticastSnooping: &snooping}); err != nil {
		return nil, err
	}
	return s.handle.LinkByName(name)
}

// common is what the bridge and the TUN device share.
func (s *setting) common(link netlink.Link) error {
	attributes := link.Attrs()
	if attributes.Alias != Alias(s.Name) {
		if err := s.handle.LinkSetAlias(link, Alias(s.Name)); err != nil {
			return fmt.Errorf("alias of %s: %w", attributes.Name, err)
		}
	}
	if attributes.Group != group {
		if err := s.handle.LinkSetGroup(link, group); err != nil {
			return fmt.Errorf("group of %s: %w", attributes.Name, err)
		}
	}
	if attributes.MTU != s.MTU {
		if err := s.handle.LinkSetMTU(link, s.MTU); err != nil {
			return fmt.Errorf("mtu of %s: %w", attributes.Name, err)
		}
	}
	if attributes.Flags&net.FlagUp == 0 {
		if err := s.handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", attributes.Name, err)
		}
	}
	return nil
}

// setAddresses gives a link its addresses and takes all others, but those that the kernel makes itself.
func (s *setting) setAddresses(l netlink.Link, want []netip.Prefix, scope netlink.Scope) error {
	present, err := Whole(func() ([]netlink.Addr, error) { return s.handle.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
	}
	missing := slices.Clone(want)
	for _, address := range present {
		prefix, ok := prefixOf(address.IPNet)
		if !ok || prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		if i := slices.Index(missing, prefix); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := s.handle.AddrDel(l, &address); err != nil {
			return fmt.Errorf("take address %s: %w", prefix, err)
		}
	}
	for _, prefix := range missing {
		address := &netlink.Addr{IPNet: netOf(prefix), Scope: int(scope)}
		if !prefix.Addr().Is4() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := s.handle.AddrAdd(l, address); err != nil {
			return fmt.Errorf("give address %s: %w", prefix, err)
		}
		if err := AwaitLocal(s.handle, prefix.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// AwaitLocal returns once the kernel takes in what is sent to a fresh address. An IPv6 address gets there by itself a moment after it was given,
// even one that need not be checked for duplicates; before that nobody can bind to it.
func AwaitLocal(handle *netlink.Handle, address netip.Addr) error {
	if address.Is4() {
		return nil
	}
	var err error
	for end := time.Now().Add(localTimeout); ; time.Sleep(localPause) {
		var routes []netlink.Route
		routes, err = handle.RouteGet(address.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("the kernel does not take in its own address %s", address), err)
		}
	}
}

const (
	localTimeout = 5 * time.Second        // a kernel thread has to run once
	localPause   = 100 * time.Microsecond // it mostly has by then
)

func (s *setting) setTUN() error {
	if s.tun.Attrs().TxQLen < queueLength {
		if err := s.handle.LinkSetTxQLen(s.tun, queueLength); err != nil {
			return fmt.Errorf("queue of %s: %w", s.tun.Attrs().Name, err)
		}
	}
	if err := s.switches(tunSwitches, s.tun.Attrs().Name); err != nil {
		return err
	}
	if err := s.common(s.tun); err != nil {
		return err
	}
	// The gateway's address once more: from a link without any the kernel takes nothing whose sender it would reach by another, and those are
	// the containers of the host's other engines, and the host itself.
	return s.setAddresses(s.tun, []netip.Prefix{netip.PrefixFrom(s.Gateway(true), 32)}, netlink.SCOPE_HOST)
}

// removeLinks takes away the bridge, the TUN device and every veth of an engine.
func removeLinks(handle *netlink.Handle, name string) error {
	links, err := Whole(handle.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, link := range links {
		of := link.Attrs().Name
		if of != Bridge(name) && of != TUN(name) && !IsVeth(link, name) {
			continue
		}
		if err := handle.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", of, err))
		}
	}
	return errors.Join(errs...)
}

// IsVeth says whether a link is the host's end of a veth pair of the engine; one that a crash left half-made has no alias.
func IsVeth(l netlink.Link, name string) bool {
	digits, ok := strings.CutPrefix(l.Attrs().Name, Veth(name))
	return ok && len(digits) == vethDigits && strings.Trim(digits, "0123456789abcdef") == "" && l.Type() == "veth" &&
		(l.Attrs().Alias == "" || strings.HasPrefix(l.Attrs().Alias, Alias(name)+" "))
}

// vethDigits is how many hexadecimal digits follow Veth in a name.
const vethDigits = 6

// prefixOf and netOf turn the two kinds of prefix into one another.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(address.Unmap(), ones), ok
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
