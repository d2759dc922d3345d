package service

import (
	"encoding/binary"
	"math/rand/v2"

	"skerry.internal/netmanager/tun"
)

const (
	leastMTU6   = 1280 // every link that carries IPv6 takes as much
	fragHeader6 = 8
)

// mayCut says whether a packet that is too long for its path goes on in pieces. In IPv6 that is its sender's to do, and it hears so. But where
// br_netfilter is at work, this node's bridge puts a container's fragments together, and they come as one packet or cut anew, whatever their sender
// does. Such a packet has a whole checksum, while a container's kernel leaves that of a datagram in one piece to the device. TCP sends no fragments, and
// IPv4's routers cut.
func (p *packet) mayCut() bool {
	return p.v6 && !p.partial && p.proto != protoTCP
}

// divide cuts an IPv6 packet that was parsed, the first of packets, into fragments in its slab, from where it lies on. They are as long as any link
// takes: those beyond the tunnel may take less than the path. It returns how many there are; 0 where it cannot be. A fragment becomes fragments of the
// same datagram: who puts it together does not see that.
func divide(slab []byte, packets []tun.ReadPacket) int {
	at := packets[0].Offset
	b := slab[at : at+packets[0].Size]
	head, named, whole := unfragmentable(b)
	payload, header := head, [fragHeader6]byte{b[named]}
	if whole {
		binary.BigEndian.PutUint32(header[4:], rand.Uint32())
	} else {
		payload += copy(header[:], b[head:])
	}
	where := binary.BigEndian.Uint16(header[2:])
	headers, length := head+fragHeader6, len(b)-payload
	each := leastMTU6 - headers                     // in eights, as all headers are
	if each <= 0 || int(where&^7)+length > 0xffff { // a datagram that could not be put together
		return 0
	}
	count, step := (length+each-1)/each, headers+each+tun.Spacing
	if count > len(packets) || at+count*(headers+tun.Spacing)+length > len(slab) {
		return 0
	}
	for i := count - 1; i >= 0; i-- { // from the last on, since each one moves up
		n := min(each, length-i*each)
		piece := slab[at+i*step:][:headers+n]
		copy(piece[headers:], slab[at+payload+i*each:][:n])
		copy(piece, slab[at:at+head])
		binary.BigEndian.PutUint16(piece[4:], uint16(len(piece)-40))
		piece[named] = protoFrag6
		h := piece[head:]
		copy(h, header[:])
		binary.BigEndian.PutUint16(h[2:], where+uint16(i*each))
		if i < count-1 {
			h[3] |= 1 // more follow
		}
		packets[i] = tun.ReadPacket{Offset: at + i*step, Size: len(piece)}
	}
	return count
}

// unfragmentable returns how much of a packet stands before the fragment header, where in that the next header is named, and whether there is no
// fragment header yet.
func unfragmentable(b []byte) (head, named int, whole bool) {
	head, named = 40, 6
	for at, by := 40, 6; ; {
		switch b[by] {
		case protoFrag6:
			return at, by, false
		case 0: // hop by hop
			head, named = at+int(b[at+1])*8+8, at
		case 43, 60: // of no use on the way: parse lets only routes pass that are at their end
		default:
			return head, named, true
		}
		by, at = at, at+int(b[at+1])*8+8
	}
}
