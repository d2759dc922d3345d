package broker

import (
	"container/list"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

var (
	errBusy     = errors.New("too many clients")
	errTakeover = errors.New("the older connection of this client id does not end")
)

// session is one client from its CONNECT on. Its fields belong to the goroutine that reads its connection, except where noted.
type session struct {
	b        *Broker
	wire     *wire
	core     *mqtt.Client
	listener string
	tls      *tls.ConnectionState

	client    Client // not changed after claim
	box       *outbox
	will      *message
	willDelay time.Duration
	inbound   map[uint16]struct{} // QoS 2 publishes that wait for their PUBREL
	asked     []request           // the filters of the SUBSCRIBE in hand
	owed      []owed              // retained messages that are still to be sent, in order of the subscriptions
	farewell  bool                // a DISCONNECT came that drops the will
	admitted  bool
	panicked  bool
	window    uint16 // MQTT 5's Receive Maximum, 0: none

	counted atomic.Bool // among Broker.pending

	v5   atomic.Bool   // set when a client of MQTT 5 is told that it is admitted
	done chan struct{} // closed once all of the session's end is over

	// Guarded by Broker.mu.
	place  *list.Element // in Broker.silent, nil: not there
	parked bool          // the client is away and its session is kept
	until  time.Time     // parked: when it ends
	willAt time.Time     // parked: when the will goes out, zero if there is none
}

// request is one filter of a SUBSCRIBE.
type request struct {
	sub     packets.Subscription
	inner   string
	existed bool
	full    bool
	granted bool
}

// claim makes s the only session of its client id. An older connection is ended first, and all that follows from its end, its
// will above all, is over when claim returns: else an old "offline" would overtake the new "online".
func (b *Broker) claim(s *session, clean bool) error {
	timeout := time.NewTimer(b.cfg.ConnectTimeout)
	defer timeout.Stop()
	for {
		c, err := b.tryClaim(s, clean)
		if err != nil {
			return err
		}
		if c.taken {
			c.old.succeed(clean)
			return nil
		}
		c.old.end(packets.ErrSessionTakenOver)
		select {
		case <-c.done:
		case <-timeout.C:
			return errTakeover
		case <-b.stopping:
			return ErrClosed
		}
	}
}

// claimed is the outcome of tryClaim.
type claimed struct {
	taken bool
	old   *session        // taken: the parked one before, or nil; else the one that is in the way
	done  <-chan struct{} // not taken: closed when old is out of the way
}

// tryClaim enters s under its id. A connected session of that id keeps the place, a parked one loses it.
func (b *Broker) tryClaim(s *session, clean bool) (claimed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.sessions[s.client.ID]
	switch {
	case b.closing:
		return claimed{}, ErrClosed
	case old != nil && !old.parked:
		return claimed{old: old, done: old.done}, nil
	case b.online >= b.cfg.MaxClients:
		return claimed{}, errBusy
	}
	if old != nil && !clean { // before s is known: deliveries use its box
		s.box, s.inbound, s.owed = old.box, old.inbound, old.owed
	}
	b.online++
	b.sessions[s.client.ID] = s
	return claimed{taken: true, old: old}, nil
}

// succeed ends a parked session that another one has replaced; the will of one that goes on is not sent.
func (s *session) succeed(clean bool) {
	switch {
	case s == nil:
	case clean:
		s.sendWill()
	default:
		s.takeWill()
	}
}

// end closes the connection; a client of MQTT 5 is told why. It may be called from any goroutine and does not block.
func (s *session) end(code packets.Code) {
	if s.v5.Load() {
		_, _ = s.wire.Write([]byte{packets.Disconnect << 4, 2, code.Code, 0})
	}
	_ = s.wire.Close()
}

// expiry is how long the session outlives its connection.
func (s *session) expiry() time.Duration {
	p := s.core.Properties
	switch {
	case p.ProtocolVersion == 5:
		return min(s.b.cfg.SessionExpiry, time.Duration(p.Props.SessionExpiryInterval)*time.Second)
	case p.Clean:
		return 0
	}
	return s.b.cfg.SessionExpiry
}

// finish runs once the connection has ended: will, OnDisconnect, and then the session is parked or forgotten.
func (s *session) finish() {
	s.box.detach()
	keep := s.expiry()
	if !s.admitted || s.panicked || !s.b.mayPark() {
		keep = 0
	}
	if keep == 0 {
		s.b.forget(s.core)
	}
	delay := min(s.willDelay, keep)
	if s.farewell || s.b.isClosing() || !s.admitted {
		s.takeWill()
	}
	if delay == 0 {
		s.sendWill()
	}
	if s.admitted && s.b.cfg.OnDisconnect != nil {
		s.b.cfg.OnDisconnect(s.client)
	}
	s.b.park(s, keep, delay)
}

// forget takes a client out of the library. It does so itself where a connection ends well, but not after a panic or a CONNACK
// that could not be written, and never takes the filters of an expired session out of its index.
func (b *Broker) forget(cl *mqtt.Client) {
	b.core.UnsubscribeClient(cl)
	if known, ok := b.core.Clients.Get(cl.ID); ok && known == cl {
		b.core.Clients.Delete(cl.ID)
	}
}

// mayPark says whether one more session may outlive its connection. As many may be away as may be there.
func (b *Broker) mayPark() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return !b.closing && len(b.sessions)-b.online < b.cfg.MaxClients
}

// park keeps a session whose client is away for that long, or forgets it.
func (b *Broker) park(s *session, keep, willDelay time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer close(s.done)
	b.online--
	if keep == 0 {
		delete(b.sessions, s.client.ID)
		return
	}
	now := time.Now()
	s.parked, s.until = true, now.Add(keep)
	if s.will != nil {
		s.willAt = now.Add(willDelay)
	}
}

// takeWill removes the will and returns it.
func (s *session) takeWill() *message {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	m := s.will
	s.will = nil
	return m
}

// sendWill publishes the will, if there is one left. The right to do so is asked again: it may have been withdrawn.
func (s *session) sendWill() {
	m := s.takeWill()
	if m == nil {
		return
	}
	if m.props != nil && m.props.MessageExpiryInterval > 0 { // counts from now
		m.setProps(*m.props)
	}
	if err := s.accept(m, true); err != nil {
		s.warnWill(m, err)
		return
	}
	if err := s.b.route(m); err != nil {
		s.warnWill(m, err)
	}
}

func (s *session) warnWill(m *message, err error) {
	if unsaid, ok := s.b.wills.due(time.Now()); ok {
		s.b.log.Warn("will dropped", "client_id", clip(s.client.ID), "topic", clip(m.topic), "unsaid", unsaid, "err", err)
	}
}

// expireSessions ends parked sessions whose time is over and sends wills that were delayed.
func (b *Broker) expireSessions(now time.Time) {
	ended, wills := b.takeExpired(now)
	for _, s := range wills {
		b.guard(s, s.sendWill)
	}
	for _, s := range ended {
		b.forget(s.core)
		b.mu.Lock()
		delete(b.sessions, s.client.ID)
		b.mu.Unlock()
		close(s.done)
	}
}

// takeExpired returns what is due. A session that ends looks connected until it is forgotten, so that a client which comes
// back in that moment waits for it.
func (b *Broker) takeExpired(now time.Time) (ended, wills []*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if !s.parked {
			continue
		}
		over := now.After(s.until)
		if !s.willAt.IsZero() && (over || now.After(s.willAt)) {
			s.willAt = time.Time{}
			wills = append(wills, s)
		}
		if over {
			s.parked = false
			s.done = make(chan struct{})
			ended = append(ended, s)
		}
	}
	return ended, wills
}
