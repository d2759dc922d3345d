// Package managersim wires the deciding part of a cluster manager for simulations: the real loop with its core, plan, scheduler and
// leases, on a store and a network that the simulation brings. It opens no socket, so that it may run in a testing/synctest bubble. It must
// not decide anything that package manager does not.
package managersim

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/dispatch"
	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// What crosses the seams of a manager.
type (
	// Store is what survives a manager.
	Store = store.Store
	// Memory is a Store that lives as long as its value.
	Memory = store.Memory
	// Change sets or deletes one key of a Store.
	Change = store.Change
	// Bucket names a set of keys of a Store.
	Bucket = store.Bucket
	// Message is one that the manager publishes.
	Message = dispatch.Message
	// State is the desired state as a Store holds it.
	State = cluster.State
	// Placement is the decision that an instance runs on a node.
	Placement = cluster.Placement
)

// Requests is the bucket of first Results by request id.
const Requests = store.Requests

// Config is what a Manager needs.
type Config struct {
	LostAfter time.Duration
	// Publish takes what the manager sends, in order. It must not block. It may end the goroutine (runtime.Goexit): a crash right there.
	Publish func(Message)
}

// Manager is one life of a cluster manager.
type Manager struct{ loop *dispatch.Loop }

// New loads what the store holds and starts nothing.
func New(ctx context.Context, cfg Config, s Store, log *slog.Logger) (*Manager, error) {
	loop, err := dispatch.NewLoop(ctx, dispatch.Config{Cluster: "sim", LostAfter: cfg.LostAfter, Brokers: []string{"tcp://manager:1883"},
		Network: overlay.Config{Plan: ipam.Plan{V4: netip.MustParsePrefix("10.160.0.0/12"), V6: netip.MustParsePrefix("fd5c:ae11:9::/48")}}}, s, cfg.Publish, log)
	return &Manager{loop}, err
}

// Run handles events until ctx ends.
func (m *Manager) Run(ctx context.Context) error { return m.loop.Run(ctx) }

// Register admits a node that has shown that its key is its own.
func (m *Manager) Register(ctx context.Context, info messages.NodeInfo) (messages.Welcome, error) {
	return m.loop.Register(ctx, info, true)
}

// Admits reports whether a node may connect.
func (m *Manager) Admits(ctx context.Context, id messages.NodeID, password string) bool {
	return m.loop.Admits(ctx, id, []byte(password))
}

// FromNode takes what a node publishes over a connection, which link stands for. The PUBACK follows once it has returned nil.
func (m *Manager) FromNode(ctx context.Context, id messages.NodeID, link any, topic string, payload []byte) error {
	t, err := messages.ParseTopic(topic)
	if err != nil {
		return err
	}
	t.Node = id
	return m.loop.FromNode(ctx, t, link, payload)
}

// Disconnected says that a node's connection has ended.
func (m *Manager) Disconnected(ctx context.Context, id messages.NodeID, link any) {
	m.loop.Disconnected(ctx, id, link)
}

// Command takes an operator's command. The PUBACK follows once it has returned nil; an error means none, so that the client repeats it.
func (m *Manager) Command(ctx context.Context, verb messages.Verb, payload []byte) error {
	in := dispatch.Incoming{MayCommand: true}
	in.Command, in.Bad = messages.DecodeCommand(payload, verb)
	_, err := m.loop.Command(ctx, in)
	return err
}

// Load reads the desired state from a store, and fails where a record is damaged.
func Load(ctx context.Context, s Store) (*State, error) {
	st, damaged, err := cluster.Load(ctx, s)
	return st, errors.Join(append(damaged, err)...)
}
