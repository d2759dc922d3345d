package bind

import (
	"net/netip"
	"slices"
	"time"
)

const (
	minMTU       = 1280             // what IPv6 promises; below it everything is cut anyway
	mtuRounds    = 4                // of ever finer sizes
	mtuSteps     = 8                // sizes in one finer round
	mtuGrain     = 8                // bytes between found and too large that are not worth another round
	mtuTries     = 2                // of each size
	mtuConfirm   = 10 * time.Second // whether the found size still passes
	mtuHurry     = time.Second      // the same where packets get no answer though small questions do, or where the peer doubts it
	mtuDoubts    = 2                // confirmations without an answer until it is looked for anew
	mtuAgain     = 10 * time.Minute // it may have grown
	mtuAnswer    = 350 * time.Millisecond
	mtuLargest   = maxFrame
	pingOverhead = frameExtra + minPingSize
)

// ladder is the sizes that links have.
var ladder = []int{1280, 1340, 1380, 1400, 1420, 1440, 1460, 1480, 1492, 1500, 2000, 4000, 8000, 8900, 9000}

// mtuSearch finds the largest IP packet that reaches a peer whole, by probes that must not be cut: routers need not say a word.
type mtuSearch struct {
	on        bool
	round     int
	try       int
	sizes     []int // that have not been answered
	best      int
	tooBig    int       // the smallest size that was not answered; 0: none
	due       time.Time // of the next try, or of the next confirmation
	confirmed time.Time
	doubts    int
	again     time.Time
}

func (m *mtuSearch) begin(now time.Time) { *m = mtuSearch{on: true, due: now} }

// tickMTU sends what the search asks for.
func (b *Bind) tickMTU(p *Peer, r *route, active bool, now time.Time) {
	m := &p.mtu
	if !active || r.link == 0 {
		return
	}
	if m.on {
		if !now.Before(m.due) {
			b.stepMTU(p, r, now)
		}
		return
	}
	switch {
	case now.After(m.again):
		m.begin(now)
		b.stepMTU(p, r, now)
	case m.best > minMTU && (now.After(m.due) || m.doubts == 0 && p.deaf(now) && now.Sub(m.confirmed) > mtuHurry):
		m.due = now.Add(mtuAnswer)
		if m.doubts++; m.doubts > mtuDoubts {
			if now.UnixNano() < r.trusted.Load() { // small ones do pass
				m.begin(now)
			}
			return
		}
		b.pingSize(p, r, m.best, now)
	}
}

// deaf says that the peer is sent packets and nothing but answers to questions comes back. So it is with one that only listens, too.
func (p *Peer) deaf(now time.Time) bool {
	return now.UnixNano()-p.lastSent.Load() < int64(silence) && now.UnixNano()-p.lastData.Load() > int64(silence)
}

// doubtMTU is told that the peer asks whether packets of a size reach us. One that is smaller than what we send says that the peer doubts the
// path: so do we.
func (p *Peer) doubtMTU(size int, now time.Time) {
	if m := &p.mtu; !m.on && m.doubts == 0 && size < m.best && now.Sub(m.confirmed) > mtuHurry {
		m.due = now
	}
}

// stepMTU ends a try and begins the next, or a round, or ends the search.
func (b *Bind) stepMTU(p *Peer, r *route, now time.Time) {
	m := &p.mtu
	switch {
	case m.sizes == nil && m.round == 0:
		link := min(r.link, mtuLargest)
		for _, size := range ladder {
			if size < link {
				m.sizes = append(m.sizes, size)
			}
		}
		m.sizes = append(m.sizes, link)
	case m.try < mtuTries && len(m.sizes) > 0:
	default:
		m.endRound()
		if m.round == mtuRounds || len(m.sizes) == 0 {
			b.found(p, r, now)
			return
		}
	}
	m.try++
	wait := mtuAnswer
	if c := p.candidates[r.to.addr]; c != nil {
		wait = max(wait, 3*c.rtt)
	}
	m.due = now.Add(wait)
	for _, size := range slices.Backward(m.sizes) {
		b.pingSize(p, r, size, now)
	}
}

// endRound takes what was not answered for too large, and lays out finer sizes.
func (m *mtuSearch) endRound() {
	for _, size := range m.sizes {
		if size > m.best && (m.tooBig == 0 || size < m.tooBig) {
			m.tooBig = size
		}
	}
	m.sizes, m.try = nil, 0
	m.round++
	low := max(m.best, minMTU)
	if m.tooBig <= low+mtuGrain {
		return
	}
	for i := 1; i <= mtuSteps; i++ {
		if size := low + (m.tooBig-low)*i/(mtuSteps+1); size > low && !slices.Contains(m.sizes, size) {
			m.sizes = append(m.sizes, size)
		}
	}
}

// found ends the search.
func (b *Bind) found(p *Peer, r *route, now time.Time) {
	m := &p.mtu
	best := max(m.best, minMTU)
	if to := r.to.addr; to.Addr().Is6() && best < r.link {
		_, own := LinkMTU(to)
		if err := teachMTU(netip.AddrPortFrom(own, b.port), to, best); err != nil {
			b.log.Debug("packets that are too large for the path will be lost", "peer", p.key.String(), "err", err)
		}
	}
	*m = mtuSearch{best: best, due: now.Add(mtuConfirm), confirmed: now, again: now.Add(mtuAgain)}
	n := &route{to: r.to, mtu: best, link: r.link}
	n.trusted.Store(r.trusted.Load())
	n.heard.Store(r.heard.Load())
	p.route.CompareAndSwap(r, n)
}

// fits is told that a probe of a size was answered.
func (b *Bind) fits(p *Peer, s sent, now time.Time) {
	m := &p.mtu
	if r := p.route.Load(); r == nil || r.to.addr != s.to {
		return
	}
	if !m.on {
		if s.size == m.best {
			m.doubts, m.due, m.confirmed = 0, now.Add(mtuConfirm), now
		}
		return
	}
	m.best = max(m.best, s.size)
	m.sizes = slices.DeleteFunc(m.sizes, func(size int) bool { return size <= s.size })
	if len(m.sizes) == 0 {
		m.due = now
		b.nudge()
	}
}

// pingSize sends a probe that makes an IP packet of this size.
func (b *Bind) pingSize(p *Peer, r *route, size int, now time.Time) {
	pad := size - overhead(r.to.addr.Addr()) - pingOverhead
	s := b.socketFor(r.to.addr.Addr())
	if pad < 0 || s == nil {
		return
	}
	tx, ok := b.track(sent{peer: p, to: r.to.addr, at: now, size: size})
	if !ok {
		return
	}
	m := b.message(ping, p, tx)
	m.pad = pad
	_ = s.sendWhole(p.box.seal(m), r.to) // no answer is an answer
}
