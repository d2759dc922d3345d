package tun

import (
	"errors"

	"github.com/tailscale/wireguard-go/tun"
)

// Super is a packet as the kernel hands it out: it may stand for many of one flow (GSOType), and its checksum may still be only the sum
// of the pseudo header (NeedsCsum, and always where it stands for many). Whatever is to be changed is best changed here, once.
type Super struct {
	Size int // the packet lies in its slab from Spacing on
	tun.GSOOptions
}

// Segment returns how long the longest of the packets is that it stands for.
func (s *Super) Segment() int {
	if s.GSOType == tun.GSONone {
		return s.Size
	}
	return min(int(s.HdrLen)+int(s.GSOSize), s.Size)
}

// Partial says that the checksum is only the sum of the pseudo header.
func (s *Super) Partial() bool { return s.NeedsCsum || s.GSOType != tun.GSONone }

// SuperQueue is a Queue whose packets can be read before they are split, and written back whole.
type SuperQueue interface {
	Queue
	// ReadSuper puts a packet into the slab. ErrUnknownSuper is for one that was read and cannot be understood; the next may be good.
	ReadSuper(slab []byte) (Super, error)
	// WriteSuper writes a packet back that ReadSuper put into the slab.
	WriteSuper(slab []byte, s Super) error
}

// ErrUnknownSuper says that a packet's offload is not one that was asked for.
var ErrUnknownSuper = errors.New("unknown segmentation offload")

// Split makes packets of a Super in its own slab, and completes their checksums.
func Split(slab []byte, s Super, packets []ReadPacket) (int, error) {
	n, err := tun.GSOSplit(slab[Spacing:Spacing+s.Size], s.GSOOptions, slab, packets, Spacing)
	if !s.Partial() || s.CsumOffset != 6 { // not UDP
		return n, err
	}
	for _, p := range packets[:n] { // GSOSplit leaves a zero, which says that there is no checksum
		if at := p.Offset + int(s.CsumStart+s.CsumOffset); slab[at]|slab[at+1] == 0 {
			slab[at], slab[at+1] = 0xff, 0xff
		}
	}
	return n, err
}
