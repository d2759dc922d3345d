package broker

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// message is a publish on its way: checked, and from here on not changed any more except for its cache of frames, which
// belongs to the goroutine that routes it (for a retained message: to whoever holds Broker.retainMu).
type message struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
	props   *packets.Properties // only what is forwarded; nil: nothing
	origin  string              // client id, "" for the owner
	expires time.Time           // zero: never
	frames  *[12]frame          // nil: none yet
}

// frame is an encoded PUBLISH; idAt is where its packet id goes (QoS 1 and 2). It is shared between subscribers.
type frame struct {
	bytes []byte
	idAt  int
}

// encoding is what differs between the frames of one message.
type encoding struct {
	v5     bool
	qos    byte
	retain bool
	subIDs []int
}

// newMessage makes a message of a copy of what a client sent: the library's strings and bytes are parts of the packet, which would stay with them.
func newMessage(pk packets.Packet, origin string) *message {
	m := &message{
		topic: strings.Clone(pk.TopicName), payload: bytes.Clone(pk.Payload), qos: pk.FixedHeader.Qos, retain: pk.FixedHeader.Retain, origin: origin,
	}
	m.setProps(pk.Properties)
	return m
}

// setProps keeps a copy of the properties that a broker forwards.
func (m *message) setProps(p packets.Properties) {
	if p.PayloadFormatFlag || p.ContentType != "" || p.ResponseTopic != "" || len(p.CorrelationData) > 0 || len(p.User) > 0 || p.MessageExpiryInterval > 0 {
		m.props = &packets.Properties{
			PayloadFormat: p.PayloadFormat, PayloadFormatFlag: p.PayloadFormatFlag,
			ContentType: strings.Clone(p.ContentType), ResponseTopic: strings.Clone(p.ResponseTopic), CorrelationData: bytes.Clone(p.CorrelationData),
			User: slices.Clone(p.User), MessageExpiryInterval: p.MessageExpiryInterval,
		}
		for i, u := range m.props.User {
			m.props.User[i] = packets.UserProperty{Key: strings.Clone(u.Key), Val: strings.Clone(u.Val)}
		}
	}
	if p.MessageExpiryInterval > 0 {
		m.expires = time.Now().Add(time.Duration(p.MessageExpiryInterval) * time.Second)
	}
}

// public is the message as the owner sees it.
func (m *message) public(will bool) Message {
	public := Message{Topic: m.topic, Payload: m.payload, QoS: m.qos, Retain: m.retain, Will: will}
	if m.props != nil {
		public.ResponseTopic, public.CorrelationData = m.props.ResponseTopic, m.props.CorrelationData
	}
	return public
}

// expired says whether nobody wants the message any more.
func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && now.After(m.expires) }

// What a retained message takes beside its bytes, and each of its user properties.
const (
	sizeMessage = 512
	sizeUser    = 32
)

// size is what a retained message counts for, beside the branches of its topic.
func (m *message) size() int { return sizeMessage + len(m.topic) + len(m.payload) + m.propsSize() }

// propsSize is what the forwarded properties count for.
func (m *message) propsSize() int {
	if m.props == nil {
		return 0
	}
	size := len(m.props.ContentType) + len(m.props.ResponseTopic) + len(m.props.CorrelationData)
	for _, u := range m.props.User {
		size += sizeUser + len(u.Key) + len(u.Val)
	}
	return size
}

// frame returns the message encoded, from the cache where subscribers can share it.
func (m *message) frame(e encoding) (frame, error) {
	if len(e.subIDs) > 0 || !m.expires.IsZero() {
		return m.encode(e)
	}
	i := int(e.qos)
	if e.v5 {
		i += 3
	}
	if e.retain {
		i += 6
	}
	if m.frames == nil {
		m.frames = new([12]frame)
	}
	if m.frames[i].bytes == nil {
		f, err := m.encode(e)
		if err != nil {
			return f, err
		}
		m.frames[i] = f
	}
	return m.frames[i], nil
}

// encode returns the message as a PUBLISH packet. The packet id is still to be filled in.
func (m *message) encode(e encoding) (frame, error) {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: e.qos, Retain: e.retain},
		TopicName:   m.topic,
		Payload:     m.payload,
		// Not zero, which the encoder would refuse.
		PacketID:        1,
		ProtocolVersion: 4,
		Mods:            packets.Mods{AllowResponseInfo: true},
	}
	if e.v5 {
		pk.ProtocolVersion = 5
		if m.props != nil {
			pk.Properties = *m.props
		}
		pk.Properties.SubscriptionIdentifier = e.subIDs
		if !m.expires.IsZero() {
			left := time.Until(m.expires)
			pk.Properties.MessageExpiryInterval = uint32(max(1, left/time.Second))
		}
	}
	buf := bytes.NewBuffer(make([]byte, 0, 16+len(m.topic)+len(m.payload)))
	if err := pk.PublishEncode(buf); err != nil {
		return frame{}, err
	}
	b := buf.Bytes()
	head := 2 // the fixed header: one byte and a length of one to four
	for b[head-1]&0x80 != 0 {
		head++
	}
	return frame{bytes: b, idAt: head + 2 + len(m.topic)}, nil
}

// ackFrame builds a PUBACK, PUBREC, PUBREL or PUBCOMP. Only MQTT 5 has room for a code and a reason.
func ackFrame(kind byte, id uint16, v5 bool, code byte, reason string) []byte {
	head := kind << 4
	if kind == packets.Pubrel {
		head |= 0x02
	}
	if !v5 || code == 0 {
		return []byte{head, 2, byte(id >> 8), byte(id)}
	}
	if len(reason) > 100 { // keeps the packet's length in one byte
		reason = reason[:100]
	}
	if reason == "" {
		return []byte{head, 3, byte(id >> 8), byte(id), code}
	}
	n := len(reason)
	b := []byte{head, byte(7 + n), byte(id >> 8), byte(id), code, byte(3 + n), packets.PropReasonString, 0, byte(n)}
	return append(b, reason...)
}
