package service

import (
	"errors"
	"os"

	"skerry.internal/netmanager/tun"
)

// queue is a queue of the wrapped device.
type queue struct {
	tun.Queue
	d    *Device
	back [][]byte // reused: a queue has one reader
}

// File returns nil: who reads from the kernel past Read gets service addresses.
func (q *queue) File() *os.File { return nil }

func (q *queue) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	for {
		n, err := q.Queue.Read(slab, packets)
		if n > 0 {
			n = q.outbound(slab, packets[:n])
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// outbound decides about the packets that were read and returns how many go on; those that stay at home are written back.
func (q *queue) outbound(slab []byte, packets []tun.ReadPacket) int {
	d := q.d
	t, now := d.table.Load(), d.now()
	var n tally
	good := 0
	for _, at := range packets {
		var p packet
		if !p.parse(slab[at.Offset : at.Offset+at.Size]) {
			n[countMalformed]++
			continue
		}
		switch v := d.out(&p, t, now, &n); v {
		case forward:
			packets[good] = at
			good++
		case pieces: // there is no room among the others
			d.injectPieces(p.b)
		case back:
			q.back = append(q.back, slab[at.Offset-headroom:at.Offset+at.Size])
		case drop:
		default:
			d.cannot(&p, v, &n)
		}
	}
	d.counters.add(&n)
	if len(q.back) > 0 {
		d.write(q.back)
		clear(q.back)
		q.back = q.back[:0]
	}
	return good
}

// superQueue is a queue of the kernel's: its packets are rewritten before they are split, and those that stay at home never are.
type superQueue struct {
	super tun.SuperQueue
	d     *Device
	spare []byte // for packets that must wait, which is rare
}

func (q *superQueue) File() *os.File { return nil }

func (q *superQueue) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	for {
		s, err := q.super.ReadSuper(slab)
		switch {
		case errors.Is(err, tun.ErrUnknownSuper):
			q.d.counters[countMalformed].Add(1)
			continue
		case err != nil:
			return 0, err
		}
		v := q.outbound(slab, s)
		if v != forward && v != pieces {
			continue
		}
		n, err := tun.Split(slab, s, packets)
		if err == nil && v == pieces {
			n = divide(slab, packets)
		}
		if n == 0 && !errors.Is(err, tun.ErrTooManySegments) { // any other error would close the tunnel
			q.d.counters[countMalformed].Add(1)
			continue
		}
		return n, err
	}
}

// outbound returns forward or pieces where the packet goes into the tunnel; with all others it has done what they ask for.
func (q *superQueue) outbound(slab []byte, s tun.Super) verdict {
	d := q.d
	var n tally
	defer d.counters.add(&n)
	var p packet
	if !p.parse(slab[tun.Spacing : tun.Spacing+s.Size]) {
		n[countMalformed]++
		return drop
	}
	p.segment, p.partial = s.Segment(), s.Partial()
	v := d.out(&p, d.table.Load(), d.now(), &n)
	switch v {
	case forward, pieces, drop:
	case back:
		if err := q.super.WriteSuper(slab, s); err != nil {
			n[countLost]++
		}
	case unknown, nobody:
		q.wait(slab, s, v, &n)
	default:
		d.cannot(&p, v, &n)
	}
	return v
}

// wait splits a packet that cannot go on yet: what waits is complete.
func (q *superQueue) wait(slab []byte, s tun.Super, v verdict, n *tally) {
	if q.spare == nil {
		q.spare = make([]byte, 1<<17)
	}
	copy(q.spare, slab[:tun.Spacing+s.Size])
	packets := make([]tun.ReadPacket, heldPerFlow)
	count, _ := tun.Split(q.spare, s, packets) // what does not fit would not be held either
	for _, at := range packets[:count] {
		var p packet
		if p.parse(q.spare[at.Offset : at.Offset+at.Size]) {
			q.d.cannot(&p, v, n)
		}
	}
}

// own is the queue of packets that the Device sends by itself.
type own struct{ d *Device }

func (own) File() *os.File { return nil }

func (o own) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	var b []byte
	select {
	case b = <-o.d.injected:
	case <-o.d.closed:
		return 0, os.ErrClosed
	}
	at, n := tun.Spacing, 0
	for {
		if at+len(b)+tun.Spacing > len(slab) {
			return n, tun.ErrTooManySegments
		}
		packets[n] = tun.ReadPacket{Offset: at, Size: copy(slab[at:], b)}
		at += len(b) + tun.Spacing
		if n++; n == len(packets) {
			return n, nil
		}
		select {
		case b = <-o.d.injected:
		default:
			return n, nil
		}
	}
}
