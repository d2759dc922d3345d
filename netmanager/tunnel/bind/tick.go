package bind

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/netmanager/relay"
)

const (
	tickEvery  = 100 * time.Millisecond
	guestAgain = 30 * time.Second
	// guestPatience is how many searches a node would have answered.
	guestPatience = 3
)

// tick does what time asks for: heartbeats, searches, doubts.
func (b *Bind) tick(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for tx, s := range b.probes {
		if now.Sub(s.at) > probeLife {
			delete(b.probes, tx)
		}
	}
	b.askReflectors(now)
	reconnected := b.relayBack()
	for _, p := range b.table.Load().byKey {
		if reconnected {
			p.relayPing, p.relayPong, p.relayTries = time.Time{}, time.Time{}, 0
			p.nextPunch, p.punches = now, 0
			if p.route.Load() == nil {
				b.cfg.Reached(p.key)
			}
		}
		b.tickPeer(p, now)
	}
}

// relayBack says whether the relay's stream is new.
func (b *Bind) relayBack() bool {
	is := b.cfg.Relay != nil && b.cfg.Relay.Connected()
	was := b.around.relayed
	b.around.relayed = is
	return is && !was
}

func (b *Bind) tickPeer(p *Peer, now time.Time) {
	used := max(p.lastSent.Load(), p.lastData.Load())
	active := now.UnixNano()-used < int64(activeFor)
	for a, c := range p.candidates {
		if !c.told && now.Sub(c.seen) > learnedLife {
			delete(p.candidates, a)
		}
	}
	r := p.route.Load()
	if r != nil && p.speaks.Load() {
		b.tickRoute(p, r, active, now)
	} else if r != nil {
		b.tickGuest(p, r, active, now)
	}
	if p.route.Load() == nil {
		b.tickRelayed(p, active, now)
	}
}

func (b *Bind) tickRoute(p *Peer, r *route, active bool, now time.Time) {
	c := p.candidates[r.to.addr]
	if c == nil { // its place went to another
		c = &candidate{to: r.to, seen: now}
		p.candidates[r.to.addr] = c
	}
	if !p.unanswered.IsZero() && now.Sub(p.unanswered) > trust {
		p.route.Store(nil)
		p.unanswered, p.lost = time.Time{}, 0
		p.nextPunch, p.punches = now, 0
		b.log.Debug("peer is no longer direct", "peer", p.key.String(), "addr", r.to.addr.String())
		return
	}
	every := idleHeartbeat
	if active {
		every = heartbeat
	}
	heard := time.Unix(0, r.heard.Load())
	if now.UnixNano()-p.lastSent.Load() < int64(silence) && now.Sub(heard) > silence {
		every = silence
	}
	repeat := max(repeatPing, 2*c.rtt)
	if p.lost < maxLost {
		repeat = max(doubtPing, 2*c.rtt)
	}
	if now.UnixNano() >= r.trusted.Load() {
		every = repeat
	}
	if since := now.Sub(c.ping); since >= every || (c.ping.After(c.pong) && since >= repeat-tickEvery/2) { // ticks are not as even as they are meant to be
		if c.ping.After(c.pong) {
			p.lost++
			if b.around.relayed {
				b.pingRelay(p, now) // it may be needed in a moment, and be broken as well
			}
		}
		if p.unanswered.IsZero() {
			p.unanswered = now
		}
		b.ping(p, c, now)
	}
	if p.lost >= maxLost && heard.Before(p.unanswered) {
		r.trusted.Store(0)
	}
	b.tickMTU(p, r, active, now)
	if active && now.After(p.nextSearch) {
		p.nextSearch = now.Add(searchAgain)
		b.pingAll(p, now)
	}
}

// tickGuest asks a peer that has never sent a probe whether it does: it may be a node that was not told of us yet.
func (b *Bind) tickGuest(p *Peer, r *route, active bool, now time.Time) {
	if !active || now.Before(p.nextPunch) {
		return
	}
	wait := guestAgain
	if p.punches++; p.punches <= 3 {
		wait = time.Duration(p.punches) * repeatPing
	}
	p.nextPunch = now.Add(wait)
	if c := b.candidate(p, r.to.addr, now); c != nil {
		c.to = r.to
	}
	b.search(p, now)
}

func (b *Bind) tickRelayed(p *Peer, active bool, now time.Time) {
	if !active {
		return
	}
	every := heartbeat
	if p.relayTries < relayTries {
		every = repeatPing
	}
	if b.around.relayed && now.Sub(p.relayPing) >= every && (now.Sub(p.relayPong) >= heartbeat) {
		b.pingRelay(p, now)
	}
	if now.Before(p.nextPunch) {
		return
	}
	p.punches++
	wait := punchAgain
	if p.punches <= 3 {
		wait = time.Duration(p.punches) * repeatPing
	}
	p.nextPunch = now.Add(wait)
	b.search(p, now)
	if p.punches == guestPatience && len(p.told) > 0 && !p.speaks.Load() {
		b.cfg.Stale(p.key) // it may be a guest, which holds a session from before our restart and does not answer probes
	}
}

// pingRelay asks whether the peer is on the relay.
func (b *Bind) pingRelay(p *Peer, now time.Time) {
	if tx, ok := b.track(sent{peer: p, at: now}); ok {
		p.relayPing = now
		p.relayTries++
		b.cfg.Relay.Send(p.key, p.box.seal(b.message(ping, p, tx)))
	}
}

// Path is what is known of the way to a peer.
type Path struct {
	Direct  bool
	Relayed bool // the last questions through the relay were answered
	Addr    netip.AddrPort
	RTT     time.Duration
	MTU     int // of the underlay's path; 0: not known
	Limit   int // the largest sealed packet that goes whole; 0: no limit
}

// Path returns what is known of the way to a peer.
func (b *Bind) Path(key relay.Key) Path {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.table.Load().byKey[key]
	if p == nil {
		return Path{}
	}
	r := p.route.Load()
	if r == nil {
		return Path{RTT: p.relayRTT, Relayed: b.around.relayed && !p.relayPong.IsZero() && p.relayTries <= relayTries}
	}
	path := Path{Direct: true, Addr: r.to.addr, MTU: r.mtu, Limit: b.limit(r)}
	if c := p.candidates[r.to.addr]; c != nil {
		path.RTT = c.rtt
	}
	return path
}

// Limit returns the largest sealed packet that reaches the peer whole; 0: no limit.
func (b *Bind) Limit(key relay.Key) int {
	p := b.table.Load().byKey[key]
	if p == nil {
		return 0
	}
	if r := p.route.Load(); r != nil {
		return b.limit(r)
	}
	return 0
}

func (b *Bind) limit(r *route) int {
	mtu := r.mtu
	if mtu == 0 {
		mtu = r.link
	}
	if mtu == 0 {
		return 0
	}
	return mtu - overhead(r.to.addr.Addr())
}

// Endpoints returns where this node may be reached.
func (b *Bind) Endpoints() []netip.AddrPort {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.around.endpoints)
}

// NAT returns what is between this node and the reflectors.
func (b *Bind) NAT() NAT {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.around.nat
}

// Keys returns the peers' keys.
func (b *Bind) Keys() []relay.Key { return slices.Collect(maps.Keys(b.table.Load().byKey)) }
