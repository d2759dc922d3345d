package broker

import (
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// route delivers m to all who may have it, and keeps it if it is to be retained. It never blocks on a client. Retained messages
// pass one by one, so that what is kept is what was delivered last.
func (b *Broker) route(m *message) error {
	if !m.retain {
		b.fanOut(m)
		return nil
	}
	b.retainMu.Lock()
	defer b.retainMu.Unlock()
	if err := b.keepLocked(m); err != nil {
		return err
	}
	b.fanOut(m)
	m.frames = nil // it is kept, and seldom read again
	return nil
}

// keepLocked stores m, or clears its topic where the payload is empty.
func (b *Broker) keepLocked(m *message) error {
	size, count := b.sizeWithLocked(m), int64(0)
	if b.retained.get(m.topic) != nil {
		count--
	}
	if len(m.payload) == 0 {
		size -= sizeBranch * b.retained.remove(m.topic)
	} else {
		if size > b.cfg.MaxRetained {
			return ErrRetainedFull
		}
		b.retained.put(m)
		count++
	}
	delete(b.expiring, m.topic)
	if len(m.payload) > 0 && !m.expires.IsZero() {
		b.expiring[m.topic] = m
	}
	b.retainedBytes = size
	b.counters.retained.Add(count)
	return nil
}

// sizeWithLocked is what all retained messages count for once m is taken in. One without payload only takes away.
func (b *Broker) sizeWithLocked(m *message) int {
	size := b.retainedBytes
	if old := b.retained.get(m.topic); old != nil {
		size -= old.size()
	}
	if len(m.payload) > 0 {
		size += m.size() + sizeBranch*b.retained.missing(m.topic)
	}
	return size
}

// fits says whether m could be retained now; asked before the owner is, so that a refusal comes first.
func (b *Broker) fits(m *message) bool {
	if !m.retain || len(m.payload) == 0 {
		return true
	}
	b.retainMu.Lock()
	defer b.retainMu.Unlock()
	return b.sizeWithLocked(m) <= b.cfg.MaxRetained
}

// fanOut gives m to everybody who subscribed to it and may have it.
func (b *Broker) fanOut(m *message) {
	subs := b.core.Topics.Subscribers(m.topic)
	for id, sub := range subs.Subscriptions {
		if s := b.lookup(id); s != nil {
			s.deliver(m, sub)
		}
	}
	for filter, group := range subs.Shared {
		b.deliverShared(m, filter, group)
	}
}

// deliverShared gives m to one member of a group: one that is there, if there is any, and that may have it. The order in which
// Go walks a map spreads the load.
func (b *Broker) deliverShared(m *message, filter string, group map[string]packets.Subscription) {
	if inner, err := validFilter(filter); err != nil || hidden(m.topic, inner) {
		return
	}
	var away *session
	for id, sub := range group {
		s := b.lookup(id)
		if s == nil || !s.mayHave(m.topic) {
			continue
		}
		if s.box.ready() {
			s.deliver(m, sub)
			return
		}
		away = s
	}
	if away != nil {
		away.deliver(m, group[away.client.ID])
	}
}

// hidden says whether a filter that begins with a wildcard would show a topic that begins with $.
func hidden(topic, filter string) bool {
	return topic[0] == '$' && strings.ContainsAny(filter[:1], "+#")
}

// mayHave asks the owner whether this client may be sent the topic.
func (s *session) mayHave(topic string) bool { return s.b.cfg.Allow(s.client, Deliver, topic) }

// deliver sends m to this session as one of its subscriptions asks.
func (s *session) deliver(m *message, sub packets.Subscription) {
	if sub.NoLocal && m.origin == s.client.ID && m.origin != "" {
		return
	}
	if !s.mayHave(m.topic) {
		s.b.counters.withheld.Add(1)
		return
	}
	s.box.send(m, encoding{
		qos:    min(m.qos, sub.Qos),
		retain: m.retain && (sub.FwdRetainedFlag || sub.RetainAsPublished && s.client.Protocol == 5),
		subIDs: subIDs(sub),
	})
}

// subIDs returns the subscription identifiers of MQTT 5 that led here.
func subIDs(sub packets.Subscription) []int {
	var ids []int
	for _, id := range sub.Identifiers {
		if id > 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 && sub.Identifier > 0 {
		ids = append(ids, sub.Identifier)
	}
	return ids
}

// owed is what a client is still to be sent of what was retained when it subscribed. It notes topics, no payloads, and looks them up
// at its turn: a session holds one such list at most.
type owed struct {
	filter string
	found  bool
	topics []string // what is left, once found
}

// owe notes that the client is to be sent what is retained under a filter, from the beginning where that was under way.
func (s *session) owe(filter string) {
	s.owed = slices.DeleteFunc(s.owed, func(o owed) bool { return o.filter == filter })
	s.owed = append(s.owed, owed{filter: filter})
}

// forgive drops what is owed for filters that the client no longer holds.
func (s *session) forgive() {
	s.owed = slices.DeleteFunc(s.owed, func(o owed) bool {
		_, held := s.core.State.Subscriptions.Get(o.filter)
		return !held
	})
}

// sendOwed sends of what is owed as much as the outbox has room for; each acknowledgement, which alone makes room there, calls it
// again. It runs on the subscriber's own goroutine and waits for its own wire alone. Once that has closed, the rest stays owed to
// the session.
func (s *session) sendOwed() {
	for len(s.owed) > 0 && s.box.room() {
		o := &s.owed[0]
		if !o.found {
			o.found, o.topics = true, s.b.retainedUnder(o.filter)
		}
		if len(o.topics) == 0 {
			s.owed = slices.Delete(s.owed, 0, 1)
			continue
		}
		if !s.wire.awaitRoom() {
			return
		}
		topic := o.topics[0]
		o.topics = o.topics[1:]
		if sub, ok := s.core.State.Subscriptions.Get(o.filter); ok {
			s.b.deliverRetained(s, sub, topic)
		}
	}
}

// deliverRetained sends what is retained at a topic. It is looked up under the lock under which it is published: an old value cannot
// follow a new one.
func (b *Broker) deliverRetained(s *session, sub packets.Subscription, topic string) {
	sub.FwdRetainedFlag = true
	b.retainMu.Lock()
	defer b.retainMu.Unlock()
	if m := b.retained.get(topic); m != nil && !m.expired(time.Now()) {
		s.deliver(m, sub)
		m.frames = nil
	}
}

// retainedUnder finds the retained topics of a filter.
func (b *Broker) retainedUnder(filter string) []string {
	b.retainMu.Lock()
	defer b.retainMu.Unlock()
	var topics []string
	b.retained.under(filter, func(m *message) {
		if !hidden(m.topic, filter) {
			topics = append(topics, m.topic)
		}
	})
	return topics
}

// expireRetained forgets retained messages whose time is over.
func (b *Broker) expireRetained(now time.Time) {
	b.retainMu.Lock()
	defer b.retainMu.Unlock()
	for topic, m := range b.expiring {
		if m.expired(now) {
			_ = b.keepLocked(&message{topic: topic, retain: true})
		}
	}
}
