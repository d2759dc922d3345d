// Package dispatch is what happens between a message that comes in and the messages that go out: commands change the desired
// state, reports of nodes the observed state, the plan of package reconcile is carried out, and who asked gets an answer.
//
// Core is the whole of it as a state machine without goroutine, clock or connection: whoever owns one calls its methods with the
// time, commits what it has changed, and only then sends what it wants sent. Loop owns one in a running manager; a
// simulation can own another.
package dispatch

import (
	"cmp"
	"container/heap"
	"log/slog"
	"maps"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/lease"
	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/cluster-manager/internal/reconcile"
	"skerry.internal/cluster-manager/internal/schedule"
	"skerry.internal/messages"
)

// Config is what a Core is told about its cluster.
type Config struct {
	Cluster           string
	Version           string
	Core              []messages.NodeID // the nodes that are expected always
	LostAfter         time.Duration     // of jobs that do not say
	TelemetryInterval time.Duration
	Brokers           []string // for the Welcome; a URL without a host means the one that the node dialled
	BrokerPort        string
	Network           overlay.Config
}

// Message is one that shall be published. It leaves only after the state that it speaks of is durable.
type Message struct {
	Topic       string
	Payload     []byte
	QoS         byte
	Retain      bool
	Correlation []byte
	// Disconnect, where not empty, is a node whose connection is to be ended in place of a publication.
	Disconnect messages.NodeID
	// EndRelay, where not empty, is the public key of a tunnel whose stream through the relay is to be ended.
	EndRelay string
}

// requestMemory is how long a request id is remembered, as the contract says.
const requestMemory = 10 * time.Minute

// request is the first Result of a request id.
type request struct {
	Result messages.Result `json:"result"`
	At     time.Time       `json:"at"`           // wall clock: it survives a restart
	Of     string          `json:"of,omitempty"` // fingerprint of the command
	stored bool
}

// Core holds the state of one manager. It is not safe for concurrent use.
type Core struct {
	cfg    Config
	log    *slog.Logger
	st     *cluster.State
	table  *schedule.Table
	leases *lease.Table
	net    *overlay.Network

	now     time.Time // of the call that is being handled
	started time.Time
	// refusals and syncs bound the lines of the log that would be too many.
	refusals, syncs quota

	links  map[messages.NodeID]any       // the connection by which a node is online
	boots  map[messages.NodeID][]string  // the boots that a node has registered with, oldest first
	strays map[messages.NodeID]time.Time // when a node's stray instances were said last
	// inventories holds what nodes have said so far of what they hold.
	inventories map[messages.NodeID]said
	// held is what nodes said of the network too soon after they had said it before.
	held     map[messages.NodeID]*held
	keys     map[string]messages.NodeID
	unmet    map[messages.NodeID]bool // registered, and never connected
	watching bool                     // a wake waits for the oldest of them
	requests map[string]request       // by requestKey
	expiry   []string                 // their keys, oldest first
	restored bool                     // expiry is out of order

	dirty   map[messages.JobName]bool // jobs to plan
	changed map[messages.JobName]bool // jobs whose status is to be published
	nodes   map[messages.NodeID]bool  // nodes whose status is to be published
	waiting map[messages.JobName]bool // jobs with a copy that has no node
	// unplaced holds the ordinals for which the last plan of a job found no node, and refusal why the first of them did not.
	unplaced []int
	refusal  *schedule.Refusal
	wakes    wakes
	wakeAt   map[messages.JobName]time.Time
	summary  bool // the cluster's status is to be published

	published, summarized time.Time // when the statuses were, and the cluster's

	netNow  bool      // what is to be said of the network shall not wait
	netOut  []Message // it leaves before everything else
	specs   cluster.SpecText
	out     []Message
	answers []Message // last Results: they leave behind the statuses that they speak of
}

// NewCore makes a Core over a loaded state. Every node counts as away from now on, so that its lease runs.
func NewCore(cfg Config, st *cluster.State, now time.Time, log *slog.Logger) *Core {
	c := &Core{cfg: cfg, log: log, leases: lease.NewTable(), started: now, links: map[messages.NodeID]any{},
		boots: map[messages.NodeID][]string{}, strays: map[messages.NodeID]time.Time{}, inventories: map[messages.NodeID]said{}, held: map[messages.NodeID]*held{}}
	c.adopt(st, now)
	return c
}

// adopt makes st the state and derives everything else from it.
func (c *Core) adopt(st *cluster.State, now time.Time) {
	c.st, c.now = st, now
	c.requests, c.expiry = map[string]request{}, nil
	c.table = schedule.NewTable()
	c.dirty, c.changed = map[messages.JobName]bool{}, map[messages.JobName]bool{}
	c.nodes, c.waiting = map[messages.NodeID]bool{}, map[messages.JobName]bool{}
	c.wakes, c.wakeAt = nil, map[messages.JobName]time.Time{}
	c.summary, c.keys = true, map[string]messages.NodeID{}
	c.unmet, c.watching = map[messages.NodeID]bool{}, false
	for _, n := range st.Nodes {
		st.ExpectNode(n.ID, messages.Spare)
		if n.Info.Key != "" {
			c.keys[n.Info.Key] = n.ID
		}
	}
	for _, id := range c.cfg.Core {
		st.ExpectNode(id, messages.Core)
	}
	c.newNetwork()
	for id := range c.held {
		heap.Push(&c.wakes, wake{at: now, node: id, held: true})
	}
	for id, n := range st.Nodes {
		if n.Since.IsZero() {
			n.Since = now
		}
		if !n.Online {
			c.down(id, now)
		}
		if n.Unmet {
			c.unmet[id] = true
		}
		c.nodeChanged(n)
	}
	c.watchUnmet()
	for name, j := range st.Jobs {
		for i := range j.Ops {
			j.Ops[i].Since = now
		}
		for _, p := range j.Placements {
			if p.AwaitedSince.IsZero() {
				p.AwaitedSince = now
			}
			if p.StoppingSince.IsZero() {
				p.StoppingSince = now
			}
			if p.Observed != nil {
				c.observed(p)
			}
			c.noteFinished(p)
			c.reserve(p)
		}
		c.touch(name)
	}
}

// Reload takes up what the store holds after a commit that failed. What nodes reported is kept; what was to be sent is not.
func (c *Core) Reload(st *cluster.State, now time.Time) {
	st.KeepObserved(c.st, now)
	c.out, c.answers, c.netOut = nil, nil, nil
	c.adopt(st, now)
	for _, id := range slices.Sorted(maps.Keys(c.links)) {
		switch n := st.Nodes[id]; {
		case n == nil:
		case n.Agreed:
			c.sendSet(n, st.Assignments(id)) // in place of what was to be sent
		default:
			c.ask(n)
		}
	}
}

// State gives the owner access to the state, for its commit.
func (c *Core) State() *cluster.State { return c.st }

// TakeMessages returns what is to be published now that the changes are durable.
func (c *Core) TakeMessages() []Message {
	out := append(append(c.netOut, c.out...), c.answers...)
	c.netOut, c.out, c.answers = nil, nil, nil
	return out
}

func (c *Core) send(m Message) { c.out = append(c.out, m) }

// touch asks for a plan and a new status of a job.
func (c *Core) touch(name messages.JobName) {
	c.dirty[name] = true
	c.changed[name] = true
}

// nodeChanged tells the scheduler of a node and asks for a new status of it.
func (c *Core) nodeChanged(n *cluster.Node) {
	noOverlay, _ := c.net.Up(n)
	c.table.SetNode(schedule.Node{ID: n.ID, Online: n.Online, Kind: n.Kind, Info: n.Info, NoOverlay: noOverlay})
	c.nodes[n.ID] = true
	c.summary = true
}

// reserve takes what a placement needs on its node. What has finished, or is not there any more, needs nothing.
func (c *Core) reserve(p *cluster.Placement) {
	if p.Finished || p.Abandoned {
		return
	}
	c.table.Reserve(p.Node, p.Instance, p.Job, p.Spec)
	if !p.Run {
		c.table.Leave(p.Node, p.Instance)
	}
}

// touchWaiting asks for a plan of every job that waits for a node.
func (c *Core) touchWaiting() {
	for name := range c.waiting {
		c.dirty[name] = true
	}
}

// down starts a node's lease running out, where it does not run already, and asks to be called when it has.
func (c *Core) down(id messages.NodeID, now time.Time) {
	since := c.leases.Down(id, now)
	if at := since.Add(c.cfg.LostAfter); !at.Before(now) {
		heap.Push(&c.wakes, wake{at: at, node: id})
	}
}

// lapsed says that a node's lease has run out, if it has.
func (c *Core) lapsed(id messages.NodeID, now time.Time) {
	n := c.st.Nodes[id]
	if n == nil || n.Info.Key == "" || c.leases.Away(id, now) < c.cfg.LostAfter {
		return
	}
	c.nodes[id], c.summary = true, true
	c.log.Warn("node lost", "node_id", id, "participants", c.participants(""))
	c.event(messages.Event{Kind: messages.NodeLostEv, Node: id, Message: string(id) + " has been away for longer than " + c.cfg.LostAfter.String()})
}

// Advance plans every job that something has happened to, or whose time has come, until nothing is left to do now. It returns when to
// call it again at the latest (zero: when something happens).
func (c *Core) Advance(now time.Time) time.Time {
	c.now = now
	for len(c.wakes) > 0 && !c.wakes[0].at.After(now) {
		w := heap.Pop(&c.wakes).(wake)
		if w.held {
			c.takeHeld(w.node, now)
			continue
		}
		if w.unmet {
			c.watching = false
			c.forgetUnmet(now)
			continue
		}
		if w.node != "" {
			c.lapsed(w.node, now)
			continue
		}
		if c.wakeAt[w.job].Equal(w.at) {
			delete(c.wakeAt, w.job)
			c.touch(w.job)
		}
	}
	for len(c.dirty) > 0 {
		names := make([]messages.JobName, 0, len(c.dirty))
		for name := range c.dirty {
			names = append(names, name)
		}
		slices.Sort(names) // the same input leads to the same output
		for _, name := range names {
			delete(c.dirty, name)
			if j := c.st.Jobs[name]; j != nil {
				c.planJob(j, now)
			}
		}
	}
	c.expireRequests(now)
	if c.netNow {
		c.flushNetwork(now)
	}
	if len(c.wakes) == 0 {
		return time.Time{}
	}
	return c.wakes[0].at
}

// planRounds bounds how often one job is planned in a row: each round either ends or makes progress, and no job needs as many.
const planRounds = 64

func (c *Core) planJob(j *cluster.Job, now time.Time) {
	for range planRounds {
		c.unplaced, c.refusal = nil, nil
		out := reconcile.Plan(c.input(j, now))
		c.wakeJob(j.Spec.Name, out.Wake)
		progress := false
		for _, a := range out.Actions {
			progress = c.apply(j, a, now) || progress
		}
		if c.st.Jobs[j.Spec.Name] != j {
			return // dropped
		}
		if !progress {
			break
		}
	}
	c.clearWaiting(j)
	c.judge(j, now)
}

func (c *Core) input(j *cluster.Job, now time.Time) reconcile.Input {
	want := c.want(j)
	return reconcile.Input{Job: j, Now: now, LostAfter: c.lostAfter(j), Node: func(id messages.NodeID) reconcile.Liveness {
		return reconcile.Liveness{Away: c.leases.Away(id, now), Allowed: c.table.Allows(id, &want), Blocked: !c.table.Overlays(id, &want)}
	}}
}

func (c *Core) lostAfter(j *cluster.Job) time.Duration {
	if d := j.Spec.LostAfter.Std(); d > 0 {
		return d
	}
	return c.cfg.LostAfter
}

// want describes any instance of a job to the scheduler.
func (c *Core) want(j *cluster.Job) schedule.Want {
	return schedule.Want{Job: j.Spec.Name, Spec: j.Spec.Spec, Constraints: j.Spec.Constraints, Worker: j.Worker}
}

// wakeJob asks for a plan of the job at t at the latest.
func (c *Core) wakeJob(name messages.JobName, t time.Time) {
	if t.IsZero() {
		return
	}
	if known, ok := c.wakeAt[name]; ok && !t.Before(known) {
		return
	}
	c.wakeAt[name] = t
	heap.Push(&c.wakes, wake{at: t, job: name})
}

// wake is a time at which a job is to be planned, a node's lease runs out, what it said is taken up, or one that never connected is forgotten.
type wake struct {
	at    time.Time
	job   messages.JobName
	node  messages.NodeID
	held  bool // of the node: something is held back
	unmet bool // of whichever it is then
}

// wakes is a heap of them, the earliest first. One of a job that wakeAt does not name any more is passed over.
type wakes []wake

func (w wakes) Len() int { return len(w) }
func (w wakes) Less(i, j int) bool {
	return cmp.Or(w[i].at.Compare(w[j].at), cmp.Compare(w[i].node, w[j].node), cmp.Compare(w[i].job, w[j].job)) < 0 // the same input, the same output
}
func (w wakes) Swap(i, j int) { w[i], w[j] = w[j], w[i] }

// Push is called by package heap.
func (w *wakes) Push(x any) { *w = append(*w, x.(wake)) }

// Pop is called by package heap.
func (w *wakes) Pop() any {
	last := (*w)[len(*w)-1]
	*w = (*w)[:len(*w)-1]
	return last
}
