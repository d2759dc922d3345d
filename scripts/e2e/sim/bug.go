package sim

import (
	"encoding/json"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/engine/enginesim"
)

// Bug is a fault put in on purpose at a seam, as a test of the rules. The shipped code knows nothing of it.
type Bug string

// The bugs.
const (
	// None is how the parts are.
	None Bug = ""
	// LosesLastCommit: the manager's disk says that a commit is durable one commit too early.
	LosesLastCommit Bug = "the manager's disk loses its last commit"
	// AckBeforeCommit: a command is acknowledged when it arrives.
	AckBeforeCommit Bug = "a command is acknowledged before it is durable"
	// DeafToSync: a node does what a sync names, but leaves running what it does not.
	DeafToSync Bug = "a node ignores what a sync leaves out"
	// ForgetsSeq: seq begins anew with each life of an engine.
	ForgetsSeq Bug = "seq does not survive the engine"
	// HealthyTooSoon: a node says that an instance is healthy while it is starting.
	HealthyTooSoon Bug = "a node says healthy before it is"
	// EternalLease: the manager never hears that a connection has ended.
	EternalLease Bug = "a lease never runs out"
	// IgnoresRev: a node obeys whatever came last.
	IgnoresRev Bug = "a node ignores rev"
	// IgnoresSeq: the manager believes whatever came last.
	IgnoresSeq Bug = "the manager ignores seq"
	// WritesLate: an engine's disk says that a write is durable a moment too early, which a crash shows.
	WritesLate Bug = "a node's disk writes a moment late"
)

// Bugs lists them.
func Bugs() []Bug {
	return []Bug{LosesLastCommit, AckBeforeCommit, DeafToSync, ForgetsSeq, HealthyTooSoon, EternalLease, IgnoresRev, IgnoresSeq, WritesLate}
}

// between returns what stands between session and instances of a node's engine.
func (b Bug) between(i enginesim.Instances) enginesim.Instances {
	switch b {
	case DeafToSync:
		i = deaf{i}
	case IgnoresRev:
		i = &obedient{Instances: i, revs: map[messages.InstanceID]uint64{}}
	}
	return calmly{i}
}

// calmly lets what an order has set off come to rest before the session looks at it: which of two goroutines is first is not the seed's.
type calmly struct{ enginesim.Instances }

func (c calmly) Assign(a messages.Assignment) error {
	defer time.Sleep(time.Microsecond)
	return c.Instances.Assign(a)
}

func (c calmly) Sync(s messages.Sync) error {
	defer time.Sleep(time.Microsecond)
	return c.Instances.Sync(s)
}

// deaf hears only what a sync names.
type deaf struct{ enginesim.Instances }

func (d deaf) Sync(s messages.Sync) error {
	for _, a := range s.Assignments {
		if err := d.Assign(a); err != nil {
			return err
		}
	}
	return nil
}

// obedient takes an order with an older rev for a newer one.
type obedient struct {
	enginesim.Instances
	mu   sync.Mutex // guards revs
	revs map[messages.InstanceID]uint64
}

func (o *obedient) Assign(a messages.Assignment) error {
	o.mu.Lock()
	if a.Rev < o.revs[a.Instance] {
		a.Rev = o.revs[a.Instance] + 1
	}
	o.revs[a.Instance] = a.Rev
	o.mu.Unlock()
	return o.Instances.Assign(a)
}

// late has a write follow a moment after it was said to be durable, if there is still somebody to make it.
func (b Bug) late(l *life, do func() error) error {
	if b != WritesLate {
		return do()
	}
	s := l.node.sim
	l.say("6 write", func() {
		s.after(time.Millisecond, func() {
			if !l.dead.Load() {
				_ = do()
			}
		})
	})
	return nil
}

// unordered takes a status with an older seq for a newer one, as obedient does an order.
func (b Bug) unordered(m *manager, t messages.Topic, payload []byte) []byte {
	var i messages.InstanceStatus
	if b != IgnoresSeq || t.Kind != messages.NodeJobTopic || json.Unmarshal(payload, &i) != nil {
		return payload
	}
	if i.Seq < m.seqs[i.Instance] {
		i.Seq = m.seqs[i.Instance] + 1
	}
	m.seqs[i.Instance] = i.Seq
	return messages.Encode(i)
}

// spoil changes what a node publishes.
func (b Bug) spoil(l *life, t messages.Topic, payload []byte) []byte {
	if t.Kind != messages.NodeJobTopic || (b != ForgetsSeq && b != HealthyTooSoon) {
		return payload
	}
	var i messages.InstanceStatus
	if json.Unmarshal(payload, &i) != nil {
		return payload
	}
	if b == HealthyTooSoon && (i.State == messages.Starting || i.State == messages.Running) {
		i.State, i.Healthy = messages.Running, true
	}
	if b == ForgetsSeq {
		l.node.mu.Lock()
		defer l.node.mu.Unlock()
		if l.first == nil {
			l.first = map[messages.InstanceID]uint64{}
		}
		if _, known := l.first[i.Instance]; !known {
			l.first[i.Instance] = i.Seq - 1
		}
		i.Seq -= l.first[i.Instance]
	}
	return messages.Encode(i)
}
