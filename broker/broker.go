package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Broker is one MQTT broker. It is made by New and used once.
type Broker struct {
	cfg       Config
	log       *slog.Logger
	core      *mqtt.Server
	listeners []listener
	begun     chan struct{} // closed by Run
	stopping  chan struct{} // closed when Run is about to end
	counters  counters
	// Of clients that were not admitted, and of wills that were dropped.
	turnedAway, wills say
	pending           atomic.Int64   // connections that are not admitted
	conns             sync.WaitGroup // one for each connection

	mu       sync.RWMutex // guards what follows, and what session says
	sessions map[string]*session
	wires    map[*wire]struct{}
	silent   list.List // of *session: those that have sent no CONNECT yet, oldest first
	online   int
	serving  bool
	closing  bool

	retainMu      sync.Mutex // guards what follows; orders retained messages
	retained      tree
	expiring      map[string]*message // those of the retained messages that end one day
	retainedBytes int
}

// New checks cfg and binds its listeners. It starts nothing; a Broker that was made must be Run, also to release its listeners.
func New(cfg Config, log *slog.Logger) (*Broker, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("broker configuration: %w", err)
	}
	b := &Broker{
		cfg: cfg, log: log, begun: make(chan struct{}), stopping: make(chan struct{}),
		sessions: map[string]*session{}, wires: map[*wire]struct{}{}, expiring: map[string]*message{},
	}
	b.core = newCore(cfg)
	if err := b.core.AddHook(&hooks{b: b}, nil); err != nil {
		return nil, fmt.Errorf("attach to the library: %w", err)
	}
	if err := b.listen(); err != nil {
		return nil, err
	}
	return b, nil
}

// newCore makes the library's server. It is never served: its event loop, listeners, $SYS and storage stay unused, and what it
// logs (whole packets, passwords too) goes nowhere.
func newCore(cfg Config) *mqtt.Server {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClients = math.MaxInt64   // ours counts without those that are taken over
	c.MaximumClientWritesPending = 1   // unused; its default costs 64 KiB a connection
	c.MaximumMessageExpiryInterval = 0 // else what is retained is lost after a day
	c.MaximumSessionExpiryInterval = uint32(min(cfg.SessionExpiry/time.Second, math.MaxUint32))
	c.MaximumPacketSize = uint32(cfg.MaxPacket)
	c.ReceiveMaximum = receiveMax
	c.TopicAliasMaximum = 0
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return mqtt.New(&mqtt.Options{Capabilities: c, Logger: slog.New(slog.DiscardHandler)})
}

// Run serves until ctx ends, and returns once all that it started has ended. Wills are not sent for the clients that lose
// their connection by that: it is not they who leave.
func (b *Broker) Run(ctx context.Context) error {
	b.mu.Lock()
	if b.serving || b.closing {
		b.mu.Unlock()
		return errors.New("broker: run twice")
	}
	b.serving = true
	close(b.begun)
	b.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range b.listeners {
		wg.Go(func() { b.accept(ctx, l) })
	}
	wg.Go(func() { b.keepHouse(ctx) })
	<-ctx.Done()
	b.shutDown()
	wg.Wait()
	b.conns.Wait()
	return nil
}

// shutDown closes the listeners and every connection.
func (b *Broker) shutDown() {
	close(b.stopping)
	for _, l := range b.listeners {
		_ = l.Close()
	}
	b.mu.Lock()
	b.closing = true
	open := make([]*wire, 0, len(b.wires))
	for w := range b.wires {
		open = append(open, w)
	}
	b.mu.Unlock()
	for _, w := range open {
		w.session.end(packets.ErrServerShuttingDown)
	}
}

// lookup returns the session of a client id, nil if there is none.
func (b *Broker) lookup(id string) *session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.sessions[id]
}

func (b *Broker) isClosing() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.closing
}

// keepHouse expires what is to expire and publishes $SYS.
func (b *Broker) keepHouse(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sys := newSys(b)
	for {
		sys.publish(time.Now())
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			b.expireSessions(now)
			b.expireRetained(now)
		}
	}
}

// Addrs returns the addresses of the listeners, in the order of Config.Listeners.
func (b *Broker) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(b.listeners))
	for i, l := range b.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Publish sends m to its subscribers from the owner, whom no right binds, and keeps or clears it where it is retained. It does
// not wait for any subscriber. Before Run it only retains; once Run is ending it returns ErrClosed.
func (b *Broker) Publish(m Message) error {
	if err := validTopic(m.Topic); err != nil {
		return fmt.Errorf("publish %q: %w", m.Topic, err)
	}
	switch {
	case m.QoS > 2:
		return fmt.Errorf("publish %s: QoS %d", m.Topic, m.QoS)
	case len(m.Payload) > b.cfg.MaxPacket:
		return fmt.Errorf("publish %s: payload of %d bytes, the limit is %d", m.Topic, len(m.Payload), b.cfg.MaxPacket)
	case len(m.CorrelationData) > math.MaxUint16:
		return fmt.Errorf("publish %s: correlation data of %d bytes", m.Topic, len(m.CorrelationData))
	case m.ResponseTopic != "" && validTopic(m.ResponseTopic) != nil:
		return fmt.Errorf("publish %s: response topic %q: %w", m.Topic, m.ResponseTopic, validTopic(m.ResponseTopic))
	case b.isClosing():
		return fmt.Errorf("publish %s: %w", m.Topic, ErrClosed)
	}
	own := &message{topic: m.Topic, payload: append([]byte(nil), m.Payload...), qos: m.QoS, retain: m.Retain}
	own.setProps(packets.Properties{
		ResponseTopic: m.ResponseTopic, CorrelationData: append([]byte(nil), m.CorrelationData...),
	})
	if err := b.route(own); err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	return nil
}

// Disconnect ends the connection of a client, if it has one. Its will is sent. It does not wait.
func (b *Broker) Disconnect(clientID string) {
	b.mu.RLock()
	s := b.sessions[clientID]
	here := s != nil && !s.parked
	b.mu.RUnlock()
	if here {
		s.end(code(0x98, "administrative action"))
	}
}

func code(c byte, reason string) packets.Code { return packets.Code{Code: c, Reason: reason} }
