package sim

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"skerry.internal/cluster-manager/manager/managersim"
	"skerry.internal/messages"
)

var errDiskFull = errors.New("no space left on device")

// disk is the manager's. It outlives the manager.
type disk struct {
	sim *Sim
	managersim.Memory
	full    atomic.Bool
	pending []managersim.Change // where the bug is that the last commit is not durable
}

// Commit makes changes durable; the manager may crash before that and after it.
func (d *disk) Commit(ctx context.Context, changes []managersim.Change) error {
	m := d.sim.mgr
	m.point("a commit")
	if d.full.Load() {
		return errDiskFull
	}
	if d.sim.bug == LosesLastCommit {
		d.pending, changes = changes, d.pending
	}
	check := d.sim.rules.stopping(ctx, changes)
	if err := d.Memory.Commit(ctx, changes); err != nil {
		return err
	}
	check()
	m.point("the end of a commit")
	return nil
}

// manager is one process of a cluster manager.
type manager struct {
	sim    *Sim
	m      *managersim.Manager
	ctx    context.Context //nolint:containedctx // ends with the process: a crash
	cancel context.CancelFunc
	dead   atomic.Bool
	points atomic.Int64
	done   chan struct{}
	seqs   map[messages.InstanceID]uint64 // where the bug is that seq is ignored
}

func (s *Sim) bootManager() {
	if s.mgr != nil && !s.mgr.dead.Load() {
		return
	}
	m := &manager{sim: s, done: make(chan struct{}), seqs: map[messages.InstanceID]uint64{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	s.disk.pending = nil
	s.rules.loaded()
	var err error
	m.m, err = managersim.New(m.ctx, managersim.Config{LostAfter: lostAfter, Publish: m.publish}, s.disk, s.log.With("node_id", "manager"))
	if err != nil {
		s.violation("the manager does not start: %v", err)
		return
	}
	s.mgr = m
	s.tell("the manager starts")
	go func() {
		defer close(m.done)
		if err := m.m.Run(m.ctx); err != nil {
			m.say("broken", func() { s.violation("the manager ends: %v", err) })
		}
	}()
}

// say passes on what this process says while it lives.
func (m *manager) say(what string, do func()) {
	if m.dead.Load() {
		return
	}
	m.sim.say("manager "+what, func() {
		if !m.dead.Load() || what == "0 crash" {
			do()
		}
	})
}

// point is a moment at which the manager may crash: its goroutine ends right there. What it has published before is on its way.
func (m *manager) point(what string) {
	if m.points.Load() > 0 && m.points.Add(-1) == 0 {
		m.sim.say("manager 2 crash", func() {
			m.sim.tell("the manager crashes at %s", what)
			m.killed()
		})
		m.dead.Store(true)
		m.cancel()
	}
	if m.dead.Load() {
		runtime.Goexit()
	}
}

// publish takes what the manager sends.
func (m *manager) publish(msg managersim.Message) {
	m.point("a message")
	m.sim.say("manager 1 publish", func() { m.route(msg) })
}

// route is the broker: what has been published goes to who listens.
func (m *manager) route(msg managersim.Message) {
	s := m.sim
	t, err := messages.ParseTopic(msg.Topic)
	if err != nil {
		s.violation("the manager publishes to %q: %v", msg.Topic, err)
		return
	}
	s.rules.published(t, msg.Payload)
	if t.Kind != messages.NodeControlTopic && t.Kind != messages.SyncTopic && t.Kind != messages.InventoryRequestTopic {
		return
	}
	for _, n := range s.nodes {
		if c := n.conn; n.id == t.Node && c != nil && c.online && c.subscribed {
			c.deliver(t, msg.Topic, msg.Payload)
		}
	}
}

// fromNode takes what a node has published.
func (m *manager) fromNode(c *conn, t messages.Topic, topic string, payload []byte) {
	now := m.sim.mgr // a connection ends with the process it leads to
	if now.dead.Load() || !c.online {
		return
	}
	if t.Kind == messages.NodeJobTopic {
		m.sim.rules.heard(c, payload)
	}
	payload = m.sim.bug.unordered(now, t, payload)
	if err := now.m.FromNode(now.ctx, c.node.id, c.link, topic, payload); err != nil {
		m.sim.violation("the manager refuses what %s says: %v", c.node.id, err)
	}
}

// offline is the end of a node's connection as the broker sees it.
func (m *manager) offline(c *conn) {
	if m.dead.Load() || m.sim.bug == EternalLease {
		return
	}
	m.sim.tell("the manager sees %s go", c.node.id)
	will := messages.Topic{Kind: messages.PresenceTopic, Node: c.node.id}.String()
	if err := m.m.FromNode(m.ctx, c.node.id, c.link, will, messages.Encode(messages.Presence{})); err != nil {
		m.sim.violation("last will: %v", err)
	}
	m.m.Disconnected(m.ctx, c.node.id, c.link)
}

// kill ends the process as kill -9 does.
func (m *manager) kill() {
	if m.dead.Load() {
		return
	}
	m.sim.tell("the manager is killed")
	m.dead.Store(true)
	m.cancel()
	m.killed()
}

// killed cleans up after the process and starts another one later.
func (m *manager) killed() {
	s := m.sim
	s.rules.managerDied()
	synctestWait()
	<-m.done
	for _, n := range s.nodes {
		if c := n.conn; c != nil && c.online {
			c.online, c.subscribed, c.up.gone = false, false, true
			if s.chance(2) {
				c.down.gone = true
			}
			s.at(time.Now().Add(s.between(time.Millisecond, 200*time.Millisecond)), n, func() { c.end(errReset) })
		}
	}
	wait := s.between(200*time.Millisecond, 10*time.Second)
	if s.chance(4) {
		wait = s.between(10*time.Second, 100*time.Second)
	}
	s.after(wait, s.bootManager)
}
