package service

// origin says where a packet on the way in comes from; the zero one is the tunnel.
type origin struct {
	home    bool // from this node or one of its guests, by the way out
	answer  bool // of a flow that was made on the way in
	dialled addr // what it was sent to
}

// in decides about a packet on the way in and rewrites it.
func (d *Device) in(p *packet, t *snapshot, now uint32, n *tally, from origin) verdict {
	switch p.kind {
	case kindLater:
		return d.laterIn(p, now, n, from)
	case kindError:
		return d.errorIn(p, t, now, n, from)
	}
	base := d.flows.base(p.dst, p.dport, p.sport, p.proto)
	s := d.flows.of(base)
	s.mu.Lock()
	f := s.findWire(d.flows.full(base, p.src), p.dst, p.src, p.dport, p.sport, p.proto)
	v := forward
	switch {
	case f == nil:
		f, v = d.openIn(s, p, t, now, n, from)
	case !from.home && f.where == atHome:
		n[countSpoofed]++
		f, v = nil, drop
	case p.flags&(tcpSYN|tcpACK) == tcpSYN && f.state&served != 0 && f.closed(now):
		d.flows.remove(s, f)
		f, v = d.openIn(s, p, t, now, n, from)
	}
	if f != nil {
		d.takeIn(f, p, now)
		if !from.home {
			n[countIn]++
		}
	}
	s.mu.Unlock()
	return v
}

// takeIn accounts for a packet of a flow on the way in, and rewrites it. The caller holds the shard's lock.
func (d *Device) takeIn(f *flow, p *packet, now uint32) {
	f.in++
	f.received += uint64(len(p.b))
	f.lastIn = now
	f.waiting = 0
	if p.proto == protoTCP {
		if p.flags&(tcpFIN|tcpRST) != 0 {
			f.state |= closing(p.flags, finIn)
		}
		if p.flags&tcpSYN != 0 && d.options.MTU != nil && f.where == atPeer {
			if mtu := d.pathMTU(f, now); mtu != 0 {
				p.clampMSS(mtu)
			}
		}
	}
	if p.first {
		d.fragments.remember(in, p, fragmentFate{change: f.changeIn(), where: f.where}, now)
	}
	if f.addresses|f.numbers != 0 {
		p.setSource(f.seen)
		p.renew(negated(f.addresses), negated(f.numbers), f.sport, f.lport)
	}
}

// openIn makes the flow of a packet that somebody else begins to a container of this node; or says why not.
func (d *Device) openIn(s *shard, p *packet, t *snapshot, now uint32, n *tally, from origin) (*flow, verdict) {
	fromGuest := within(t.guests, p.src)
	switch {
	case !from.home && within(t.blocks, p.src), within(t.ranges, p.src), !p.src.unicast():
		n[countSpoofed]++
		return nil, drop
	case within(t.blocks, p.dst), within(t.guests, p.dst):
	case fromGuest && !from.home && within(t.ranges, p.dst):
		n[countIn]++ // the kernel routes it back to the TUN, and out finds an instance for it
		return nil, forward
	default:
		n[countStray]++
		return nil, drop
	}
	if !from.answer && !t.allowed(p.src, p.dst) {
		n[countDenied]++
		return nil, denied
	}
	seen, ok := t.alias(p.src)
	switch {
	case from.answer: // to a guest that asked for this very address
		seen = p.src
	case !ok && from.home && !fromGuest && within(t.ranges, from.dialled):
		seen = from.dialled // this node itself: without a service address the answer would not come this way
	case !ok:
		seen = p.src
	}
	like := flow{local: p.dst, seen: seen, real: p.src, lport: p.dport, sport: p.sport, outPort: p.dport, realPort: p.sport,
		rev: t.rev, proto: p.proto, where: t.where(p.src), state: served, lastIn: now}
	f := d.flows.insert(s, &like, in, now)
	if f == nil {
		n[countUnavailable]++
		return nil, drop
	}
	return f, forward
}

// laterIn rewrites a fragment as the first of its packet was.
func (d *Device) laterIn(p *packet, now uint32, n *tally, from origin) verdict {
	fate, ok := d.fragments.recall(in, p, now)
	switch {
	case !ok:
		n[countFragments]++
		return drop
	case !from.home && fate.where == atHome:
		n[countSpoofed]++
		return drop
	}
	p.rewrite(&fate.change)
	if !from.home {
		n[countIn]++
	}
	return forward
}
