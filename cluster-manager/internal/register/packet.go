package register

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// kind is the type of a Socket.IO packet, as it stands on the wire. Binary events and acks are not among them: a registration has
// no attachments, and to believe a client how many it sends would cost whatever it says.
type kind byte

const (
	connect      kind = '0'
	disconnect   kind = '1'
	event        kind = '2'
	ack          kind = '3'
	connectError kind = '4'
)

// Bounds of what is parsed before anything is known about a packet.
const (
	maxNamespace = 256
	maxAckID     = 18 // digits that fit 63 bits
)

var errPacket = errors.New("malformed packet")

// packet is one Socket.IO packet. Both generations write it alike: <kind>[/<namespace>,][<ack id>][<data>].
type packet struct {
	kind      kind
	namespace string // with its slash; the default one is "/"
	ackID     string // digits, "" where no ack is asked for
	data      string // JSON, not yet parsed
}

// parsePacket takes one message apart without looking into its data.
func parsePacket(s string) (packet, error) {
	if s == "" || s[0] < byte(connect) || s[0] > byte(connectError) {
		return packet{}, fmt.Errorf("%w: unknown type", errPacket)
	}
	p := packet{kind: kind(s[0]), namespace: "/"}
	rest := s[1:]
	if strings.HasPrefix(rest, "/") {
		namespace, _, found := strings.Cut(rest[:min(len(rest), maxNamespace+1)], ",")
		if !found && len(rest) > maxNamespace {
			return packet{}, fmt.Errorf("%w: namespace too long", errPacket)
		}
		rest = strings.TrimPrefix(rest[len(namespace):], ",")
		p.namespace, _, _ = strings.Cut(namespace, "?") // the first generation may append a query
	}
	p.data = strings.TrimLeft(rest, "0123456789")
	p.ackID = rest[:len(rest)-len(p.data)]
	if len(p.ackID) > maxAckID {
		return packet{}, fmt.Errorf("%w: ack id too long", errPacket)
	}
	return p, nil
}

// String renders the packet as ASCII.
func (p packet) String() string {
	var b strings.Builder
	b.WriteByte(byte(p.kind))
	if p.namespace != "/" || strings.HasPrefix(p.data, "/") { // else what is no JSON would be taken for a namespace
		b.WriteString(p.namespace)
		b.WriteByte(',')
	}
	b.WriteString(p.ackID)
	b.WriteString(ascii(p.data))
	return b.String()
}

// event returns name and arguments of an event.
func (p packet) event() (name string, args []json.RawMessage, err error) {
	if err := json.Unmarshal([]byte(p.data), &args); err != nil {
		return "", nil, fmt.Errorf("event: %w", err)
	}
	if len(args) == 0 {
		return "", nil, fmt.Errorf("%w: event without a name", errPacket)
	}
	if err := json.Unmarshal(args[0], &name); err != nil {
		return "", nil, fmt.Errorf("event name: %w", err)
	}
	return name, args[1:], nil
}

// newEvent returns an event with one argument, which is JSON.
func newEvent(namespace, name string, arg []byte) packet {
	quoted, _ := json.Marshal(name) // a string always marshals
	return packet{kind: event, namespace: namespace, data: "[" + string(quoted) + "," + string(arg) + "]"}
}

// ascii writes JSON without characters beyond ASCII, which can stand inside its strings only: clients of the first generation
// disagree about how long such a character is.
func ascii(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
