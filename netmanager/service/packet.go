package service

import (
	"encoding/binary"
	"net/netip"
)

// addr is an address of either family: IPv4 as ::ffff:a.b.c.d. Packets of IPv6 with such an address are refused, so the two never meet.
type addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addrOf(a netip.Addr) addr {
	b := a.As16()
	return addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a addr) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

func (a addr) is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

// unicast says whether one host may have the address: it is not unspecified, multicast, broadcast, loopback or link-local.
func (a addr) unicast() bool {
	if a.is4() {
		ip := uint32(a.lo)
		return ip>>24 != 0 && ip>>28 < 14 && ip>>24 != 127 && ip>>16 != 0xa9fe
	}
	return (a.hi != 0 || a.lo > 1) && a.hi>>56 != 0xff && a.hi>>54 != 0xfe80>>6
}

// linkScope says whether the address is that of a multicast group which never leaves a link.
func (a addr) linkScope() bool {
	if a.is4() {
		return uint32(a.lo)>>8 == 0xe00000
	}
	return a.hi>>48 == 0xff02
}

// The protocols that have something to rewrite beyond addresses.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoFrag6  = 44
	protoICMP6  = 58
	protoDCCP   = 33
	protoSCTP   = 132
	protoUDPLit = 136
)

// What a packet is, as far as flows go.
type kind uint8

const (
	kindPlain   kind = iota // addresses only
	kindPorts               // sport and dport stand at l4
	kindRequest             // ICMP echo; the id is the sender's port
	kindReply               // ICMP echo reply; the id is the receiver's port
	kindError               // an ICMP error with a packet in it
	kindLater               // a fragment without a transport header
)

const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

// packet is what parse found. It lives on the stack.
type packet struct {
	b            []byte // exactly the packet
	src, dst     addr
	sport, dport uint16
	l4           int    // where the transport header begins
	sum          int    // where its checksum stands; 0: there is none
	fragment     uint32 // its identification, for a fragment
	limit        int    // the path MTU that it is too big for
	segment      int    // how long the longest packet becomes that this one is split into
	proto        uint8
	flags        uint8 // TCP's
	kind         kind
	v6           bool
	first        bool // the first fragment of several
	df           bool // may not be fragmented on the way
	pseudo       bool // the checksum covers the addresses
	partial      bool // the checksum is only the sum of the pseudo header: the rest is added when the packet is split
}

// parse says what a packet is; false when it is not one that a good host sends.
func (p *packet) parse(b []byte) bool {
	if len(b) < 20 {
		return false
	}
	p.b, p.segment = b, len(b)
	switch b[0] >> 4 {
	case 4:
		return p.parse4(b)
	case 6:
		return p.parse6(b)
	}
	return false
}

func (p *packet) parse4(b []byte) bool {
	header := int(b[0]&15) * 4
	if header < 20 || header > len(b) || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return false
	}
	p.src = addr{0, mapped | uint64(binary.BigEndian.Uint32(b[12:]))}
	p.dst = addr{0, mapped | uint64(binary.BigEndian.Uint32(b[16:]))}
	p.proto, p.l4 = b[9], header
	where := binary.BigEndian.Uint16(b[6:])
	p.df = where&0x4000 != 0
	if where&0x3fff != 0 {
		p.fragment = uint32(binary.BigEndian.Uint16(b[4:]))
		if where&0x1fff != 0 {
			p.kind = kindLater
			return where&0x1fff != 1 // one at offset 8 could overwrite a TCP header's flags (RFC 1858)
		}
		p.first = true
	}
	return p.transport(p.proto, b[header:])
}

func (p *packet) parse6(b []byte) bool {
	if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
		return false
	}
	p.v6, p.df = true, true
	p.src = addr{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
	p.dst = addr{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}
	if p.src.is4() || p.dst.is4() {
		return false
	}
	return p.extensions(b)
}

// maxExtensions bounds how many extension headers of IPv6 are walked through; real packets have one or two.
const maxExtensions = 8

func (p *packet) extensions(b []byte) bool {
	next, at := b[6], 40
	for range maxExtensions {
		length := 0
		switch next {
		case 0, 43, 60: // hop by hop, routing, destination
			if at+8 > len(b) || next == 0 && at != 40 || next == 43 && b[at+3] != 0 { // a route still to go would make dst another one
				return false
			}
			length = int(b[at+1])*8 + 8
		case 51: // authentication covers the addresses: nothing here that may change
			return false
		case protoFrag6:
			if at+8 > len(b) {
				return false
			}
			if where := binary.BigEndian.Uint16(b[at+2:]); where&0xfff9 != 0 {
				p.fragment = binary.BigEndian.Uint32(b[at+4:])
				if where&0xfff8 != 0 {
					p.proto, p.kind, p.l4 = b[at], kindLater, at+8
					return true
				}
				p.first = true
			}
			length = 8
		default:
			p.proto, p.l4 = next, at
			return p.transport(next, b[at:])
		}
		if next, at = b[at], at+length; at > len(b) {
			return false
		}
	}
	return false
}

// transport looks at what stands behind the addresses; t is the rest of the packet.
func (p *packet) transport(proto uint8, t []byte) bool {
	switch proto {
	case protoTCP:
		if len(t) < 20 || t[12]>>4 < 5 || !p.first && int(t[12]>>4)*4 > len(t) {
			return false
		}
		p.flags, p.sum, p.pseudo = t[13], p.l4+16, true
	case protoUDP, protoUDPLit:
		if len(t) < 8 {
			return false
		}
		if n := int(binary.BigEndian.Uint16(t[4:])); proto == protoUDP && (n < 8 || !p.first && n > len(t)) {
			return false
		}
		if p.pseudo = true; t[6]|t[7] != 0 {
			p.sum = p.l4 + 6
		}
	case protoDCCP, protoSCTP:
		if len(t) < 12 {
			return false
		}
		if proto == protoDCCP {
			p.sum, p.pseudo = p.l4+6, true
		}
	case protoICMP, protoICMP6:
		return p.v6 == (proto == protoICMP6) && p.icmp(t)
	default:
		p.kind = kindPlain
		return true
	}
	p.kind = kindPorts
	p.sport, p.dport = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	return true
}

func (p *packet) icmp(t []byte) bool {
	if len(t) < 8 {
		return false
	}
	p.sum, p.pseudo = p.l4+2, p.v6
	id := binary.BigEndian.Uint16(t[4:])
	if !p.v6 {
		switch t[0] {
		case 8:
			p.kind, p.sport = kindRequest, id
		case 0:
			p.kind, p.dport = kindReply, id
		case 3, 4, 11, 12:
			p.kind = kindError
		case 5: // nobody redirects in the overlay
			return false
		}
		return true
	}
	switch {
	case t[0] == 128:
		p.kind, p.sport = kindRequest, id
	case t[0] == 129:
		p.kind, p.dport = kindReply, id
	case t[0] < 128:
		p.kind = kindError
	case t[0] >= 130 && t[0] <= 137: // neighbours and routers have no business beyond a link
		return false
	}
	return true
}

// parseQuoted reads the packet inside of an ICMP error, of which at least eight bytes of transport header are there.
func (p *packet) parseQuoted(b []byte, v6 bool) bool {
	if v6 {
		if len(b) < 48 || b[0]>>4 != 6 {
			return false
		}
		p.v6, p.proto, p.l4 = true, b[6], 40
		p.src = addr{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
		p.dst = addr{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}
	} else {
		if len(b) < 28 || b[0]>>4 != 4 {
			return false
		}
		p.proto, p.l4 = b[9], int(b[0]&15)*4
		if p.l4 < 20 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return false
		}
		p.src = addr{0, mapped | uint64(binary.BigEndian.Uint32(b[12:]))}
		p.dst = addr{0, mapped | uint64(binary.BigEndian.Uint32(b[16:]))}
	}
	p.b = b
	if len(b) < p.l4+8 {
		return false
	}
	t := b[p.l4:]
	switch p.proto {
	case protoTCP, protoUDP, protoUDPLit, protoDCCP, protoSCTP:
		p.kind, p.pseudo = kindPorts, p.proto != protoSCTP
		p.sport, p.dport = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
		if p.sum = 6; p.proto == protoTCP {
			p.sum = 16
		}
	case protoICMP, protoICMP6:
		p.sum, p.pseudo = 2, v6
		switch {
		case t[0] == 8 && !v6, t[0] == 128 && v6:
			p.kind, p.sport = kindRequest, binary.BigEndian.Uint16(t[4:])
		case t[0] == 0 && !v6, t[0] == 129 && v6:
			p.kind, p.dport = kindReply, binary.BigEndian.Uint16(t[4:])
		}
	}
	if p.sum != 0 {
		if p.sum += p.l4; p.sum+2 > len(b) || p.proto == protoSCTP || binary.BigEndian.Uint16(b[p.sum:]) == 0 && p.proto == protoUDP {
			p.sum = 0
		}
	}
	return true
}
