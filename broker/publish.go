package broker

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// refusal is why a publish is acknowledged but not taken.
type refusal struct {
	code   packets.Code
	reason string
}

// Error returns the reason.
func (r refusal) Error() string { return r.reason }

// publish handles a PUBLISH: rights, owner, delivery, acknowledgement, in this order. An error ends the connection.
func (s *session) publish(pk packets.Packet) error {
	if code := pk.PublishValidate(0); code != packets.CodeSuccess {
		return s.violate(code)
	}
	id, qos := pk.PacketID, pk.FixedHeader.Qos
	if qos == 2 {
		if _, again := s.inbound[id]; again {
			return s.ack(packets.Pubrec, id, nil)
		}
		if len(s.inbound) >= receiveMax {
			return s.violate(packets.ErrReceiveMaximum)
		}
	}
	m := newMessage(pk, s.client.ID)
	s.b.counters.in.Add(1)
	err := s.take(m)
	refused, isRefusal := errors.AsType[refusal](err)
	switch {
	case err == nil:
		return s.confirm(qos, id, nil)
	case isRefusal:
		s.b.counters.refused.Add(1)
		s.b.log.Debug("publish refused", "client_id", s.client.ID, "topic", m.topic, "err", err)
		return s.confirm(qos, id, &refused)
	case qos == 0:
		s.b.counters.dropped.Add(1)
		s.b.log.Warn("publish lost", "client_id", s.client.ID, "topic", m.topic, "err", err)
		return nil
	}
	s.b.log.Warn("publish failed, closing its client", "client_id", s.client.ID, "topic", m.topic, "err", err)
	return s.violate(packets.ErrImplementationSpecificError)
}

// take asks all who have a say and routes the message.
func (s *session) take(m *message) error {
	if err := s.accept(m, false); err != nil {
		return err
	}
	if err := s.b.route(m); err != nil {
		return refusal{packets.ErrQuotaExceeded, err.Error()}
	}
	return nil
}

// accept asks the rights and the owner about a publish or a will.
func (s *session) accept(m *message, will bool) error {
	if err := validTopic(m.topic); err != nil {
		return refusal{packets.ErrTopicNameInvalid, err.Error()}
	}
	if strings.HasPrefix(m.topic, "$") || !s.b.cfg.Allow(s.client, Publish, m.topic) {
		return refusal{packets.ErrNotAuthorized, "not authorised to publish to this topic"}
	}
	if !s.b.fits(m) {
		return refusal{packets.ErrQuotaExceeded, ErrRetainedFull.Error()}
	}
	if s.b.cfg.OnPublish == nil {
		return nil
	}
	err := s.b.cfg.OnPublish(s.client, m.public(will))
	switch {
	case errors.Is(err, ErrBadPayload):
		return refusal{packets.ErrPayloadFormatInvalid, err.Error()}
	case errors.Is(err, ErrRefused):
		return refusal{packets.ErrNotAuthorized, err.Error()}
	}
	return err
}

// confirm acknowledges a publish that is done with. In MQTT 5 a refusal ends the exchange of QoS 2 at once; 3.1.1 knows no
// refusal, there the exchange goes on.
func (s *session) confirm(qos byte, id uint16, r *refusal) error {
	switch qos {
	case 1:
		return s.ack(packets.Puback, id, r)
	case 2:
		if r == nil || s.client.Protocol < 5 {
			if s.inbound == nil {
				s.inbound = map[uint16]struct{}{}
			}
			s.inbound[id] = struct{}{}
		}
		return s.ack(packets.Pubrec, id, r)
	}
	return nil
}

// ack writes an acknowledgement; it holds nothing of what the client sent.
func (s *session) ack(kind byte, id uint16, r *refusal) error {
	var code byte
	var reason string
	if r != nil {
		code = r.code.Code
		if p := s.core.Properties.Props; !p.RequestProblemInfoFlag || p.RequestProblemInfo != 0 {
			reason = r.reason
		}
	}
	_, err := s.wire.Write(ackFrame(kind, id, s.client.Protocol == 5, code, reason))
	return err
}

// release handles PUBREL: the id is free again.
func (s *session) release(id uint16) error {
	var r *refusal
	if _, ok := s.inbound[id]; !ok {
		r = &refusal{code: packets.ErrPacketIdentifierNotFound}
	}
	delete(s.inbound, id)
	return s.ack(packets.Pubcomp, id, r)
}

// violate ends the connection for a fault of the client and returns the error that stops the library from reading on.
func (s *session) violate(code packets.Code) error {
	s.end(code)
	return fmt.Errorf("%s: %w", code.Reason, packets.ErrRejectPacket)
}
