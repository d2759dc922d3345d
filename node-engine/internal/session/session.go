// Package session keeps a node in touch with its cluster manager: it registers at /init over Socket.IO, then holds one MQTT
// connection, by which assignments come in and presence, statuses, telemetry and log output go out. It must not decide about
// workloads, must not block whoever reports a status, and must not stop anything because the manager is away.
//
// The life of the one role that it plays:
//
//	registering → connecting → in session ┐
//	     ↑             ↑                  │ connection lost
//	     │             └──────────────────┤
//	     └────────────────────────────────┘ credentials refused, or no broker answers for a while
package session

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
	"skerry.internal/messages/trust"
)

// Instances is what the session hands orders to and asks about the node's instances. All methods may be called concurrently.
type Instances interface {
	// Assign and Sync return once the order is on disk and in force. A stale or repeated order is no error.
	Assign(a messages.Assignment) error
	Sync(s messages.Sync) error
	// Statuses returns the newest status of every instance, and of those gone whose last status was not acknowledged.
	Statuses() []messages.InstanceStatus
	// Acked says that the manager's broker has taken the status.
	Acked(id messages.InstanceID, seq uint64)
	// Digest describes the assignments that are held, see messages.Digest.
	Digest() (digest string, epoch, rev uint64)
	// Assignments returns those that shall run.
	Assignments() []messages.Assignment
}

// Config is what a session needs to know. Info is asked at every registration and fills in all but what proves the identity.
type Config struct {
	Manager   string         // URL, such as http://manager:10100
	Roots     *x509.CertPool // the authorities of which the manager's certificate is; nil: those of the system
	Key       ed25519.PrivateKey
	Token     string // for a manager that asks for one
	BootID    string
	KeepAlive time.Duration // of MQTT, in whole seconds; default 15s
	Info      func(ctx context.Context) messages.NodeInfo
	// Accepted is told of every Welcome before its first use. May be nil.
	Accepted func(messages.Welcome)
	// Telemetry takes one measurement. May be nil: then none is published.
	Telemetry func(ctx context.Context) messages.Telemetry
	// Overlay is the node's part in the cluster's network. May be nil: then it has none.
	Overlay Overlay
	// Transport reaches the manager; default: the network.
	Transport Transport
	// Jitter shortens a wait at random, to between a half of it and the whole; default: by chance. A simulation says how.
	Jitter func(time.Duration) time.Duration
	// Logs streams the output that the request asks for until its end or that of ctx. May be nil.
	Logs func(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error
}

// Session is a node's side of the conversation with its manager.
type Session struct {
	cfg       Config
	manager   *url.URL
	transport Transport
	instances Instances
	outbox    *Outbox
	log       *slog.Logger
	bad       *rejects
	refresh   chan struct{} // capacity 1: "register again"
	pace      pace
	admission atomic.Pointer[admission] // nil before the first registration and after refused credentials
	away      time.Time                 // since when no broker has answered; only Run's goroutine uses it
}

// pace holds the lengths of time that tests shorten.
type pace struct {
	register               time.Duration // for one registration; a manager gives a node the same
	backoffMin, backoffMax time.Duration
	lasted                 time.Duration // the least that a good session lasts, after which the next wait is a short one
	refused                time.Duration // between registrations while the manager refuses: a person has to act first
	patience               time.Duration // with brokers that do not answer, before the manager is asked for others
	again                  time.Duration // until an order that could not be applied is asked for again
	follow                 time.Duration // without renewal, until a stream of log output ends
}

func defaultPace() pace {
	return pace{
		register: 10 * time.Second, backoffMin: 200 * time.Millisecond, backoffMax: 30 * time.Second, lasted: 2 * time.Second, refused: 30 * time.Second,
		patience: 10 * time.Second, again: 10 * time.Second, follow: 10 * time.Minute,
	}
}

// New checks the configuration. The outbox is the one that statuses are put into.
func New(cfg Config, instances Instances, outbox *Outbox, log *slog.Logger) (*Session, error) {
	u, err := ManagerURL(cfg.Manager)
	if err != nil {
		return nil, err
	}
	if len(cfg.Key) != ed25519.PrivateKeySize || cfg.Info == nil {
		return nil, errors.New("session: key or info missing")
	}
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = 15 * time.Second
	}
	if cfg.KeepAlive < time.Second {
		return nil, fmt.Errorf("keep-alive %s: want at least 1s", cfg.KeepAlive)
	}
	if cfg.Transport == nil {
		cfg.Transport = network{manager: u, roots: cfg.Roots}
	}
	if cfg.Jitter == nil {
		cfg.Jitter = jitter
	}
	bad := &rejects{log: log, said: make(map[string]time.Time)}
	return &Session{cfg: cfg, manager: u, transport: cfg.Transport, instances: instances, outbox: outbox, log: log, bad: bad,
		refresh: make(chan struct{}, 1), pace: defaultPace()}, nil
}

// ManagerURL parses the address of a manager.
func ManagerURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || !isHost(u.Hostname()) {
		return nil, fmt.Errorf("manager %q: want a URL such as http://manager:10100", s)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "10100")
	}
	return u, nil
}

// isHost reports whether a URL's host can be one: url.Parse lets a second port and brackets through as parts of it, and zones that it does not write
// in a form that it reads.
func isHost(name string) bool {
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return name != "" && !strings.ContainsAny(name, ":[]")
	}
	return !strings.ContainsFunc(ip.Zone(), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// Refresh makes the node register again soon, without an interruption of its session, so that its manager learns new facts.
func (s *Session) Refresh() {
	select {
	case s.refresh <- struct{}{}:
	default:
	}
}

// Run registers, connects and comes back, until ctx ends.
func (s *Session) Run(ctx context.Context) error {
	wait := backoff{min: s.pace.backoffMin, jitter: s.cfg.Jitter}
	var said complaints
	for {
		lasted, err := s.runSession(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if lasted > 0 {
			said.clear()
		}
		lease := time.Duration(0)
		if a := s.admission.Load(); a != nil {
			lease = a.Lease.Std()
		}
		wait.within(lease, s.pace.backoffMax)
		wait.after(lasted, s.pace.lasted)
		delay := wait.next()
		if lasting(err) {
			delay = max(delay, s.pace.refused)
		}
		said.say(s.log, err, delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
}

// lasting reports whether err is a refusal that only a person can mend.
func lasting(err error) bool {
	r, ok := errors.AsType[*messages.Refusal](err)
	return ok && r.Code != messages.RefusedBusy && r.Code != messages.RefusedTimeout
}

// runSession is one attempt: register where that is due, connect, and stay as long as the connection does. It returns how long
// the session lasted.
func (s *Session) runSession(ctx context.Context) (time.Duration, error) {
	a := s.admission.Load()
	if a == nil || (!s.away.IsZero() && time.Since(s.away) > s.pace.patience) {
		fresh, err := s.register(ctx)
		switch {
		case err == nil:
			s.away = time.Time{}
			s.admission.Store(fresh)
			a = fresh
		case a == nil:
			return 0, err
		default: // the old credentials may still be good when the broker comes back
			s.log.Debug("not registered again", "err", err)
		}
	}
	in := newInbox(a.ID, s.bad)
	w, err := s.connect(ctx, a, in)
	if err != nil {
		return 0, err
	}
	s.away = time.Time{}
	start := time.Now()
	err = s.serve(ctx, w, a.ID, in)
	if ctx.Err() != nil {
		w.part(ctx, s.log, topic(a.ID, messages.PresenceTopic), s.presence(false))
	} else {
		w.Close()
	}
	return time.Since(start), fmt.Errorf("session ended: %w", err)
}

// connect tries the brokers in order. Refused credentials end the admission, so that the next attempt registers.
func (s *Session) connect(ctx context.Context, a *admission, in *inbox) (*wire, error) {
	var errs []error
	for _, broker := range a.brokers {
		w, err := s.openWire(ctx, a, broker, in)
		if err == nil {
			return w, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if errors.Is(err, ErrCredentials) {
		s.admission.Store(nil)
	}
	if s.away.IsZero() {
		s.away = time.Now()
	}
	return nil, err
}

// serve is the session itself. It returns the reason of its end once all that it started has ended.
func (s *Session) serve(ctx context.Context, w *wire, node messages.NodeID, in *inbox) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { // first, so that a loss during the greeting ends it at once
		select {
		case <-w.Lost():
			return fmt.Errorf("connection lost: %w", w.Cause())
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	g.Go(func() error {
		if err := s.greet(ctx, w, node); err != nil {
			return err
		}
		g.Go(func() error { return s.apply(ctx, w, node, in, g) })
		g.Go(func() error { return s.sendStatuses(ctx, w, node) })
		g.Go(func() error { return s.sendTelemetry(ctx, w, node) })
		g.Go(func() error { return s.talk(ctx, w, node) })
		g.Go(func() error { return s.keepRegistered(ctx, node) })
		return nil
	})
	return g.Wait()
}

// greet listens first and says that the node is there only then, so that the answer cannot be missed.
func (s *Session) greet(ctx context.Context, w *wire, node messages.NodeID) error {
	if err := w.subscribe(ctx, messages.NodeControlFilter(node)); err != nil {
		return err
	}
	if err := s.hearNetwork(ctx, w, node); err != nil {
		return err
	}
	presence := s.presence(true)
	if err := w.publish(ctx, topic(node, messages.PresenceTopic), 1, true, presence); err != nil {
		return err
	}
	s.outbox.Again(s.instances.Statuses())
	s.log.Info("in session", "node_id", node, "addr", w.addr, "epoch", presence.Epoch, "rev", presence.Rev)
	return nil
}

func (s *Session) presence(online bool) *messages.Presence {
	p := &messages.Presence{Online: online, BootID: s.cfg.BootID}
	p.Digest, p.Epoch, p.Rev = s.instances.Digest()
	return p
}

// keepRegistered registers again when asked to. The session goes on meanwhile and afterwards, unless the manager now gives the
// node another name.
func (s *Session) keepRegistered(ctx context.Context, node messages.NodeID) error {
	for {
		select {
		case <-s.refresh:
		case <-ctx.Done():
			return ctx.Err()
		}
		fresh, err := s.register(ctx)
		switch {
		case err == nil && fresh.ID != node:
			s.admission.Store(fresh)
			return fmt.Errorf("the manager calls this node %s now", fresh.ID)
		case err == nil:
			s.admission.Store(fresh)
		default:
			s.log.Warn("new facts about this node not told", "err", err)
			s.Refresh()
			select {
			case <-time.After(s.pace.refused):
			case <-ctx.Done():
			}
		}
	}
}

// complaints keeps the log of a node short whose manager is away for days: the first error of a kind is said at its level, and
// then once in ten minutes.
type complaints struct {
	kind string
	at   time.Time
}

func (c *complaints) clear() { *c = complaints{} }

func (c *complaints) say(log *slog.Logger, err error, delay time.Duration) {
	kind, _, _ := strings.Cut(err.Error(), ": ") // what comes later may hold ports that change
	if p, ok := errors.AsType[*trust.Problem](err); ok {
		kind += p.Reason // a person has to mend it, and shall not wait until it is said
	}
	level := slog.LevelWarn
	if lasting(err) {
		kind, level = err.Error(), slog.LevelError
	}
	if kind == c.kind && (lasting(err) || time.Since(c.at) < 10*time.Minute) {
		level = slog.LevelDebug
	} else {
		c.kind, c.at = kind, time.Now()
	}
	log.Log(context.Background(), level, "not in session", "err", err, "next_try", delay.Round(time.Millisecond).String())
}
