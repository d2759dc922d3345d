package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// LinkMTU returns the MTU of the link that datagrams to addr leave by, whatever the kernel believes of the path, and our address on it. 0: there is
// no such link. Nothing is sent.
func LinkMTU(addr netip.AddrPort) (mtu int, from netip.Addr) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)) // sends nothing
	if err != nil {
		return 0, from
	}
	from = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	_ = c.Close()
	links, err := net.Interfaces()
	if err != nil {
		return 0, from
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if prefix, ok := a.(*net.IPNet); ok && prefix.IP.Equal(net.IP(from.AsSlice())) {
				return link.MTU, from
			}
		}
	}
	return 0, from
}

// teachMTU tells this machine's kernel that packets to an IPv6 address must not be larger than mtu, for in IPv6 only the sender cuts packets.
// It does so as a router would, by an ICMP message about a packet from our port; one that says nothing is why we must. The kernel
// believes it for 10 minutes.
func teachMTU(from, to netip.AddrPort, mtu int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("teach MTU: %w", err)
	}
	own := &unix.SockaddrInet6{Addr: from.Addr().As16()}
	err = unix.Sendto(fd, packetTooBig(from, to, mtu), 0, own)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("teach MTU: %w", err)
	}
	return nil
}

// packetTooBig returns an ICMPv6 message without its checksum, which the kernel fills in.
func packetTooBig(from, to netip.AddrPort, mtu int) []byte {
	b := []byte{2, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(mtu))
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(mtu)) // of a payload that did not fit
	b = append(b, unix.IPPROTO_UDP, 64)
	src, dst := from.Addr().As16(), to.Addr().As16()
	b = append(append(b, src[:]...), dst[:]...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(mtu))
	return append(b, 0, 0)
}
