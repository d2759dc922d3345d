//go:build linux

package nettest

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An End is where a cable is plugged in: an interface to be made on a host, with its addresses in prefix form.
type End struct {
	Host      *Host
	Interface string
	Addresses []string
	MTU       int // 1500 when 0
}

// Cable joins two hosts by a pair of interfaces, which come up with their addresses.
func Cable(t testing.TB, a, b End) {
	t.Helper()
	a.Host.Do(func() {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = a.Interface
		attributes.MTU = a.mtu()
		pair := &netlink.Veth{LinkAttrs: attributes, PeerName: b.Interface, PeerMTU: uint32(b.mtu()), PeerNamespace: netlink.NsFd(b.Host.fd)}
		a.Host.check("cable", netlink.LinkAdd(pair))
	})
	for _, end := range []End{a, b} {
		end.Host.Do(func() { end.Host.check("up", netlink.LinkSetUp(end.Host.Link(end.Interface))) })
	}
	for _, end := range []End{a, b} { // now that both can carry
		end.Host.Address(end.Interface, end.Addresses...)
	}
}

// Switch joins any number of hosts on one segment; it is a host of its own, which holds port0, port1 and so on, in the order given, below its
// bridge "switch".
func Switch(t testing.TB, name string, ends ...End) *Host {
	t.Helper()
	h := NewHost(t, name)
	h.Do(func() {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "switch"
		h.check("bridge", netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}))
		h.check("bridge", netlink.LinkSetUp(h.Link("switch")))
	})
	for i, end := range ends {
		port := fmt.Sprintf("port%d", i)
		Cable(t, End{Host: h, Interface: port, MTU: end.MTU}, end)
		h.Do(func() { h.check("port", netlink.LinkSetMaster(h.Link(port), h.Link("switch"))) })
	}
	return h
}

func (e End) mtu() int {
	if e.MTU == 0 {
		return 1500
	}
	return e.MTU
}

// Tap makes a TUN device that outlives every descriptor, as the programs' own does: for tests of what surrounds it, where no packet is read.
func (h *Host) Tap(name string) {
	h.t.Helper()
	h.Do(func() { h.check("tun", AddTUN(name)) })
}

// AddTUN is Tap in the calling thread's namespace.
func AddTUN(name string) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	device := &netlink.Tuntap{LinkAttrs: attributes, Mode: netlink.TUNTAP_MODE_TUN, Flags: unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR, Queues: 1}
	if err := netlink.LinkAdd(device); err != nil {
		return err
	}
	for _, file := range device.Fds { // it persists, and the next one who opens it finds it free
		_ = file.Close()
	}
	return nil
}
