package service

import "encoding/binary"

// errorOut rewrites an ICMP error that a container of this node, or the node for it, sends about a packet that came in.
func (d *Device) errorOut(p *packet, t *snapshot, now uint32, n *tally) verdict {
	if !within(t.blocks, p.src) && !within(t.guests, p.src) {
		if within(t.guests, p.dst) && within(t.ranges, p.src) {
			n[countOut]++
			return forward
		}
		n[countSpoofed]++
		return drop
	}
	var q packet
	if !q.parseQuoted(p.b[p.l4+8:], p.v6) {
		n[countMalformed]++
		return drop
	}
	base := d.flows.base(q.dst, q.dport, q.sport, q.proto)
	s := d.flows.of(base)
	s.mu.Lock()
	f := s.findInside(d.flows.full(base, q.src), q.dst, q.src, q.dport, q.sport, q.proto)
	if f == nil || p.dst != f.seen {
		s.mu.Unlock()
		if !p.dst.unicast() || within(t.ranges, p.dst) || within(t.blocks, p.dst) {
			n[countStray]++
			return drop
		}
		n[countOut]++
		return forward // about a packet of no flow of ours
	}
	c := change{f.real, f.local, f.realPort, f.outPort, f.addresses, f.numbers}
	where, from := f.where, origin{true, true, p.dst}
	s.mu.Unlock()
	p.rewriteQuoted(&q, &c)
	p.rewrite(&change{src: p.src, dst: c.src, addresses: c.addresses})
	if where == atPeer {
		n[countOut]++
		return forward
	}
	return d.home(p, t, now, n, from)
}

// errorIn rewrites an ICMP error about a packet that a container of this node sent.
func (d *Device) errorIn(p *packet, t *snapshot, _ uint32, n *tally, from origin) verdict {
	if !from.home && within(t.blocks, p.src) || within(t.ranges, p.src) {
		n[countSpoofed]++
		return drop
	}
	var q packet
	if !q.parseQuoted(p.b[p.l4+8:], p.v6) {
		n[countMalformed]++
		return drop
	}
	base := d.flows.base(q.src, q.sport, q.dport, q.proto)
	s := d.flows.of(base)
	s.mu.Lock()
	f := s.findWire(d.flows.full(base, q.dst), q.src, q.dst, q.sport, q.dport, q.proto)
	if f == nil || p.dst != f.local {
		s.mu.Unlock()
		n[countStray]++ // about no packet that was sent from here
		return drop
	}
	if mtu := p.told(); mtu != 0 && (f.told == 0 || mtu < f.told) {
		f.told, f.asked = mtu, 0
	}
	c := change{f.local, f.seen, f.lport, f.sport, negated(f.addresses), negated(f.numbers)}
	real := f.real
	s.mu.Unlock()
	p.rewriteQuoted(&q, &c)
	sender := p.src
	if sender == real {
		sender = c.dst
	} else if a, ok := t.alias(sender); ok {
		sender = a
	}
	if sender != p.src {
		p.rewrite(&change{src: sender, dst: p.dst, addresses: p.src.delta(sender)})
	}
	if !from.home {
		n[countIn]++
	}
	return forward
}

// told returns what an ICMP error of IPv6 says of the path MTU, 0 where it is about something else.
func (p *packet) told() uint16 {
	t := p.b[p.l4:]
	if !p.v6 || t[0] != 2 {
		return 0
	}
	return uint16(min(binary.BigEndian.Uint32(t[4:]), 0xffff))
}

// rewriteQuoted makes a change in the packet inside of an ICMP error, and in the error's checksum.
func (p *packet) rewriteQuoted(q *packet, c *change) {
	if c.addresses|c.numbers == 0 {
		return
	}
	headers := q.b[:min(len(q.b), q.l4+20)]
	before := wordSum(headers, true)
	q.rewrite(c)
	adjust(p.b, p.sum, fold(before+wordSum(headers, false)))
}

// wordSum adds up 16-bit words, or their complements.
func wordSum(b []byte, complement bool) uint64 {
	total, flip := uint64(0), uint16(0)
	if complement {
		flip = 0xffff
	}
	for ; len(b) > 1; b = b[2:] {
		total += uint64(binary.BigEndian.Uint16(b) ^ flip)
	}
	if len(b) == 1 {
		total += uint64(uint16(b[0])<<8 ^ flip)
	}
	return total
}

// reason is why a packet is answered by an ICMP error.
type reason uint8

const (
	unreachable reason = iota
	prohibited
	packetTooBig
)

// quotedMost is how much of a packet an error holds: with its headers no more than every host takes (RFC 1812, RFC 4443).
const (
	quotedMost4 = 576 - 28
	quotedMost6 = 1280 - 48
)

// answerable says whether an error may be sent about the packet at all.
func (p *packet) answerable() bool {
	return p.kind != kindError && p.kind != kindLater && p.src.unicast() && p.dst.unicast() && p.flags&tcpRST == 0
}

// icmpError returns an error about p, from its destination to its source.
func icmpError(p *packet, why reason, mtu int) []byte {
	if p.v6 {
		return icmpError6(p, why, mtu)
	}
	quoted := p.b[:min(len(p.b), quotedMost4)]
	b := make([]byte, 28+len(quoted))
	b[0], b[8], b[9] = 0x45, 64, protoICMP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint32(b[12:], uint32(p.dst.lo))
	binary.BigEndian.PutUint32(b[16:], uint32(p.src.lo))
	binary.BigEndian.PutUint16(b[10:], ^fold(wordSum(b[:20], false)))
	switch b[20] = 3; why {
	case unreachable:
		b[21] = 1
	case prohibited:
		b[21] = 13
	case packetTooBig:
		b[21] = 4
		binary.BigEndian.PutUint16(b[26:], uint16(mtu))
	}
	copy(b[28:], quoted)
	binary.BigEndian.PutUint16(b[22:], ^fold(wordSum(b[20:], false)))
	return b
}

func icmpError6(p *packet, why reason, mtu int) []byte {
	quoted := p.b[:min(len(p.b), quotedMost6)]
	b := make([]byte, 48+len(quoted))
	b[0], b[6], b[7] = 0x60, protoICMP6, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	put6(b[8:], p.dst)
	put6(b[24:], p.src)
	switch b[40] = 1; why {
	case unreachable:
		b[41] = 3
	case prohibited:
		b[41] = 1
	case packetTooBig:
		b[40] = 2
		binary.BigEndian.PutUint32(b[44:], uint32(mtu))
	}
	copy(b[48:], quoted)
	binary.BigEndian.PutUint16(b[42:], ^fold(wordSum(b[8:], false)+uint64(len(b)-40)+protoICMP6))
	return b
}

func put6(b []byte, a addr) {
	binary.BigEndian.PutUint64(b, a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
}

// tcpReset returns what ends the sender's side of a TCP flow; nil when it could not be believed.
func tcpReset(p *packet) []byte {
	if p.proto != protoTCP || p.flags&tcpACK == 0 || p.flags&tcpRST != 0 {
		return nil
	}
	header := 20
	if p.v6 {
		header = 40
	}
	b := make([]byte, header+20)
	pseudo := uint64(protoTCP + 20)
	if p.v6 {
		b[0], b[6], b[7] = 0x60, protoTCP, 64
		binary.BigEndian.PutUint16(b[4:], 20)
		put6(b[8:], p.dst)
		put6(b[24:], p.src)
		pseudo += wordSum(b[8:40], false)
	} else {
		b[0], b[8], b[9] = 0x45, 64, protoTCP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint32(b[12:], uint32(p.dst.lo))
		binary.BigEndian.PutUint32(b[16:], uint32(p.src.lo))
		binary.BigEndian.PutUint16(b[10:], ^fold(wordSum(b[:20], false)))
		pseudo += wordSum(b[12:20], false)
	}
	t := b[header:]
	binary.BigEndian.PutUint16(t, p.dport)
	binary.BigEndian.PutUint16(t[2:], p.sport)
	copy(t[4:8], p.b[p.l4+8:p.l4+12]) // what the sender acknowledged is what it expects next
	t[12], t[13] = 5<<4, tcpRST
	binary.BigEndian.PutUint16(t[16:], ^fold(pseudo+wordSum(t, false)))
	return b
}
