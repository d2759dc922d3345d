package broker

import (
	"sort"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// parcel is a QoS 1 or 2 publish to a client until the client has acknowledged it.
type parcel struct {
	frame    frame // empty, as m, once sent to a client whose session ends with its connection: nobody will send it again
	m        *message
	enc      encoding
	seq      uint64
	released bool // QoS 2: PUBREC came, PUBCOMP has not
}

// cost is what a parcel counts for while it waits: its frame, what surrounds it, and properties, which its frame may leave out.
func (p *parcel) cost() int {
	if p.m == nil {
		return 0
	}
	return 160 + len(p.frame.bytes) + p.m.propsSize()
}

// outbox is what goes to one client: QoS 0 straight to the wire, QoS 1 and 2 within the window that the client granted (MQTT 5's
// Receive Maximum), in the order of publishing. What the window does not admit waits, and what waits has a bound.
type outbox struct {
	counters *counters
	limit    int // bytes that wait here, beside those in the wire

	mu     sync.Mutex // guards all below
	wire   *wire      // nil while the client is away
	v5     bool
	window int
	maxLen int // MQTT 5's Maximum Packet Size of the client; 0: none
	keep   bool
	lastID uint16
	seq    uint64
	sent   map[uint16]parcel
	queue  []parcel // from head on
	head   int
	bytes  int // the cost of all in queue, and of what is kept in sent
}

func newOutbox(limit int, c *counters) *outbox {
	return &outbox{counters: c, limit: limit, sent: map[uint16]parcel{}}
}

// attach connects the outbox to a client that was admitted, and repeats what it has not acknowledged.
func (o *outbox) attach(w *wire, v5 bool, window, maxLen int, keep bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wire, o.v5, o.window, o.maxLen, o.keep = w, v5, window, maxLen, keep
	ids := make([]uint16, 0, len(o.sent))
	for id := range o.sent {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return o.sent[ids[i]].seq < o.sent[ids[j]].seq })
	for _, id := range ids {
		if p := o.sent[id]; p.released {
			_, _ = w.Write(ackFrame(packets.Pubrel, id, v5, 0, ""))
		} else if w.writeFrame(p.frame, id, true) != nil {
			return
		}
	}
	o.pumpLocked()
}

// detach is called when the connection has ended.
func (o *outbox) detach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wire = nil
}

// ready says whether the client is there.
func (o *outbox) ready() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wire != nil
}

// room says whether the client is there and half of what may wait is free. Where it is not, an acknowledgement is due.
func (o *outbox) room() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wire != nil && o.bytes <= o.limit/2
}

// send gives the client one message, or keeps it for later. It never blocks.
func (o *outbox) send(m *message, e encoding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e.v5 = o.v5
	f, err := m.frame(e)
	if err != nil || (o.maxLen > 0 && len(f.bytes) > o.maxLen) { // [MQTT-3.1.2-25]: as if it had been sent
		o.counters.dropped.Add(1)
		return
	}
	if e.qos == 0 {
		o.sendNowLocked(f)
		return
	}
	o.seq++
	p := parcel{frame: f, m: m, enc: e, seq: o.seq}
	if o.bytes += p.cost(); o.bytes > o.limit {
		o.bytes -= p.cost()
		o.overflowLocked()
		return
	}
	o.queue = append(o.queue, p)
	o.pumpLocked()
}

func (o *outbox) sendNowLocked(f frame) {
	if o.wire == nil || o.wire.writeFrame(f, 0, false) != nil {
		o.counters.dropped.Add(1)
		return
	}
	o.counters.out.Add(1)
}

// overflowLocked closes a client that is there and takes nothing; for one that is away the newest message is dropped.
func (o *outbox) overflowLocked() {
	o.counters.dropped.Add(1)
	if o.wire != nil {
		o.counters.slowConsumers.Add(1)
		o.wire.abort()
		o.wire = nil
	}
}

// pumpLocked sends what the window admits.
func (o *outbox) pumpLocked() {
	for o.wire != nil && o.head < len(o.queue) && len(o.sent) < o.window {
		if !o.sendParcelLocked(o.queue[o.head]) {
			o.wire = nil // it has closed; what waits, waits on
			break
		}
		o.queue[o.head] = parcel{}
		o.head++
	}
	switch {
	case o.head == len(o.queue):
		o.queue, o.head = o.queue[:0], 0
		if cap(o.queue) > 64 {
			o.queue = nil
		}
	case o.head > len(o.queue)/2 && o.head > 64:
		o.queue = append([]parcel(nil), o.queue[o.head:]...)
		o.head = 0
	}
}

// sendParcelLocked moves a parcel from the queue to the wire; false if the wire takes nothing any more.
func (o *outbox) sendParcelLocked(p parcel) bool {
	waited := p.cost()
	if !p.m.expires.IsZero() {
		f, err := p.m.encode(p.enc) // again: the time that is left is part of it
		if err != nil || p.m.expired(time.Now()) {
			o.bytes -= waited
			o.counters.dropped.Add(1)
			return true
		}
		p.frame = f
	}
	id := o.freeIDLocked()
	if o.wire.writeFrame(p.frame, id, false) != nil {
		return false
	}
	if !o.keep {
		p.frame, p.m = frame{}, nil
	}
	o.bytes += p.cost() - waited
	o.sent[id] = p
	o.counters.out.Add(1)
	return true
}

// freeIDLocked returns the next packet id that is not in use; the window leaves room for one.
func (o *outbox) freeIDLocked() uint16 {
	for {
		o.lastID++
		if _, used := o.sent[o.lastID]; o.lastID != 0 && !used {
			return o.lastID
		}
	}
}

// acked handles PUBACK and PUBCOMP, and a PUBREC that refuses.
func (o *outbox) acked(id uint16) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok := o.sent[id]
	if !ok {
		return // a repetition
	}
	o.bytes -= p.cost()
	delete(o.sent, id)
	o.pumpLocked()
}

// received handles PUBREC: it is answered by PUBREL.
func (o *outbox) received(id uint16) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok := o.sent[id]
	code := byte(0)
	if !ok {
		code = packets.ErrPacketIdentifierNotFound.Code
	} else if !p.released {
		p.released = true
		o.bytes -= p.cost()
		p.frame, p.m = frame{}, nil
		o.sent[id] = p
	}
	if o.wire != nil {
		_, _ = o.wire.Write(ackFrame(packets.Pubrel, id, o.v5, code, ""))
	}
}
