package tun

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

// vnetHeader is how long the kernel's header before a packet is: flags, type, and four numbers of 16 bits in the machine's order.
const vnetHeader = 10

// device is the kernel's TUN device; its packets can be read whole.
type device struct {
	Device
	file *os.File
}

var _ SuperQueue = (*device)(nil)

func (d *device) ReadSuper(slab []byte) (Super, error) {
	b := slab[Spacing-vnetHeader : len(slab)-Spacing]
	n, err := d.file.Read(b)
	switch {
	case errors.Is(err, syscall.EBADFD):
		return Super{}, os.ErrClosed
	case err != nil:
		return Super{}, err
	case n < vnetHeader:
		return Super{}, io.ErrShortBuffer
	}
	return decode(b[:vnetHeader], b[vnetHeader:n])
}

// WriteSuper relies on the header that ReadSuper left before the packet.
func (d *device) WriteSuper(slab []byte, s Super) error {
	_, err := d.file.Write(slab[Spacing-vnetHeader : Spacing+s.Size])
	return err
}

// decode reads the header. How long the packet's own headers are is looked up in the packet: the kernel's word is only a hint.
func decode(h, packet []byte) (Super, error) {
	s := Super{Size: len(packet)}
	s.NeedsCsum = h[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	s.HdrLen, s.GSOSize = binary.NativeEndian.Uint16(h[2:]), binary.NativeEndian.Uint16(h[4:])
	s.CsumStart, s.CsumOffset = binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint16(h[8:])
	switch h[1] {
	case unix.VIRTIO_NET_HDR_GSO_NONE:
		if s.HdrLen = 0; !s.NeedsCsum {
			s.CsumStart, s.CsumOffset = 0, 0
		}
		return s, nil
	case unix.VIRTIO_NET_HDR_GSO_TCPV4:
		s.GSOType = tun.GSOTCPv4
	case unix.VIRTIO_NET_HDR_GSO_TCPV6:
		s.GSOType = tun.GSOTCPv6
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		s.GSOType = tun.GSOUDPL4
	default:
		return s, ErrUnknownSuper
	}
	at := int(s.CsumStart)
	if at+20 > len(packet) && s.GSOType != tun.GSOUDPL4 || at+8 > len(packet) || s.GSOSize == 0 {
		return s, ErrUnknownSuper
	}
	if s.HdrLen = s.CsumStart + 8; s.GSOType != tun.GSOUDPL4 {
		s.HdrLen = s.CsumStart + uint16(packet[at+12]>>4)*4
	}
	return s, nil
}
