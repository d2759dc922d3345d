package service

import "encoding/binary"

// Checksums are changed by what changed (RFC 1624): a delta is the sum of ^old+new over 16-bit words, folded; the delta of the way back is its
// complement.

func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum&0xffff)
}

func words(v uint64) uint64 { return v>>48 + v>>32&0xffff + v>>16&0xffff + v&0xffff }

// delta of one address put in the place of another; 0 only when they are the same (0xffff is nothing to a checksum as well).
func (a addr) delta(b addr) uint16 {
	if a == b {
		return 0
	}
	return fold(words(^a.hi) + words(^a.lo) + words(b.hi) + words(b.lo))
}

func deltaPort(a, b uint16) uint16 {
	if a == b {
		return 0
	}
	if d := fold(uint64(^a) + uint64(b)); d != 0 {
		return d
	}
	return 0xffff // from 65535 to 0: nothing to a checksum, yet a change
}

func sum(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s>>16 + s)
}

// negated returns the delta of the way back.
func negated(d uint16) uint16 {
	if d == 0 || d == 0xffff {
		return d
	}
	return ^d
}

// adjust applies a delta to the checksum at at.
func adjust(b []byte, at int, delta uint16) {
	old := binary.BigEndian.Uint16(b[at:])
	binary.BigEndian.PutUint16(b[at:], ^sum(^old, delta))
}

// change is a rewriting: what becomes of the ends of a packet, and the deltas of their checksums.
type change struct {
	src, dst           addr
	sport, dport       uint16
	addresses, numbers uint16 // deltas
}

// rewrite makes the change in place.
func (p *packet) rewrite(c *change) {
	if c.addresses != 0 {
		p.setSource(c.src)
		p.setDestination(c.dst)
	}
	p.renew(c.addresses, c.numbers, c.sport, c.dport)
}

func (p *packet) setSource(a addr) {
	p.src = a
	if !p.v6 {
		binary.BigEndian.PutUint32(p.b[12:], uint32(a.lo))
		return
	}
	binary.BigEndian.PutUint64(p.b[8:], a.hi)
	binary.BigEndian.PutUint64(p.b[16:], a.lo)
}

func (p *packet) setDestination(a addr) {
	p.dst = a
	if !p.v6 {
		binary.BigEndian.PutUint32(p.b[16:], uint32(a.lo))
		return
	}
	binary.BigEndian.PutUint64(p.b[24:], a.hi)
	binary.BigEndian.PutUint64(p.b[32:], a.lo)
}

// renew puts in the ports and brings the checksums up to date, after the addresses were set: the deltas say what changed.
func (p *packet) renew(addresses, numbers, sport, dport uint16) {
	if addresses != 0 && !p.v6 {
		adjust(p.b, 10, addresses)
	}
	if p.kind == kindLater {
		return
	}
	if numbers != 0 {
		p.renumber(sport, dport)
	}
	if p.sum == 0 {
		return
	}
	d := uint16(0)
	if p.pseudo {
		d = addresses
	}
	if p.partial {
		binary.BigEndian.PutUint16(p.b[p.sum:], sum(binary.BigEndian.Uint16(p.b[p.sum:]), d))
		return
	}
	if d = sum(d, numbers); d == 0 {
		return
	}
	if adjust(p.b, p.sum, d); p.proto == protoUDP && p.b[p.sum]|p.b[p.sum+1] == 0 {
		p.b[p.sum], p.b[p.sum+1] = 0xff, 0xff // zero would say that there is none
	}
}

// renumber puts in the ports, or the id of an echo.
func (p *packet) renumber(sport, dport uint16) {
	switch p.kind {
	case kindPorts:
		binary.BigEndian.PutUint16(p.b[p.l4:], sport)
		binary.BigEndian.PutUint16(p.b[p.l4+2:], dport)
	case kindRequest:
		binary.BigEndian.PutUint16(p.b[p.l4+4:], sport)
	case kindReply:
		binary.BigEndian.PutUint16(p.b[p.l4+4:], dport)
	}
	p.sport, p.dport = sport, dport
}

// clampMSS lowers the MSS of a SYN to what fits into packets of mtu bytes.
func (p *packet) clampMSS(mtu int) {
	limit := mtu - 40
	if p.v6 {
		limit -= 20
	}
	if limit < 500 || limit > 0xffff { // less would be no path that we know of
		return
	}
	t := p.b[p.l4:]
	end := min(int(t[12]>>4)*4, len(t))
	for at := 20; at+1 < end; {
		switch t[at] {
		case 0:
			return
		case 1:
			at++
			continue
		case 2:
			if t[at+1] != 4 || at+4 > end {
				return
			}
			p.lowerMSS(t, at, uint16(limit))
			return
		}
		if t[at+1] < 2 {
			return
		}
		at += int(t[at+1])
	}
}

func (p *packet) lowerMSS(t []byte, at int, limit uint16) {
	old := binary.BigEndian.Uint16(t[at+2:])
	if old <= limit {
		return
	}
	binary.BigEndian.PutUint16(t[at+2:], limit)
	if p.partial {
		return
	}
	delta := deltaPort(old, limit)
	if at%2 != 0 { // the two bytes stand in two words
		delta = delta<<8 | delta>>8
	}
	adjust(p.b, p.sum, delta)
}
