package service

import "sync/atomic"

// How many answers of its own a Device gives in a second, altogether and to one sender: a flood of bad packets must not become one of good ones,
// and one sender must not keep the others from theirs.
const (
	answersMost = 500
	answersEach = 100
)

// answers bounds them. Senders share a bucket where chance has it so.
type answers struct {
	all  limit
	each [64]limit
}

func (a *answers) take(to addr, now uint32) bool {
	return a.each[mix(to.lo, to.hi|1)%uint64(len(a.each))].take(now, answersEach) && a.all.take(now, answersMost)
}

// limit counts what happened in the current second.
type limit struct{ state atomic.Uint64 }

// take says whether one more is allowed in the second now.
func (l *limit) take(now, most uint32) bool {
	for {
		old := l.state.Load()
		fresh := uint64(now)<<32 | 1
		if uint32(old>>32) == now {
			if uint32(old) >= most {
				return false
			}
			fresh = old + 1
		}
		if l.state.CompareAndSwap(old, fresh) {
			return true
		}
	}
}

// cannot does what a verdict of out asks for beyond dropping the packet.
func (d *Device) cannot(p *packet, v verdict, n *tally) {
	switch v {
	case unknown:
		d.hold(p, false, n)
	case nobody:
		n[countUnavailable]++
		d.hold(p, true, n)
	case tooBig:
		d.answer(p, packetTooBig)
	case refuse:
		if b := tcpReset(p); b != nil && d.answers.take(p.src, d.now()) {
			d.toTUN(b)
		}
	case denied:
		d.deny(p)
	}
}

// answer sends an ICMP error about a packet as its sender at this node knows it.
func (d *Device) answer(p *packet, why reason) {
	if p.answerable() && d.answers.take(p.src, d.now()) {
		d.toTUN(icmpError(p, why, p.limit))
	}
}

// deny tells the sender of a packet that came in, or that came home, that it may not.
func (d *Device) deny(p *packet) {
	if !p.answerable() || !d.answers.take(p.src, d.now()) {
		return
	}
	b := icmpError(p, prohibited, 0)
	t, now := d.table.Load(), d.now()
	where := t.where(p.src)
	if where != atPeer { // it is for this node, or for a guest that dialled another address
		var n tally
		var reply packet
		good := reply.parse(b) && d.in(&reply, t, now, &n, origin{home: true, answer: true}) == forward
		d.counters.add(&n)
		if !good {
			return
		}
	}
	if where == atHome {
		d.toTUN(b)
	} else {
		d.inject(b)
	}
}
