//go:build linux

package attach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/link"
)

// pair is a veth pair of ours, seen from the host.
type pair struct {
	link netlink.Link
	id   string // empty when it was left half-made
}

// hostEnd names the host's end after the address, of which an engine has no two: <network>v and the last 24 bits.
func (a Attachment) hostEnd() string {
	four := a.main().As4()
	return fmt.Sprintf("%s%x", link.Veth(a.Network), four[1:])
}

// alias is where the host's link keeps whose it is.
func (a Attachment) alias() string {
	words := []string{link.Alias(a.Network), a.ID}
	for _, p := range a.Addresses {
		words = append(words, p.String())
	}
	return strings.Join(words, " ")
}

// list returns the pairs of an engine, in the order in which they were made.
func list(host *netlink.Handle, network string) ([]pair, error) {
	links, err := link.Whole(host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var pairs []pair
	for _, l := range links {
		if !link.IsVeth(l, network) {
			continue
		}
		p := pair{link: l}
		if words := strings.Fields(l.Attrs().Alias); len(words) >= 4 { // skerry, network, id, address
			p.id = words[2]
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
}

// remove takes both ends away, and what the bridge has written down of the addresses.
func (p pair) remove(host *netlink.Handle, network string) error {
	if err := host.LinkDel(p.link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return forget(host, network, func(end string) bool { return end == p.link.Attrs().Name })
}

// forget takes away what the bridge has written down of the addresses behind some of the hosts' ends, which need not be there any more.
func forget(host *netlink.Handle, network string, gone func(end string) bool) error {
	bridge, err := host.LinkByName(link.Bridge(network))
	if err != nil {
		return nil // and nothing written down
	}
	written, err := link.Whole(func() ([]netlink.Neigh, error) { return host.NeighList(bridge.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range written {
		if len(n.HardwareAddr) != 6 || n.IP == nil || !gone(fmt.Sprintf("%s%x", link.Veth(network), []byte(n.HardwareAddr[3:]))) {
			continue
		}
		if err := host.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s: %w", n.IP, err)
		}
	}
	return nil
}

// provide makes the pair, or finds that it is there and as it shall be. What else is in its place goes: the last holder of the address, and an
// interface of ours in the namespace.
func provide(host *netlink.Handle, a Attachment, bridge netlink.Link, namespace int) error {
	err := makePair(a, bridge, namespace)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	there, err := host.LinkByName(a.hostEnd())
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("link %s: %w", a.hostEnd(), err)
	}
	inside := 0
	if err := within(namespace, func() (err error) { inside, err = peerIndex(); return err }); err != nil {
		return err
	}
	if there != nil && there.Attrs().Index == inside && there.Attrs().Alias == a.alias() {
		return adopt(host, there, a, bridge)
	}
	pairs, err := list(host, a.Network)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if p.link.Attrs().Index == inside || p.link.Attrs().Name == a.hostEnd() {
			if err := p.remove(host, a.Network); err != nil {
				return fmt.Errorf("clear the place of %s: %w", a.hostEnd(), err)
			}
		}
	}
	if err := makePair(a, bridge, namespace); err != nil {
		return err
	}
	return nil
}

// adopt puts right what a pair can have got wrong since it was made.
func adopt(host *netlink.Handle, there netlink.Link, a Attachment, bridge netlink.Link) error {
	attributes := there.Attrs()
	if attributes.MasterIndex != bridge.Attrs().Index {
		if err := host.LinkSetMaster(there, bridge); err != nil {
			return fmt.Errorf("put %s on the bridge: %w", attributes.Name, err)
		}
	}
	if attributes.MTU != a.MTU {
		if err := host.LinkSetMTU(there, a.MTU); err != nil {
			return fmt.Errorf("mtu of %s: %w", attributes.Name, err)
		}
	}
	if attributes.Flags&net.FlagUp == 0 {
		if err := host.LinkSetUp(there); err != nil {
			return fmt.Errorf("bring up %s: %w", attributes.Name, err)
		}
	}
	return mark(a)
}

// peerIndex is the number that the other end of the interface has on its side; 0 when there is no such interface. Within the namespace.
func peerIndex() (int, error) {
	inside, err := netlink.LinkByName(Interface)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", Interface, err)
	}
	if inside.Type() != "veth" {
		return 0, fmt.Errorf("the namespace has an interface %s of type %s", Interface, inside.Type())
	}
	return inside.Attrs().ParentIndex, nil
}

// makePair asks the kernel for both ends at once, up, with the one on the bridge and the other in the namespace under its final name and
// address: nothing is moved or renamed, and a crash leaves either nothing or a pair that only lacks its alias. The library takes several
// messages for that.
func makePair(a Attachment, bridge netlink.Link, namespace int) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	request.AddData(up())
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.hostEnd())))
	request.AddData(nl.NewRtAttr(unix.IFLA_MTU, number(a.MTU)))
	request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, number(bridge.Attrs().Index)))
	// One queue: the default is one for each processor, and nothing here uses the others.
	request.AddData(nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, number(1)))
	request.AddData(nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, number(1)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	peer.AddChild(nl.NewIfInfomsg(unix.AF_UNSPEC)) // not up: the kernel opens it before it has its other end, and fails
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(Interface))
	peer.AddRtAttr(unix.IFLA_MTU, number(a.MTU))
	peer.AddRtAttr(unix.IFLA_ADDRESS, link.MAC(a.main()))
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, number(1))
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, number(1))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, number(namespace))
	request.AddData(info)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("make the pair %s: %w", a.hostEnd(), err)
	}
	return mark(a)
}

// mark writes down whose the host's end is.
func mark(a Attachment) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.hostEnd())))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(a.alias())))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("mark %s: %w", a.hostEnd(), err)
	}
	return nil
}

// setPort lets the bridge send back what came from the host's end: a container that connects to its own published port gets its packet back
// translated, and where bridges are made to call the firewall the kernel does not route that packet but turns it round in the bridge. In place
// of a wall the port is isolated, which stops that too.
func setPort(a Attachment, isolated bool) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.hostEnd())))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	alone := byte(0)
	if isolated {
		alone = 1
	}
	port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{alone})
	request.AddData(info)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("port of %s: %w", a.hostEnd(), err)
	}
	return nil
}

func up() *nl.IfInfomsg {
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Flags, message.Change = unix.IFF_UP, unix.IFF_UP
	return message
}

func number(n int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

// configure gives the interface what it needs, within the namespace.
func configure(a Attachment, gatewayMAC net.HardwareAddr) error {
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := inside.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
	}
	l, err := inside.LinkByName(Interface)
	if err != nil {
		return fmt.Errorf("%s: %w", Interface, err)
	}
	if err := settle(inside, l, a); err != nil {
		return err
	}
	for _, address := range a.Addresses {
		if !address.Is4() {
			if has, err := allowIPv6(); err != nil {
				return err
			} else if !has {
				continue
			}
		}
		if err := setAddress(inside, l, address); err != nil {
			return fmt.Errorf("address %s: %w", address, err)
		}
		if err := lead(inside, l, a.gateway(address.Is4()), gatewayMAC); err != nil {
			return fmt.Errorf("gateway %s: %w", a.gateway(address.Is4()), err)
		}
		if err := link.AwaitLocal(inside, address); err != nil {
			return err
		}
	}
	return nil
}

// setAddress gives the interface an address with nobody beside it. One with a whole block beside it, as an earlier version gave, goes: connections
// only notice that in IPv6, where the kernel holds an address no more than once, and there for a moment.
func setAddress(inside *netlink.Handle, l netlink.Link, address netip.Addr) error {
	family, want := netlink.FAMILY_V6, &netlink.Addr{IPNet: alone(address), Flags: unix.IFA_F_NODAD}
	if address.Is4() {
		family, want.Flags = netlink.FAMILY_V4, 0
	}
	present, err := link.Whole(func() ([]netlink.Addr, error) { return inside.AddrList(l, family) })
	if err != nil {
		return err
	}
	present = slices.DeleteFunc(present, func(p netlink.Addr) bool {
		ones, bits := p.Mask.Size()
		return !p.IP.Equal(want.IP) || ones == bits
	})
	if address.Is4() {
		if err := inside.AddrReplace(l, want); err != nil {
			return err
		}
	}
	for _, p := range present {
		if err := inside.AddrDel(l, &p); err != nil {
			return err
		}
	}
	if address.Is4() {
		return nil
	}
	return inside.AddrReplace(l, want)
}

// lead makes the gateway the way to everything.
func lead(inside *netlink.Handle, l netlink.Link, gateway netip.Addr, mac net.HardwareAddr) error {
	index := l.Attrs().Index
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if !gateway.Is4() {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	if err := inside.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: mac}); err != nil {
		return err
	}
	beside := &netlink.Route{LinkIndex: index, Dst: alone(gateway), Scope: netlink.SCOPE_LINK}
	if err := inside.RouteReplace(beside); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: index, Dst: everything, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}

// alone is an address as a prefix of its full length.
func alone(address netip.Addr) *net.IPNet {
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
}

// settle puts right what an adopted interface can have got wrong.
func settle(inside *netlink.Handle, l netlink.Link, a Attachment) error {
	attributes := l.Attrs()
	if mac := link.MAC(a.main()); !bytes.Equal(attributes.HardwareAddr, mac) {
		if err := inside.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("hardware address: %w", err)
		}
	}
	if attributes.MTU != a.MTU {
		if err := inside.LinkSetMTU(l, a.MTU); err != nil {
			return fmt.Errorf("mtu: %w", err)
		}
	}
	if attributes.Flags&net.FlagUp == 0 {
		if err := inside.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up: %w", err)
		}
	}
	return nil
}

// allowIPv6 turns IPv6 on for the interface and for loopback: Docker turns it off in a namespace to which it gives no IPv6 address itself. It
// says whether the kernel has IPv6 at all.
func allowIPv6() (bool, error) {
	for _, name := range []string{"lo", Interface} {
		path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
		present, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err == nil && !bytes.HasPrefix(present, []byte("0")) {
			err = os.WriteFile(path, []byte("0"), 0o644) //nolint:gosec // the kernel's file; the mode is not used
		}
		if err != nil {
			return true, fmt.Errorf("IPv6 in the namespace: %w", err)
		}
	}
	return true, nil
}

// neighbours tells the bridge who has the addresses and behind which of its ports: nobody is asked, so nobody else can answer, and what is for a
// container that keeps silent does not go to all of them. The first goes with Detach or Prune, and is right as long as it is there: the
// hardware address is made from the other. The second goes with the port.
func neighbours(host *netlink.Handle, a Attachment, bridge, port netlink.Link) error {
	mac := link.MAC(a.main())
	for _, address := range a.Addresses {
		err := host.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: mac})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", address, err)
		}
	}
	err := host.NeighSet(&netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("place of %s: %w", mac, err)
	}
	return nil
}
