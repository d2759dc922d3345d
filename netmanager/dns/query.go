package dns

import (
	"context"
	"encoding/binary"
	"slices"

	wire "github.com/miekg/dns"
)

// query is one that cannot be answered at once.
type query struct {
	server *Server
	packet []byte    // as it came
	msg    *wire.Msg // the same, read
	tcp    bool
	miss   string // the job to wait for; "": the query is for an upstream
}

// begin answers a packet, or returns the query that must wait; neither, where it deserves no answer. It does not keep the packet.
func (s *Server) begin(packet []byte, tcp bool) ([]byte, *query) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 { // an answer to a question that nobody asked
		return nil, nil
	}
	if opcode := packet[2] >> 3 & 0xf; opcode != wire.OpcodeQuery {
		return bare(packet, wire.RcodeNotImplemented), nil
	}
	q := &query{server: s, msg: new(wire.Msg), tcp: tcp}
	if len(packet) > maxQuery || binary.BigEndian.Uint16(packet[4:]) != 1 || q.msg.Unpack(packet) != nil || len(q.msg.Question) != 1 {
		return bare(packet, wire.RcodeFormatError), nil
	}
	question := q.msg.Question[0]
	switch {
	case q.version() != 0:
		return q.fail(wire.RcodeBadVers), nil
	case question.Qclass != wire.ClassINET, question.Qtype == wire.TypeAXFR, question.Qtype == wire.TypeIXFR:
		return q.fail(wire.RcodeRefused), nil
	}
	a, ours := s.zone.look(question, s.table.Load())
	switch {
	case !ours:
		q.packet = slices.Clone(packet)
		return nil, q
	case a.miss == "":
		if a.job != "" {
			s.hit(a.job)
		}
		return q.reply(a), nil
	}
	if v, ok := s.miss.known(a.miss); ok {
		return q.missed(a, v), nil
	}
	q.miss = a.miss
	return nil, q
}

// answer waits, for a table or for an upstream.
func (q *query) answer(ctx context.Context) []byte {
	s := q.server
	if q.miss == "" {
		if reply := s.up.exchange(ctx, request{packet: q.packet, tcp: q.tcp, size: q.size()}); reply != nil {
			return q.fit(reply)
		}
		return q.fail(wire.RcodeServerFailure)
	}
	v := s.miss.wait(ctx, q.miss, func(job string) bool { return s.table.Load().has(job) })
	a, _ := s.zone.look(q.msg.Question[0], s.table.Load())
	if a.miss == "" {
		return q.reply(a)
	}
	return q.missed(a, v)
}

// missed answers for a job that did not come. Where nobody has said that it does not exist, that is no statement about the name: a client that
// took "no such name" from a cluster whose manager is away would give up for good.
func (q *query) missed(a answer, v verdict) []byte {
	if v == absent {
		return q.reply(a)
	}
	return q.fail(wire.RcodeServerFailure)
}

func (q *query) version() uint8 {
	if o := q.msg.IsEdns0(); o != nil {
		return o.Version()
	}
	return 0
}

// size is how long an answer may be.
func (q *query) size() int {
	o := q.msg.IsEdns0()
	switch {
	case q.tcp:
		return wire.MaxMsgSize
	case o != nil:
		return min(max(plainSize, int(o.UDPSize())), mostByUDP)
	default:
		return plainSize
	}
}

// reply makes an answer of the zone.
func (q *query) reply(a answer) []byte {
	m := q.begun(a.rcode)
	m.Authoritative = true
	m.Answer, m.Extra = a.records, append(m.Extra, a.extra...)
	if len(m.Answer) == 0 {
		m.Ns = []wire.RR{q.server.zone.start(a.soa)}
	}
	return q.pack(m)
}

// fail answers with a code alone.
func (q *query) fail(rcode int) []byte { return q.pack(q.begun(rcode)) }

func (q *query) begun(rcode int) *wire.Msg {
	m := new(wire.Msg).SetRcode(q.msg, rcode)
	m.RecursionAvailable = true
	m.Compress = true
	if q.msg.IsEdns0() != nil {
		m.SetEdns0(ownSize, false)
	}
	return m
}

func (q *query) pack(m *wire.Msg) []byte {
	m.Truncate(q.size())
	packed, err := m.Pack()
	if err != nil { // a name in the table that is none: the client hears of it, and nobody else does
		q.server.log.Warn("answer cannot be written", "err", err)
		packed, err = new(wire.Msg).SetRcode(q.msg, wire.RcodeServerFailure).Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}

// fit cuts an upstream's answer that is longer than the client can take: it asks again by TCP.
func (q *query) fit(reply []byte) []byte {
	if len(reply) <= q.size() {
		return reply
	}
	m := new(wire.Msg).SetRcode(q.msg, int(reply[3]&0xf))
	m.RecursionAvailable, m.Truncated = true, true
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// bare answers a packet that cannot be read any further than its header.
func bare(packet []byte, rcode byte) []byte {
	reply := make([]byte, headerSize)
	copy(reply, packet[:2])
	reply[2] = packet[2]&0x79 | 0x80 // the opcode, and whether recursion was asked for
	reply[3] = 0x80 | rcode
	return reply
}
