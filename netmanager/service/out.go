package service

// verdict is what becomes of a packet.
type verdict uint8

const (
	forward verdict = iota // it goes on the way it came
	pieces                 // the same, in fragments
	back                   // from out: it is for this node, into the TUN
	drop                   // it is counted already
	unknown                // its service address is in no table
	nobody                 // no instance of its service can serve it now
	tooBig                 // for the path
	refuse                 // its instance is gone: tell the sender
	denied                 // allow does not name its sender
)

// patience is how many seconds an instance that is gone from the table may leave a TCP flow without an answer before the client is told.
const patience = 10

// out decides about a packet from the TUN, and rewrites it.
func (d *Device) out(p *packet, t *snapshot, now uint32, n *tally) verdict {
	switch p.kind {
	case kindLater:
		return d.laterOut(p, t, now, n)
	case kindError:
		return d.errorOut(p, t, now, n)
	}
	from := origin{home: true, dialled: p.dst}
	base := d.flows.base(p.src, p.sport, p.dport, p.proto)
	s := d.flows.of(base)
	s.mu.Lock()
	f := s.findInside(d.flows.full(base, p.dst), p.src, p.dst, p.sport, p.dport, p.proto)
	if f != nil && (f.rev != t.rev || p.flags&(tcpSYN|tcpACK) == tcpSYN || now-f.lastOut > idleLeast) {
		f = d.recheck(s, f, p, t, now)
	}
	v := forward
	if f == nil {
		f, v = d.openOut(s, p, t, now, n)
	}
	if f != nil {
		from.answer = f.state&served != 0
		v = d.sendOut(f, p, now, n)
	}
	s.mu.Unlock()
	if v != back {
		return v
	}
	return d.home(p, t, now, n, from)
}

// home takes a packet whose destination became a container or a guest of this node through the other way as well.
func (d *Device) home(p *packet, t *snapshot, now uint32, n *tally, from origin) verdict {
	guest := within(t.guests, p.dst)
	v := d.in(p, t, now, n, from)
	if v == forward && !guest {
		n[countLocal]++
		return back
	}
	return v
}

// recheck looks whether a flow of before may go on: after a new table, after silence, and when the client begins anew. It returns nil when the choice
// is to be made again.
func (d *Device) recheck(s *shard, f *flow, p *packet, t *snapshot, now uint32) *flow {
	f.rev, f.where = t.rev, t.where(f.real) // a guest's gateway may be another node now
	begins := p.flags&(tcpSYN|tcpACK) == tcpSYN
	if begins && f.closed(now) || f.expired(now) {
		d.flows.remove(s, f)
		return nil
	}
	if f.state&served != 0 {
		return f
	}
	standing := t.check(f.seen, f.real)
	switch {
	case begins && (standing != stands || f.deaf(t)), p.proto != protoTCP && standing == gone:
		d.flows.remove(s, f)
		return nil
	case standing == gone && f.state&absent == 0:
		f.state |= absent
		f.waiting = 0
	case standing != gone:
		f.state &^= absent
	}
	return f
}

// deaf says that an instance has not answered a second SYN, and that there are others: the node may be dead and the table not know yet.
func (f *flow) deaf(t *snapshot) bool { return f.in == 0 && f.out >= 2 && t.several(f.seen) }

// openOut makes the flow of a packet that a container of this node, or a guest, begins; or says why not.
func (d *Device) openOut(s *shard, p *packet, t *snapshot, now uint32, n *tally) (*flow, verdict) {
	if !within(t.blocks, p.src) && !within(t.guests, p.src) {
		// On the way to a guest a packet comes from the TUN again, after it was rewritten.
		if within(t.guests, p.dst) && within(t.ranges, p.src) {
			n[countOut]++
			return nil, forward
		}
		if p.dst.linkScope() {
			return nil, drop // the kernel itself looks for routers and reports its groups on any interface: nobody's loss, so not counted
		}
		n[countSpoofed]++
		return nil, drop
	}
	if !p.dst.unicast() {
		n[countStray]++
		return nil, drop
	}
	real, known := t.choose(p.dst)
	switch {
	case known && real == addr{}:
		return nil, nobody
	case !known && within(t.ranges, p.dst):
		return nil, unknown
	case !known:
		real = p.dst
	}
	like := flow{local: p.src, seen: p.dst, real: real, lport: p.sport, sport: p.dport, outPort: p.sport, realPort: p.dport,
		rev: t.rev, proto: p.proto, where: t.where(real), lastOut: now}
	f := d.flows.insert(s, &like, out, now)
	if f == nil {
		n[countUnavailable]++
		return nil, drop
	}
	return f, forward
}

// where says where a container address is.
func (t *Table) where(real addr) uint8 {
	switch {
	case within(t.blocks, real):
		return atHome
	case within(t.guests, real):
		return atGuest
	}
	return atPeer
}

// sendOut accounts for a packet of a flow on the way out, and rewrites it. The caller holds the shard's lock.
func (d *Device) sendOut(f *flow, p *packet, now uint32, n *tally) verdict {
	f.out++
	f.sent += uint64(len(p.b))
	f.lastOut = now
	if p.proto == protoTCP {
		if p.flags&(tcpFIN|tcpRST) != 0 {
			f.state |= closing(p.flags, finOut)
		}
		if f.state&absent != 0 && f.unanswered(p, now) {
			return refuse
		}
	}
	v, mtu := forward, 0
	if d.options.MTU != nil && f.where == atPeer {
		if mtu = d.pathMTU(f, now); mtu != 0 {
			if p.segment > mtu && p.df {
				if v = pieces; !p.mayCut() {
					p.limit = mtu
					n[countTooBig]++
					return tooBig
				}
			}
			if p.flags&tcpSYN != 0 {
				p.clampMSS(mtu)
			}
		}
	}
	if p.first {
		d.fragments.remember(out, p, fragmentFate{change: f.changeOut(), mtu: uint16(mtu), where: f.where}, now)
	}
	if f.addresses|f.numbers != 0 {
		p.setDestination(f.real)
		p.renew(f.addresses, f.numbers, f.outPort, f.realPort)
	}
	if f.where != atPeer {
		return back
	}
	n[countOut]++
	return v
}

// closing returns the bits of state that a FIN or RST sets.
func closing(flags uint8, fin uint8) uint8 {
	if flags&tcpRST != 0 {
		return reset
	}
	return fin
}

// unanswered says that the instance, gone from the table, is silent for too long; the flow is closed then.
func (f *flow) unanswered(p *packet, now uint32) bool {
	if f.waiting == 0 {
		f.waiting = now
	}
	if now-f.waiting < patience || p.flags&tcpRST != 0 {
		return false
	}
	f.state |= reset
	return true
}

// pathMTU returns the longest packet that the path of a flow carries, 0 when that is not known; asked for once in a second.
func (d *Device) pathMTU(f *flow, now uint32) int {
	if f.asked != now {
		f.asked = now
		mtu := d.options.MTU(f.real.netip())
		if told := int(f.told); told != 0 && (mtu <= 0 || told < mtu) {
			mtu = told
		}
		switch least := 576; {
		case mtu <= 0:
			mtu = 0
		case !f.real.is4():
			mtu = max(mtu, leastMTU6)
		default:
			mtu = max(mtu, least)
		}
		f.mtu = uint16(min(mtu, 0xffff))
	}
	return int(f.mtu)
}

// laterOut rewrites a fragment as the first of its packet was.
func (d *Device) laterOut(p *packet, t *snapshot, now uint32, n *tally) verdict {
	if within(t.guests, p.dst) && within(t.ranges, p.src) {
		n[countOut]++
		return forward
	}
	fate, ok := d.fragments.recall(out, p, now)
	if !ok {
		n[countFragments]++
		return drop
	}
	from := origin{home: true, dialled: p.dst}
	p.rewrite(&fate.change)
	if fate.where == atPeer {
		n[countOut]++
		if fate.mtu != 0 && len(p.b) > int(fate.mtu) && p.mayCut() {
			return pieces
		}
		return forward
	}
	return d.home(p, t, now, n, from)
}
