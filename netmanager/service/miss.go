package service

import (
	"sync"
	"time"
)

// A packet that cannot be sent yet, because its service is unknown or has no instance to give, waits a moment for a table.
const (
	holdTime     = 200 * time.Millisecond
	negativeTime = 5 * time.Second
	heldPerFlow  = 64
	heldMost     = 2048 // packets altogether; there are nodes with little memory
	missesMost   = 1024 // addresses
	// What one sender may take of both, so that there is room for the others.
	heldEach   = heldMost / 4
	missesEach = missesMost / 4
)

// misses holds those packets. It is off the fast path.
type misses struct {
	mu     sync.Mutex // guards the rest
	known  map[addr]*miss
	held   int
	of     map[addr]share // by sender; only who has something
	closed bool
}

// share is what there is of one sender's.
type share struct{ known, held int }

// count adds to a sender's share.
func (m *misses) count(sender addr, known, held int) {
	s := m.of[sender]
	s.known += known
	s.held += held
	if m.held += held; s == (share{}) {
		delete(m.of, sender)
	} else {
		m.of[sender] = s
	}
}

// forget takes out an address.
func (m *misses) forget(dst addr, e *miss) {
	e.timer.Stop()
	m.count(e.sender, -1, 0)
	delete(m.known, dst)
}

// let takes out the packets that wait for an address.
func (m *misses) let(e *miss) []held {
	packets := e.packets
	for _, h := range packets {
		m.count(h.sender, 0, -1)
	}
	e.packets = nil
	return packets
}

// hasRoom says whether a sender may have one address more; one that nobody bears makes way.
func (m *misses) hasRoom(sender addr) bool {
	if m.of[sender].known >= missesEach {
		return false
	}
	if len(m.known) < missesMost {
		return true
	}
	for dst, e := range m.known {
		if e.negative {
			m.forget(dst, e)
			return true
		}
	}
	return false
}

type miss struct {
	sender   addr // who was the first
	packets  []held
	negative bool // nobody answered: refuse at once
	timer    *time.Timer
}

type held struct {
	sender addr
	flow   uint64
	b      []byte
}

// hold keeps a copy of the packet. It asks for the service when that is unknown, once in negativeTime.
func (d *Device) hold(p *packet, known bool, n *tally) {
	m := &d.misses
	m.mu.Lock()
	e, ask := m.known[p.dst], false
	t := d.table.Load()
	switch {
	case m.closed:
		m.mu.Unlock()
		return
	case t.ready(p.dst): // another table is in force since; its release has passed, or finds nothing
		m.mu.Unlock()
		d.resend(append([]byte(nil), p.b...), t, d.now(), n, false)
		return
	case e == nil && !m.hasRoom(p.src):
		m.mu.Unlock()
		n[countMissed]++
		return
	case e == nil:
		dst := p.dst
		e, ask = &miss{sender: p.src}, !known
		m.count(p.src, 1, 0)
		e.timer = time.AfterFunc(holdTime, func() { d.expire(dst, e) })
		m.known[dst] = e
	}
	if e.negative {
		m.mu.Unlock()
		n[countMissed]++
		d.answer(p, unreachable)
		return
	}
	if flow := d.flows.full(d.flows.base(p.src, p.sport, p.dport, p.proto), p.dst); m.held < heldMost && m.of[p.src].held < heldEach && e.room(flow) {
		e.packets = append(e.packets, held{p.src, flow, append([]byte(nil), p.b...)})
		m.count(p.src, 0, 1)
	} else {
		n[countLost]++
	}
	m.mu.Unlock()
	if ask && d.options.OnMiss != nil {
		d.options.OnMiss(p.dst.netip())
	}
}

func (e *miss) room(flow uint64) bool {
	count := 0
	for i := range e.packets {
		if e.packets[i].flow == flow {
			count++
		}
	}
	return count < heldPerFlow
}

// expire gives up: the senders are told, unless the service only lacks a healthy instance for now. A second time it ends the negative memory.
func (d *Device) expire(dst addr, e *miss) {
	m := &d.misses
	m.mu.Lock()
	if m.known[dst] != e {
		m.mu.Unlock()
		return
	}
	t := d.table.Load()
	_, known := t.dial.get(dst)
	packets := m.let(e)
	if known || e.negative {
		m.forget(dst, e)
	} else {
		e.negative = true
		e.timer = time.AfterFunc(negativeTime, func() { d.expire(dst, e) })
	}
	m.mu.Unlock()
	var n tally
	told := map[uint64]bool{}
	for _, h := range packets {
		var p packet
		if n[countMissed]++; p.parse(h.b) && !told[h.flow] && (!known || t.empty(dst)) {
			told[h.flow] = true
			d.answer(&p, unreachable)
		}
	}
	d.counters.add(&n)
}

// release sends the packets that the table has a place for.
func (d *Device) release(t *snapshot) {
	m := &d.misses
	var packets []held
	m.mu.Lock()
	for dst, e := range m.known {
		if t.ready(dst) {
			packets = append(packets, m.let(e)...)
			m.forget(dst, e)
		}
	}
	m.mu.Unlock()
	var n tally
	now := d.now()
	for _, h := range packets {
		d.resend(h.b, t, now, &n, true)
	}
	d.counters.add(&n)
}

// resend sends one packet that waited. Where it cannot go all the same, it may wait again, or is lost.
func (d *Device) resend(b []byte, t *snapshot, now uint32, n *tally, again bool) {
	var p packet
	if !p.parse(b) {
		return
	}
	switch v := d.out(&p, t, now, n); v {
	case forward:
		d.inject(b)
	case pieces:
		d.injectPieces(b)
	case back:
		d.toTUN(b)
	case drop:
	default:
		if again {
			d.cannot(&p, v, n)
		} else {
			n[countLost]++
		}
	}
}

// close forgets what waits.
func (m *misses) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, e := range m.known {
		e.timer.Stop()
	}
	m.known = nil
}
