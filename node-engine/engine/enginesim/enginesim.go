// Package enginesim wires a node engine for simulations: the real store, instances and session, on a driver and a transport that the
// simulation brings. It opens no socket and measures nothing, so that it may run in a testing/synctest bubble. It must not decide
// anything that package engine does not.
package enginesim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
	"skerry.internal/node-engine/internal/instance"
	"skerry.internal/node-engine/internal/session"
	"skerry.internal/node-engine/internal/store"
)

// What crosses the seams of an engine.
type (
	// Transport is how the engine reaches its manager.
	Transport = session.Transport
	// Login is what a node says of itself to a broker.
	Login = session.Login
	// Connection is one MQTT connection.
	Connection = session.Connection
	// Receipt tells how a packet fared.
	Receipt = session.Receipt
	// Instances is what the session hands orders to.
	Instances = session.Instances
	// Driver runs workloads in memory. It outlives engines, as containers do.
	Driver = fake.Driver
	// Technology is what an engine asks to run workloads: a Driver, or what stands before one.
	Technology = driver.Driver
	// Spec is what a driver is asked to run.
	Spec = driver.Spec
	// Workload is what a driver holds.
	Workload = driver.Workload
	// Exit says how a workload ended.
	Exit = driver.Exit
)

// The errors that a simulation answers with.
var (
	ErrCredentials   = session.ErrCredentials
	ErrImageNotFound = driver.ErrImageNotFound
)

// Config is what an Engine needs.
type Config struct {
	Name      messages.NodeID
	Data      string // directory of what survives
	BootID    string
	Driver    Technology
	Transport Transport
	Info      messages.NodeInfo
	// Jitter says how chance shortens a wait.
	Jitter func(time.Duration) time.Duration
	// Report takes each status in place of the outbox; Send passes it on. It may end the goroutine (runtime.Goexit): a crash right there.
	Report func(messages.InstanceStatus)
	// Write stands around each write of the instances: do makes it durable. It may end the goroutine before that and after it: a crash right there.
	Write func(what string, do func() error) error
	// Between, where set, is put between the session and the instances.
	Between func(Instances) Instances
}

// Engine is one life of a node engine.
type Engine struct {
	store   *store.Store
	set     *instance.Set
	outbox  *session.Outbox
	session *session.Session
}

// disk is a store whose writes are seen.
type disk struct {
	*store.Store
	write func(what string, do func() error) error
}

// Save makes the record durable.
func (d disk) Save(r store.Record) error {
	what := fmt.Sprintf("the record of %s seq %d rev %d", r.Assignment.Instance, r.Status.Seq, r.Assignment.Rev)
	return d.write(what, func() error { return d.Store.Save(r) })
}

// Delete removes the record for good.
func (d disk) Delete(id messages.InstanceID) error {
	return d.write("the end of the record of "+string(id), func() error { return d.Store.Delete(id) })
}

// Put makes a named value durable.
func (d disk) Put(name string, v any) error {
	return d.write("the "+name+" value", func() error { return d.Store.Put(name, v) })
}

// New opens the data directory and starts nothing. An Engine that was made must be Run.
func New(cfg Config, log *slog.Logger) (*Engine, error) {
	st, err := store.Open(cfg.Data, log)
	if err != nil {
		return nil, err
	}
	e := &Engine{store: st, outbox: session.NewOutbox()}
	if err := e.build(cfg, log); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return e, nil
}

func (e *Engine) build(cfg Config, log *slog.Logger) error {
	key, err := e.store.Identity()
	if err != nil {
		return err
	}
	e.set, err = instance.New(instance.Config{Drivers: map[messages.Technology]driver.Driver{messages.Docker: cfg.Driver},
		Store: disk{e.store, cfg.Write}, Report: cfg.Report, BootID: cfg.BootID}, log)
	if err != nil {
		return fmt.Errorf("instances: %w", err)
	}
	var instances Instances = e.set
	if cfg.Between != nil {
		instances = cfg.Between(instances)
	}
	e.session, err = session.New(session.Config{Manager: "http://manager", Key: key, BootID: cfg.BootID, Transport: cfg.Transport, Jitter: cfg.Jitter,
		Info: func(context.Context) messages.NodeInfo { return cfg.Info }}, instances, e.outbox, log)
	return err
}

// Run keeps the instances as they shall be and the manager informed until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.set.Run(ctx) })
	g.Go(func() error { return e.session.Run(ctx) })
	return errors.Join(g.Wait(), e.store.Close())
}

// Send puts a status into the outbox.
func (e *Engine) Send(s messages.InstanceStatus) { e.outbox.Put(s) }

// Statuses returns the newest status of each instance that the node holds.
func (e *Engine) Statuses() []messages.InstanceStatus { return e.set.Statuses() }

// Digest describes the assignments that the node holds.
func (e *Engine) Digest() (digest string, epoch, rev uint64) { return e.set.Digest() }
