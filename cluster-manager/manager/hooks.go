package manager

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"skerry.internal/broker"
	"skerry.internal/cluster-manager/internal/dispatch"
	"skerry.internal/messages"
)

// onPublish takes what clients and nodes publish, before it is acknowledged.
func (m *Manager) onPublish(c broker.Client, msg broker.Message) error {
	t, err := messages.ParseTopic(msg.Topic)
	if err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err) // rights let nothing else through
	}
	if msg.Retain && t.Kind != messages.PresenceTopic && t.Kind != messages.NetStatusTopic {
		return fmt.Errorf("%w: %s is not to be retained", broker.ErrRefused, msg.Topic)
	}
	switch t.Kind {
	case messages.CommandTopic:
		return m.command(c, msg, t.Verb)
	case messages.NodeCommandTopic:
		return m.nodeCommand(c, msg, t.Verb)
	case messages.GuestCommandTopic:
		return m.guestCommand(c, msg, t.Verb)
	case messages.PresenceTopic, messages.NodeJobTopic, messages.InventoryTopic, messages.NetEndpointsTopic, messages.NetInterestTopic:
		if err := m.loop.FromNode(m.handling, t, c.Value, msg.Payload); err != nil {
			return m.badPayload(c, msg.Topic, err)
		}
		return nil
	case messages.NetStatusTopic:
		return m.netStatus(c, msg)
	case messages.TraceRequestTopic:
		return m.traceRequest(c, msg)
	default:
		return nil // for whoever has subscribed
	}
}

// command takes a command about a job.
func (m *Manager) command(c broker.Client, msg broker.Message, verb messages.Verb) error {
	in := dispatch.Incoming{User: c.Username, MayCommand: c.Role == roleOperator, ResponseTopic: msg.ResponseTopic, Correlation: msg.CorrelationData}
	in.Command, in.Bad = messages.DecodeCommand(msg.Payload, verb)
	return m.take(c, msg, in.Bad, in.Command.RequestID, func() (bool, error) { return m.loop.Command(m.handling, in) },
		func() []dispatch.Message { return dispatch.Unavailable(in) })
}

// nodeCommand takes one about a node.
func (m *Manager) nodeCommand(c broker.Client, msg broker.Message, verb messages.Verb) error {
	in := dispatch.IncomingNode{User: c.Username, MayCommand: c.Role == roleOperator, ResponseTopic: msg.ResponseTopic, Correlation: msg.CorrelationData}
	in.Command, in.Bad = messages.DecodeNodeCommand(msg.Payload, verb)
	return m.take(c, msg, in.Bad, in.Command.RequestID, func() (bool, error) { return m.loop.NodeCommand(m.handling, in) },
		func() []dispatch.Message { return dispatch.UnavailableNode(in) })
}

// guestCommand takes one about a guest.
func (m *Manager) guestCommand(c broker.Client, msg broker.Message, verb messages.Verb) error {
	in := dispatch.IncomingGuest{User: c.Username, MayCommand: c.Role == roleOperator, ResponseTopic: msg.ResponseTopic, Correlation: msg.CorrelationData}
	in.Command, in.Bad = messages.DecodeGuestCommand(msg.Payload, verb)
	return m.take(c, msg, in.Bad, in.Command.RequestID, func() (bool, error) { return m.loop.GuestCommand(m.handling, in) },
		func() []dispatch.Message { return dispatch.UnavailableGuest(in) })
}

// take hands a command to the loop and returns once it is durable or refused: the PUBACK follows. bad is what is wrong with its payload.
// unavailable makes the answer to one that the loop could not write.
func (m *Manager) take(c broker.Client, msg broker.Message, bad error, requestID string, hand func() (allowed bool, err error),
	unavailable func() []dispatch.Message) error {
	if msg.Will {
		return fmt.Errorf("%w: a last will cannot command", broker.ErrRefused)
	}
	if err := responseTopic(msg); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrBadPayload, err)
	}
	if bad != nil {
		m.warnBad(c, msg.Topic, bad)
	}
	if err := m.rights.ownResults(c, requestID, msg.ResponseTopic); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	switch allowed, err := hand(); {
	case errors.Is(err, dispatch.ErrUnavailable):
		answers := unavailable()
		for _, a := range answers {
			m.publish(a)
		}
		if len(answers) == 0 {
			return err // nobody to tell: no acknowledgement, so that the client sends it again
		}
		return fmt.Errorf("%w: %w", broker.ErrRefused, err)
	case err != nil:
		return err
	case !allowed:
		return fmt.Errorf("%w: this client may not command", broker.ErrRefused)
	}
	return nil
}

// netStatus lets through what clients can read: it stays retained.
func (m *Manager) netStatus(c broker.Client, msg broker.Message) error {
	if len(msg.Payload) == 0 {
		return nil // cleared
	}
	var s messages.NetStatus
	if err := messages.Decode(msg.Payload, &s); err != nil {
		return m.badPayload(c, msg.Topic, err)
	}
	return nil
}

// traceRequest lets through what a node can answer.
func (m *Manager) traceRequest(c broker.Client, msg broker.Message) error {
	var r messages.TraceRequest
	if err := messages.Decode(msg.Payload, &r); err != nil {
		return m.badPayload(c, msg.Topic, err)
	}
	return nil
}

// badPayload tells the sender, and the log.
func (m *Manager) badPayload(c broker.Client, topic string, err error) error {
	m.warnBad(c, topic, err)
	return fmt.Errorf("%w: %w", broker.ErrBadPayload, err)
}

// warnBad says in the log once a while for each sender that its payloads are bad. A node is known by its id and any other client by its
// address: client ids and user names can be made up without end.
func (m *Manager) warnBad(c broker.Client, topic string, err error) {
	sender := c.Username
	if c.Role != roleNode {
		if sender, _, _ = net.SplitHostPort(c.Remote); sender == "" {
			sender = c.Remote
		}
	}
	if n, say := m.warned.count(c.Role + " " + sender); say {
		m.log.Warn("bad payload dropped", "role", c.Role, "sender", sender, "topic", topic, "count", n, "err", err)
	}
}

func (m *Manager) onDisconnect(c broker.Client) {
	if c.Role == roleNode {
		m.loop.Disconnected(m.handling, messages.NodeID(c.Username), c.Value)
	}
}

// warnEvery is how often one sender's bad payloads are said in the log.
const warnEvery = time.Minute

// warnings counts bad payloads by sender.
type warnings struct {
	mu   sync.Mutex // guards what follows
	seen map[string]*warning
}

type warning struct {
	count int
	said  time.Time
}

// count adds one to a sender's count and reports whether to say it.
func (w *warnings) count(sender string) (n int, say bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil || len(w.seen) > 10_000 { // senders are many where somebody makes them up: start over
		w.seen = map[string]*warning{}
	}
	s := w.seen[sender]
	if s == nil {
		s = &warning{}
		w.seen[sender] = s
	}
	s.count++
	if time.Since(s.said) < warnEvery {
		return s.count, false
	}
	s.said = time.Now()
	return s.count, true
}
