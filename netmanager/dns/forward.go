package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// attempt is how long one upstream may take, and budget how long all of them: a resolver in a container waits 5 s before it asks again.
	attempt = 1500 * time.Millisecond
	budget  = 4500 * time.Millisecond
	// rounds is how often all upstreams are tried.
	rounds = 3
	// resentful is how long an upstream that failed is asked last.
	resentful = 10 * time.Second
	// maxUpstreams bounds how many are looked at; the C library takes three.
	maxUpstreams = 8
)

// forwarder asks the host's name servers. It hands queries and answers on as they are: what it does not understand gets through.
type forwarder struct {
	upstreams func() []netip.AddrPort
	loop      func(netip.AddrPort) bool // it is us, or a neighbour that would ask us

	mu   sync.Mutex // guards what follows
	down map[netip.AddrPort]time.Time
}

func newForwarder(upstreams func() []netip.AddrPort, loop func(netip.AddrPort) bool) *forwarder {
	return &forwarder{upstreams: upstreams, loop: loop, down: make(map[netip.AddrPort]time.Time)}
}

// order returns the upstreams to try, those that failed of late at the end.
func (f *forwarder) order() []netip.AddrPort {
	all := slices.DeleteFunc(slices.Clone(f.upstreams()), func(a netip.AddrPort) bool { return !a.IsValid() || f.loop(unmap(a)) })
	all = all[:min(len(all), maxUpstreams)]
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	bad := func(a netip.AddrPort) int {
		if until, ok := f.down[a]; ok && now.Before(until) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b netip.AddrPort) int { return bad(a) - bad(b) })
	return all
}

// judge remembers whether an upstream answered.
func (f *forwarder) judge(a netip.AddrPort, answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case answered:
		delete(f.down, a)
	case len(f.down) < 64: // the host's configuration has changed often; the old ones fade below
		f.down[a] = time.Now().Add(resentful)
	default:
		clear(f.down)
	}
}

// exchange asks one upstream after the other. Where none has a better answer it returns the failure that one of them reported, nil if none did.
func (f *forwarder) exchange(ctx context.Context, q request) []byte {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	var refusal []byte
	upstreams := f.order()
	for range rounds {
		for _, u := range upstreams {
			if ctx.Err() != nil {
				return refusal
			}
			reply, err := ask(ctx, u, q)
			if ctx.Err() == nil {
				f.judge(u, err == nil)
			}
			if err == nil && !disappointing(reply) {
				return reply
			}
			if err == nil {
				refusal = reply
			}
		}
		if refusal != nil { // they are there, and will say the same again
			return refusal
		}
	}
	return nil
}

// disappointing says whether another upstream may know better: after server failure, not implemented and refused.
func disappointing(reply []byte) bool {
	rcode := reply[3] & 0xf
	return rcode == 2 || rcode == 4 || rcode == 5
}

// request is a query as an upstream shall see it.
type request struct {
	packet []byte
	tcp    bool
	size   int // of the longest answer that the client takes by UDP
}

// ask sends a query under a number of its own, from a port of its own, and returns the answer under the client's number.
func ask(ctx context.Context, upstream netip.AddrPort, q request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	var d net.Dialer
	network, send, receive := "udp", writePacket, readPacket
	if q.tcp {
		network, send, receive = "tcp", writeFramed, readFramed
	}
	conn, err := d.DialContext(ctx, network, upstream.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	own := slices.Clone(q.packet)
	if _, err := rand.Read(own[:2]); err != nil {
		return nil, err
	}
	if err := send(conn, own); err != nil {
		return nil, err
	}
	for {
		reply, err := receive(conn, q.size)
		if err != nil {
			return nil, err
		}
		if answers(reply, own) {
			copy(reply, q.packet[:2])
			return reply, nil
		}
	}
}

func writePacket(w io.Writer, m []byte) error {
	_, err := w.Write(m)
	return err
}

// readPacket reads a datagram. Of one that is longer than most it returns one byte more than that.
func readPacket(r io.Reader, most int) ([]byte, error) {
	m := make([]byte, most+1)
	n, err := r.Read(m)
	return m[:n], err
}

// answers says whether a packet is the answer to a query: it has its number and its question. A failure may come without the question.
func answers(reply, query []byte) bool {
	if len(reply) < headerSize || len(query) < headerSize || reply[2]&0x80 == 0 || reply[0] != query[0] || reply[1] != query[1] {
		return false
	}
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		return reply[3]&0xf != 0
	}
	end := questionEnd(query)
	return end > 0 && len(reply) >= end && equalFold(reply[headerSize:end], query[headerSize:end])
}

// questionEnd returns where the first question of a packet ends, 0 where it does not.
func questionEnd(p []byte) int {
	for at := headerSize; at < len(p); {
		n := int(p[at])
		switch {
		case n == 0 && at+5 <= len(p):
			return at + 5 // the root, the type and the class
		case n == 0 || n > 63:
			return 0
		}
		at += n + 1
	}
	return 0
}

// equalFold compares bytes, letters of ASCII regardless of their case. The lengths between labels are below all letters.
func equalFold(a, b []byte) bool {
	return slices.EqualFunc(a, b, func(x, y byte) bool { return lower(x) == lower(y) })
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
