package bind

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/netmanager/relay"
)

const (
	heartbeat     = 3 * time.Second
	idleHeartbeat = 20 * time.Second        // NATs forget a UDP flow after 30 s
	trust         = 6500 * time.Millisecond // two heartbeats may be lost
	repeatPing    = 200 * time.Millisecond  // after one without an answer
	doubtPing     = tickEvery               // the same while it decides whether to send by both ways: a flow shall go on within a second
	activeFor     = time.Minute             // after the last packet
	silence       = 200 * time.Millisecond  // without anything from a peer that we send to: ask
	maxLost       = 2                       // pings in a row without an answer: both ways
	relayTries    = 3                       // pings through the relay in a row without an answer: it is not there
	settled       = 2 * time.Second         // for so long an answer from where a peer's packets come from now wins
	errorPause    = 10 * time.Millisecond
	probeLife     = 5 * time.Second
	maxProbes     = 1 << 16 // outstanding, of all peers
	maxCandidates = 24      // of one peer
	learnedLife   = 2 * time.Minute
	punchAgain    = 5 * time.Second
	searchAgain   = time.Minute // for a better way while direct
	answersPerSec = 64          // pings of one peer that are answered
)

// paths is what is known of the ways to a peer.
type paths struct {
	candidates map[netip.AddrPort]*candidate
	told       []netip.AddrPort // by the control plane
	boot       uint64
	gen        uint32
	unanswered time.Time // the first ping on the route since its last answer; zero: none
	lost       int       // pings on the route since then
	nextPunch  time.Time
	punches    int
	offered    time.Time // when we last sent a punch
	nextSearch time.Time
	relayPing  time.Time
	relayTries int // since the last answer
	relayPong  time.Time
	relayRTT   time.Duration
	mtu        mtuSearch
	answers    int // in the second that began at answersFrom
	answersAt  time.Time
}

// candidate is an endpoint that a peer may be reached at.
type candidate struct {
	to     *destination
	told   bool // by the peer or the control plane, not just seen
	seen   time.Time
	ping   time.Time
	pong   time.Time
	rtt    time.Duration
	prefer time.Time // until when an answer from here wins: the peer's packets come from here
}

// sent is a ping on its way.
type sent struct {
	peer *Peer
	to   netip.AddrPort // zero: through the relay
	at   time.Time
	size int // of the IP packet, when it asks whether that fits
}

// PeerConfig is a peer as the caller knows it.
type PeerConfig struct {
	Key       relay.Key
	Endpoints []netip.AddrPort
}

// Set makes the peers be these; what is known of those that stay is kept.
// Calls must not overlap.
func (b *Bind) Set(peers []PeerConfig) error {
	old, now := b.table.Load(), time.Now()
	next := &table{byKey: make(map[relay.Key]*Peer, len(peers)), byTag: make(map[[tagSize]byte]*Peer, len(peers))}
	for _, c := range peers {
		p := old.byKey[c.Key]
		if p == nil {
			x, err := newBox(b.cfg.PrivateKey, b.public, c.Key)
			if err != nil {
				return fmt.Errorf("peer %s: %w", c.Key, err)
			}
			p = &Peer{bind: b, key: c.Key, box: x}
			p.candidates = map[netip.AddrPort]*candidate{}
			p.lastSent.Store(now.UnixNano()) // a new peer is looked for at once
		}
		next.byKey[c.Key], next.byTag[p.box.theirs] = p, p
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range peers {
		p := next.byKey[c.Key]
		if !slices.Equal(p.told, c.Endpoints) {
			p.told = slices.Clone(c.Endpoints)
			b.offer(p, c.Endpoints, now)
		}
	}
	for tx, s := range b.probes {
		if next.byKey[s.peer.key] == nil {
			delete(b.probes, tx)
		}
	}
	b.table.Store(next)
	for key, p := range old.byKey {
		if next.byKey[key] == nil {
			b.handshakes.end(p)
		}
	}
	b.nudge()
	return nil
}

// offer takes over the endpoints that a peer says it has. Earlier ones are forgotten unless they answer.
func (b *Bind) offer(p *Peer, endpoints []netip.AddrPort, now time.Time) {
	for _, c := range p.candidates {
		c.told = false
	}
	for _, a := range endpoints {
		if c := b.candidate(p, a, now); c != nil {
			c.told = true
		}
	}
	var spray []*destination
	for _, a := range endpoints {
		if c := p.candidates[a]; c != nil && len(spray) < maxSpray {
			spray = append(spray, c.to)
		}
	}
	p.spray.Store(&spray)
	p.nextPunch, p.punches = now, 0
}

// candidate returns the candidate of this address, a new one if need be; nil if it cannot be one.
func (b *Bind) candidate(p *Peer, a netip.AddrPort, now time.Time) *candidate {
	if c := p.candidates[a]; c != nil {
		c.seen = now
		return c
	}
	ip := a.Addr()
	if a.Port() == 0 || !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" || b.around.own(a, b.port) || (b.cfg.Hidden != nil && b.cfg.Hidden(ip)) {
		return nil
	}
	if len(p.candidates) >= maxCandidates {
		oldest := slices.MinFunc(slices.Collect(maps.Values(p.candidates)), func(x, y *candidate) int { return x.seen.Compare(y.seen) })
		delete(p.candidates, oldest.to.addr)
	}
	c := &candidate{to: newDestination(a), seen: now}
	p.candidates[a] = c
	return c
}

// control takes a datagram that is not WireGuard's.
func (b *Bind) control(packet []byte, from *origin) {
	if isFrame(packet) {
		if p := b.table.Load().byTag[[tagSize]byte(packet[len(magic):])]; p != nil {
			b.frame(packet, from, p)
			return
		}
	} else if tx, seen, err := relay.ParseBindingResponse(packet); err == nil {
		b.reflected(tx, seen, from.to.addr)
		return
	}
	b.ignored.Add(1)
}

// frame takes a probe; from is nil when it came through the relay.
func (b *Bind) frame(packet []byte, from *origin, p *Peer) {
	m, err := p.box.open(packet)
	if err != nil {
		b.ignored.Add(1)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if m.session && !b.cfg.Session(p.key) {
		b.cfg.Stale(p.key)
	}
	fresh := b.news(p, m, from, now)
	switch m.kind {
	case ping:
		b.pinged(p, m, from, now)
	case pong:
		b.ponged(p, m, from, now)
	case punch:
		if from == nil && fresh {
			b.punched(p, m, now)
		}
	}
}

// message returns a probe for a peer without its body.
func (b *Bind) message(k kind, p *Peer, tx uint64) message {
	return message{kind: k, session: b.cfg.Session(p.key), boot: b.boot, gen: b.gen, tx: tx}
}

// news notes that the peer was restarted, or that its addresses have changed. It returns false for a message that may be from before that,
// sent again by somebody: a new run of the peer shows only in its answer to a question of ours.
func (b *Bind) news(p *Peer, m message, from *origin, now time.Time) bool {
	first := !p.speaks.Swap(true)
	r := p.route.Load()
	if first && r != nil {
		r.trusted.Store(now.Add(trust).UnixNano()) // from now on it has to be earned
	}
	if m.boot != p.boot && p.boot != 0 {
		if s, asked := b.probes[m.tx]; m.kind != pong || !asked || s.peer != p {
			return false
		}
	} else if m.boot == p.boot && m.gen <= p.gen {
		return m.gen == p.gen
	}
	p.boot, p.gen = m.boot, m.gen
	if r != nil && !first && (from == nil || from.to.addr != r.to.addr) {
		r.trusted.Store(0) // it has moved: both ways until one is known to work
		p.unanswered = time.Time{}
		p.nextPunch, p.punches = now, 0
		b.nudge()
	}
	return true
}

func (b *Bind) pinged(p *Peer, m message, from *origin, now time.Time) {
	if now.Sub(p.answersAt) >= time.Second {
		p.answersAt, p.answers = now, 0
	}
	if p.answers++; p.answers > answersPerSec {
		return
	}
	reply := b.message(pong, p, m.tx)
	if from == nil {
		if b.cfg.Relay != nil {
			b.cfg.Relay.Send(p.key, p.box.seal(reply))
		}
		if m.boot != p.boot {
			b.pingRelay(p, now)
		}
		return
	}
	reply.seen = from.to.addr
	_ = b.sendTo([][]byte{p.box.seal(reply)}, 0, from.to)
	c := b.candidate(p, from.to.addr, now)
	if c == nil {
		return
	}
	c.to = from.to
	r := p.route.Load()
	if m.pad > 0 && r != nil && r.to.addr == from.to.addr {
		p.doubtMTU(m.pad+overhead(from.to.addr.Addr())+pingOverhead, now)
	}
	untrusted := r == nil || now.UnixNano() >= r.trusted.Load()
	if m.pad == 0 && (now.Sub(c.pong) > heartbeat || m.boot != p.boot) && (now.Sub(c.ping) > time.Second || untrusted && now.Sub(c.ping) > repeatPing/4) {
		b.ping(p, c, now)
	}
}

// ping asks whether the peer is at the candidate.
func (b *Bind) ping(p *Peer, c *candidate, now time.Time) {
	tx, ok := b.track(sent{peer: p, to: c.to.addr, at: now})
	if !ok {
		return
	}
	c.ping = now
	m := b.message(ping, p, tx)
	if err := b.sendTo([][]byte{p.box.seal(m)}, 0, c.to); err != nil && c.to.src != nil {
		c.to = newDestination(c.to.addr)
		_ = b.sendTo([][]byte{p.box.seal(m)}, 0, c.to)
	}
}

// track notes a ping that is about to be sent and returns its transaction.
func (b *Bind) track(s sent) (uint64, bool) {
	if len(b.probes) >= maxProbes {
		return 0, false
	}
	for {
		tx := rand.Uint64()
		if _, taken := b.probes[tx]; !taken {
			b.probes[tx] = s
			return tx, true
		}
	}
}

func (b *Bind) ponged(p *Peer, m message, from *origin, now time.Time) {
	s, ok := b.probes[m.tx]
	if !ok || s.peer != p {
		return
	}
	delete(b.probes, m.tx)
	rtt := now.Sub(s.at)
	if from == nil {
		if s.to.IsValid() {
			return
		}
		p.relayPong, p.relayRTT, p.relayTries = now, smooth(p.relayRTT, rtt), 0
		return
	}
	c := p.candidates[s.to]
	if c == nil || s.to != from.to.addr {
		return // answered from elsewhere: a NAT that would not let our packets back in
	}
	c.seen, c.pong, c.to = now, now, from.to
	if s.size > 0 {
		b.fits(p, s, now)
	} else {
		c.rtt = smooth(c.rtt, rtt)
	}
	b.choose(p, c, now)
}

func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return sample
	}
	return old + (sample-old)/4
}

// choose decides whether the candidate that just answered is the route.
func (b *Bind) choose(p *Peer, c *candidate, now time.Time) {
	r := p.route.Load()
	until := now.Add(trust).UnixNano()
	if r != nil && r.to.addr == c.to.addr {
		p.unanswered, p.lost = time.Time{}, 0
		if slices.Equal(r.to.src, c.to.src) {
			r.trusted.Store(until)
			r.heard.Store(now.UnixNano())
			return
		}
		b.direct(p, c, r.mtu, r.link, now)
		return
	}
	if r != nil && now.UnixNano() < r.trusted.Load() && now.After(c.prefer) {
		current := p.candidates[r.to.addr]
		if current != nil && c.rtt+max(2*time.Millisecond, current.rtt/5) > current.rtt {
			return
		}
	}
	p.unanswered, p.lost = time.Time{}, 0
	link, _ := LinkMTU(c.to.addr)
	b.direct(p, c, 0, link, now)
	p.mtu.begin(now)
	if r == nil {
		b.log.Debug("peer is direct", "peer", p.key.String(), "addr", c.to.addr.String())
		b.cfg.Reached(p.key)
	}
	b.nudge()
}

// direct makes the candidate the route.
func (b *Bind) direct(p *Peer, c *candidate, mtu, link int, now time.Time) {
	r := &route{to: c.to, mtu: mtu, link: link}
	r.trusted.Store(now.Add(trust).UnixNano())
	r.heard.Store(now.UnixNano())
	p.route.Store(r)
}

// roamed is told that authentic packets of the peer come from an address that is not its route.
func (b *Bind) roamed(p *Peer, from *destination) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !p.speaks.Load() { // WireGuard's own rule
		link, _ := LinkMTU(from.addr)
		r := &route{to: from, link: link}
		r.trusted.Store(1<<63 - 1)
		r.heard.Store(now.UnixNano())
		p.route.Store(r)
		p.nextPunch, p.punches = now, 0
		b.nudge()
		return
	}
	c := b.candidate(p, from.addr, now)
	if c == nil {
		return
	}
	// Two that send by different ways would follow one another in circles: of the two, one stays where it gets answers.
	r := p.route.Load()
	if r != nil && now.UnixNano() < r.trusted.Load() && slices.Compare(b.public[:], p.key[:]) < 0 {
		if current := p.candidates[r.to.addr]; p.unanswered.IsZero() && current != nil {
			p.unanswered = now
			b.ping(p, current, now)
			return
		}
		if now.Sub(p.unanswered) < repeatPing {
			return
		}
	}
	c.to, c.prefer = from, now.Add(settled)
	b.ping(p, c, now)
}

// punched is told through the relay that the peer tries to reach us.
func (b *Bind) punched(p *Peer, m message, now time.Time) {
	b.offer(p, m.offer, now)
	p.nextPunch, p.punches = now.Add(repeatPing), 1
	b.pingAll(p, now)
	if now.Sub(p.offered) > 2*time.Second {
		b.sendPunch(p, now)
	}
}

func (b *Bind) sendPunch(p *Peer, now time.Time) {
	if b.cfg.Relay == nil || !b.cfg.Relay.Connected() {
		return
	}
	p.offered = now
	m := b.message(punch, p, 0)
	m.offer = b.around.endpoints
	b.cfg.Relay.Send(p.key, p.box.seal(m))
}

// search asks all candidates, and the peer to do the same.
func (b *Bind) search(p *Peer, now time.Time) {
	b.sendPunch(p, now)
	b.pingAll(p, now)
}

func (b *Bind) pingAll(p *Peer, now time.Time) {
	for _, c := range p.candidates {
		if now.Sub(c.ping) > repeatPing/4 {
			b.ping(p, c, now)
		}
	}
}
