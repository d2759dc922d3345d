package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// ErrUnavailable says that the store does not take changes at present; nothing was changed.
var ErrUnavailable = errors.New("the manager cannot write its state to disk")

// errEnded is what a caller gets that still waits when the loop has ended.
var errEnded = errors.New("the manager is ending")

// Limits of the loop.
const (
	// batch is how many events share one commit: an fsync costs milliseconds, an event microseconds.
	batch = 512
	// queue is how many events wait until the connections that bring more are held up.
	queue = 4096
	// statusEvery bounds how often retained statuses are published; in a burst each job says only where it stands.
	statusEvery = 50 * time.Millisecond
	// summaryEvery bounds how often the cluster's status is: it counts every instance.
	summaryEvery = time.Second
	// retryStore is how long a store that has failed is left alone.
	retryStore = time.Second
)

// Loop owns a Core in a running manager: one goroutine that takes events, commits what they have changed, and only then publishes
// and answers.
type Loop struct {
	core    *Core
	store   store.Store
	publish func(Message)
	events  chan event
	opened  chan struct{} // closed when what was loaded has been published
	ended   chan struct{} // closed when Run has ended: nobody shall wait any more
	log     *slog.Logger

	retryAt time.Time // after a failed commit
}

// event is a call of the core; done, where not nil, gets nil once its changes are durable. One that only reads needs no store.
type event struct {
	call  func(c *Core, now time.Time)
	done  chan error
	reads bool
}

// NewLoop loads the state. publish is called by Run and must not block.
func NewLoop(ctx context.Context, cfg Config, s store.Store, publish func(Message), log *slog.Logger) (*Loop, error) {
	l := &Loop{store: s, publish: publish, events: make(chan event, queue), opened: make(chan struct{}), ended: make(chan struct{}), log: log}
	st, err := l.load(ctx)
	if err != nil {
		return nil, err
	}
	l.core = NewCore(cfg, st, time.Now(), log)
	return l, l.restoreRequests(ctx)
}

func (l *Loop) load(ctx context.Context) (*cluster.State, error) {
	st, damaged, err := cluster.Load(ctx, l.store)
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	for _, d := range damaged {
		l.log.Error("damaged record put aside", "err", d)
	}
	return st, nil
}

func (l *Loop) restoreRequests(ctx context.Context) error {
	return l.store.Load(ctx, func(b store.Bucket, key string, value []byte) error {
		if b == store.Requests {
			if err := l.core.RestoreRequest(key, value); err != nil {
				l.log.Warn("damaged request dropped", "err", err)
			}
		}
		return nil
	})
}

// Run handles events until ctx ends. The error is that of a store that cannot be read any more.
func (l *Loop) Run(ctx context.Context) error {
	defer close(l.ended)
	next, err := l.turn(ctx, nil) // plan and publish what was loaded
	close(l.opened)
	if err != nil {
		return err
	}
	timer := time.NewTimer(next)
	defer timer.Stop()
	for {
		var pending []event
		select {
		case <-ctx.Done():
			return nil
		case e := <-l.events:
			pending = l.drain(e)
		case <-timer.C:
		}
		next, err := l.turn(ctx, pending)
		if err != nil {
			return err
		}
		timer.Reset(next)
	}
}

// Opened is closed once Run has published all that was loaded, or has found that the store takes no changes at present: who connects from
// then on finds the statuses retained.
func (l *Loop) Opened() <-chan struct{} { return l.opened }

// drain takes what waits behind e, up to a batch.
func (l *Loop) drain(e event) []event {
	pending := []event{e}
	for len(pending) < batch {
		select {
		case e := <-l.events:
			pending = append(pending, e)
		default:
			return pending
		}
	}
	return pending
}

func (e event) finish(err error) {
	if e.done != nil {
		e.done <- err // has room for one
	}
}

// turn handles a batch and returns how long nothing is to be done after it.
func (l *Loop) turn(ctx context.Context, pending []event) (time.Duration, error) {
	now := time.Now()
	if wait := l.retryAt.Sub(now); wait > 0 {
		l.hold(pending, now)
		return wait, nil
	}
	for _, e := range pending {
		e.call(l.core, now)
	}
	wake := l.core.Advance(now)
	if at := l.core.PublishAt(); !at.IsZero() && !at.After(now) {
		l.core.Publish(now)
	}
	if err := l.commit(ctx, now); err != nil {
		for _, e := range pending {
			e.finish(fmt.Errorf("%w: %w", ErrUnavailable, err))
		}
		return retryStore, l.reload(ctx)
	}
	for _, m := range l.core.TakeMessages() {
		l.publish(m)
	}
	for _, e := range pending {
		e.finish(nil)
	}
	return l.pause(wake), nil
}

// hold handles events while the store is left alone: what reports and what reads is taken, what is to be durable is refused. Nothing is
// sent: it may speak of what is not on disk.
func (l *Loop) hold(pending []event, now time.Time) {
	for _, e := range pending {
		if e.done != nil && !e.reads {
			e.finish(ErrUnavailable)
			continue
		}
		e.call(l.core, now)
		e.finish(nil)
	}
}

func (l *Loop) commit(ctx context.Context, now time.Time) error {
	changes := l.core.State().TakeChanges()
	if len(changes) == 0 {
		return nil
	}
	err := l.store.Commit(ctx, changes)
	if err != nil {
		l.retryAt = now.Add(retryStore)
		l.log.Error("state not written, going back to what is on disk", "err", err)
	}
	return err
}

// reload goes back to what is on disk after a commit that failed.
func (l *Loop) reload(ctx context.Context) error {
	st, err := l.load(ctx)
	if err != nil {
		return err
	}
	l.core.Reload(st, time.Now())
	return l.restoreRequests(ctx)
}

// pause returns how long the loop may sleep.
func (l *Loop) pause(wake time.Time) time.Duration {
	d := time.Minute // requests expire
	if !wake.IsZero() {
		d = min(d, time.Until(wake))
	}
	if at := l.core.PublishAt(); !at.IsZero() {
		d = min(d, time.Until(at))
	}
	return max(d, 0)
}

// do runs e in the loop and waits until its changes are durable. Where ctx ends first, e may run later: what it writes to must not be
// read then.
func (l *Loop) do(ctx context.Context, e event) error {
	e.done = make(chan error, 1)
	select {
	case l.events <- e:
	case <-l.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
	}
	select {
	case err := <-e.done: // it was among the last
		return err
	default:
		return errEnded
	}
}

// post runs call in the loop, in order, and waits only while the queue is full.
func (l *Loop) post(ctx context.Context, call func(c *Core, now time.Time)) {
	select {
	case l.events <- event{call: call}:
	case <-l.ended:
	case <-ctx.Done():
	}
}

// Command takes a command and returns once it is durable or refused. allowed is false where the client lacks the right. Where the
// error is ErrUnavailable nothing was changed, and the caller says so.
func (l *Loop) Command(ctx context.Context, in Incoming) (bool, error) {
	allowed := false
	if err := l.do(ctx, event{call: func(c *Core, now time.Time) { allowed = c.Command(in, now) }}); err != nil {
		return false, err
	}
	return allowed, nil
}

// Unavailable returns the messages that tell a client that its command was not taken.
func Unavailable(in Incoming) []Message {
	op := in.op(time.Now())
	c := &Core{now: op.Since}
	return replies(op, c.result(op, in.Command.Job.Name, refuse(messages.Unavailable, "%v: try again later", ErrUnavailable), 0))
}

// Register admits a node and returns once that is durable.
func (l *Loop) Register(ctx context.Context, info messages.NodeInfo, proved bool) (messages.Welcome, error) {
	var w messages.Welcome
	var refused error
	if err := l.do(ctx, event{call: func(c *Core, now time.Time) { w, refused = c.Register(info, proved, now) }}); err != nil {
		return messages.Welcome{}, err
	}
	return w, refused
}

// Admits reports whether the password is the one that the node was given last.
func (l *Loop) Admits(ctx context.Context, id messages.NodeID, password []byte) bool {
	ok := false
	err := l.do(ctx, event{reads: true, call: func(c *Core, _ time.Time) { ok = c.Admits(id, password) }})
	return (err == nil || errors.Is(err, ErrUnavailable)) && ok
}

// Presence hands a node's presence to the core.
func (l *Loop) Presence(ctx context.Context, id messages.NodeID, link any, p messages.Presence) {
	l.post(ctx, func(c *Core, now time.Time) { c.Presence(id, link, p, now) })
}

// Disconnected says that a node's connection has ended.
func (l *Loop) Disconnected(ctx context.Context, id messages.NodeID, link any) {
	l.post(ctx, func(c *Core, now time.Time) { c.Disconnected(id, link, now) })
}

// Status hands the status of an instance to the core.
func (l *Loop) Status(ctx context.Context, id messages.NodeID, s messages.InstanceStatus) {
	l.post(ctx, func(c *Core, now time.Time) { c.Status(id, s, now) })
}
