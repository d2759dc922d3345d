// Package cluster is the model that a manager keeps: which jobs shall run (desired) and what the nodes last reported
// (observed). It does no input or output and starts nothing. A State has one owner, the goroutine that package dispatch runs;
// every change of desired goes through a method that also records what is to be made durable, and what leaves is a copy.
//
// An instance's life as the manager sees it:
//
//	placed ──assignment──▶ (the node's states: pending … running)
//	   │                         │
//	   │ not wanted any more     │ its node is away for lost_after: lost
//	   ▼                         ▼
//	Run=false ──stopped──▶ forgotten      replaced elsewhere, with the next generation
package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/messages"
)

// Cause says why a placement was made.
type Cause string

// The causes of a placement.
const (
	ByDeploy Cause = "deploy" // a copy that had none
	ByChange Cause = "change" // the job was changed
	ByRevert Cause = "revert" // the change was taken back
	ByMove   Cause = "move"
	ByLoss   Cause = "lost"  // the node of the one before is lost
	ByFind   Cause = "found" // it was there, and this manager did not know it
)

// Job is what a user asked for, and how far it is from being so.
type Job struct {
	Spec     messages.Job      `json:"spec"` // with defaults
	Hash     string            `json:"hash"` // of Spec.Spec: which placements are up to date
	Rev      uint64            `json:"rev"`  // of its last change
	Worker   []messages.NodeID `json:"worker,omitempty"`
	Ordinals []int             `json:"ordinals"` // the copies that shall be, ascending
	// Generations holds the next generation of each ordinal that ever was: a name is never used for two lives.
	Generations map[int]int `json:"generations"`
	// Floor is the least generation of an ordinal that was not before: those below belong to an earlier job of this name.
	Floor int `json:"floor,omitempty"`
	// Held, where not 0, says that the job was found on its nodes: nothing is done for it until a command. It is the rev, of the manager
	// that the nodes had before, of what is in Spec.
	Held      uint64     `json:"held,omitempty"`
	Deleting  bool       `json:"deleting,omitempty"`
	Previous  *Previous  `json:"previous,omitempty"`  // while a change rolls: what to go back to
	Reverted  string     `json:"reverted,omitempty"`  // why the last change was taken back
	Ops       []Op       `json:"ops,omitempty"`       // commands that wait for their last Result, oldest first
	Addresses *Addresses `json:"addresses,omitempty"` // in the network; nil where there is none

	Placements map[messages.InstanceID]*Placement `json:"-"`
	Waiting    map[int]*Waiting                   `json:"-"` // ordinals that no node can take now
}

// Addresses are a job's in the network, kept until it is deleted.
type Addresses struct {
	RoundRobin netip.Addr         `json:"round_robin"`
	Closest    netip.Addr         `json:"closest"`
	Instances  map[int]netip.Addr `json:"instances"` // by ordinal; those that are not wanted any more included
}

// Previous is what a job asked for before the change that is rolling.
type Previous struct {
	Rev      uint64            `json:"rev"` // the change under way is later
	Spec     messages.Job      `json:"spec"`
	Hash     string            `json:"hash"`
	Worker   []messages.NodeID `json:"worker,omitempty"`
	Ordinals []int             `json:"ordinals"`
}

// Op is an accepted command that waits for its last Result.
type Op struct {
	Command       messages.Verb         `json:"command"`
	RequestID     string                `json:"request_id,omitempty"`
	ResponseTopic string                `json:"response_topic,omitempty"`
	Correlation   []byte                `json:"correlation,omitempty"`
	ID            messages.ClientID     `json:"id,omitzero"`
	Rev           uint64                `json:"rev"`
	Targets       []messages.InstanceID `json:"targets,omitempty"` // move: the instances that stand in
	Since         time.Time             `json:"-"`                 // since when it waits in this process
}

// Waiting says why an ordinal has no node.
type Waiting struct {
	Since time.Time
	Code  messages.Code
	Nodes []messages.Passed
}

// Placement is the decision that an instance runs on a node, or shall stop there.
type Placement struct {
	Instance   messages.InstanceID `json:"instance"`
	Job        messages.JobName    `json:"job"`
	Ordinal    int                 `json:"ordinal"`
	Generation int                 `json:"generation"`
	Node       messages.NodeID     `json:"node"`
	Rev        uint64              `json:"rev"`
	Hash       string              `json:"hash"` // of Spec
	Spec       messages.Spec       `json:"spec"`
	Run        bool                `json:"run"`
	Cause      Cause               `json:"cause"`
	Replaces   messages.InstanceID `json:"replaces,omitempty"`
	// After holds the assignment back until that instance is gone: where a node cannot hold both at once.
	After messages.InstanceID `json:"after,omitempty"`
	// Finished says that it exited with code 0 and is not to be started again, also when its node goes away.
	Finished bool `json:"finished,omitempty"`
	// Abandoned says that its board is not to come back: the node was removed, or its name was given to another board. It counts as
	// lost, for whatever bears the name of its node now.
	Abandoned bool `json:"abandoned,omitempty"`

	// Address is the one in the network that its node reported last, "" for none.
	Address string `json:"address,omitempty"`
	// Forgiven is the attempt up to which restarts are not held against it: they were before it was good for long enough, or lost.
	Forgiven int `json:"forgiven,omitempty"`

	Failure      *Failure                 `json:"-"` // why it was given up
	Observed     *messages.InstanceStatus `json:"-"` // nil: not reported since the manager started
	Complaint    string                   `json:"-"` // the last reason that its node gave since it was good, though it may try again without one by now
	HealthySince time.Time                `json:"-"` // zero: not healthy
	// AwaitedSince says since when it is waited for that it is good: its assignment was given, the manager started, its node came back, or,
	// of one that had been good for long enough, it was good last.
	AwaitedSince time.Time `json:"-"`
	// StoppingSince says since when it waits in this process that its node says that it has stopped.
	StoppingSince time.Time `json:"-"`
	// Asked says that a sync has asked its node to report it anew: one that lost its disk counts seq from the start.
	Asked bool `json:"-"`
}

// Failure says why a replacement was given up.
type Failure struct {
	Code   messages.Code
	Reason string
}

// Node is a board with a node engine, or a core node that is expected.
type Node struct {
	ID       messages.NodeID   `json:"id"`
	Kind     string            `json:"kind"`
	Info     messages.NodeInfo `json:"info"`
	Verified bool              `json:"verified"` // it has shown that the key is its own
	Password string            `json:"password"` // hex SHA-256 of the one that its MQTT session gives
	Epoch    uint64            `json:"epoch"`
	Joined   messages.Time     `json:"joined"`
	// Agreed says that what the node holds is known: what it holds beside that is to be stopped.
	Agreed bool `json:"agreed,omitempty"`
	// Unmet says that it has registered and never opened a session: it has no part of the network yet, and is forgotten before long.
	Unmet bool `json:"unmet,omitempty"`
	// Blocks are this node's part of the network. Its tunnel is in Info.Overlay, as the node said last.
	Blocks    []netip.Prefix `json:"blocks,omitempty"`
	NAT       string         `json:"nat,omitempty"`
	RelayOnly bool           `json:"relay_only,omitempty"`

	Online      bool                         `json:"-"`
	Since       time.Time                    `json:"-"` // of being online or not
	BootID      string                       `json:"-"`
	ClockSkewMS int64                        `json:"-"`
	Instances   map[messages.InstanceID]bool `json:"-"` // placed here
}

// Guest is a WireGuard client that is no node.
type Guest struct {
	Name      string          `json:"name"`
	PublicKey string          `json:"public_key"`
	Address   netip.Addr      `json:"address"`
	Gateway   messages.NodeID `json:"gateway"`
	Since     messages.Time   `json:"since"`
}

// HashSpec returns a short value that is equal for specs that run the same thing. Who may reach an instance, and by which of its
// service's addresses its name leads, is no matter of what runs.
func HashSpec(s messages.Spec) string {
	s.Network = messages.JobNetwork{Mode: s.Network.Mode}
	b, err := json.Marshal(s)
	if err != nil {
		panic("cluster: marshal spec: " + err.Error()) // a Spec came from JSON
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Up reports whether the instance serves: it runs and is healthy, or has done what it was to do.
func (p *Placement) Up() bool {
	if p.Finished {
		return true
	}
	o := p.Observed
	return o != nil && o.State == messages.Running && o.Healthy
}

// Unheard notes at now that what the placement's node has said of it is no news any more: it is waited for anew.
func (p *Placement) Unheard(now time.Time) {
	p.Observed, p.HealthySince, p.Address = nil, time.Time{}, ""
	p.AwaitedSince, p.Forgiven = now, 0
}

// Ended reports whether the instance has ended in a way that its node will not mend.
func (p *Placement) Ended() bool {
	return !p.Finished && p.Observed != nil && p.Observed.State.Terminal()
}

// Gone reports whether nothing of the instance is left on its node.
func (p *Placement) Gone() bool {
	return !p.Run && p.Observed != nil && p.Observed.State == messages.Stopped
}

// Assignment returns what the placement's node is told.
func (p *Placement) Assignment(epoch uint64) messages.Assignment {
	a := messages.Assignment{Instance: p.Instance, Rev: p.Rev, Epoch: epoch, Run: p.Run}
	if p.Run {
		spec := p.Spec
		a.Spec = &spec
	}
	return a
}

// Report returns the status of the placement for clients.
func (p *Placement) Report(lost bool) messages.InstanceReport {
	r := messages.InstanceReport{Node: p.Node, Run: p.Run}
	if p.Observed != nil {
		r.InstanceStatus = *p.Observed
	} else {
		r.InstanceStatus = messages.InstanceStatus{Instance: p.Instance, Job: p.Job, Rev: p.Rev, Generation: p.Generation, State: messages.UnknownStatus}
	}
	r.State = p.State(lost)
	switch {
	case r.State == messages.Lost:
		r.Healthy, r.Reason = false, "its node is away for longer than lost_after"
	case p.Observed == nil && p.After != "":
		r.Reason = "waits until " + string(p.After) + " has left the node"
	}
	return r
}

// State returns the state of the placement for clients.
func (p *Placement) State(lost bool) messages.State {
	switch {
	case lost && !p.Finished:
		return messages.Lost
	case p.Observed != nil:
		return p.Observed.State
	case p.After != "" || p.PlacedByUs():
		return messages.Pending
	default:
		return messages.UnknownStatus
	}
}

// PlacedByUs reports whether the placement was made by this process rather than loaded.
func (p *Placement) PlacedByUs() bool { return !p.AwaitedSince.IsZero() }

// Wanted reports whether the job shall have a copy with this ordinal.
func (j *Job) Wanted(ordinal int) bool {
	_, found := slices.BinarySearch(j.Ordinals, ordinal)
	return found && !j.Deleting
}

// NextGeneration takes the next generation of an ordinal.
func (j *Job) NextGeneration(ordinal int) int {
	if j.Generations == nil {
		j.Generations = map[int]int{}
	}
	g := max(j.Generations[ordinal], j.Floor)
	j.Generations[ordinal] = g + 1
	return g
}

// Keep takes up an instance that was found.
func (j *Job) Keep(ordinal, generation int) {
	if j.Generations == nil {
		j.Generations = map[int]int{}
	}
	j.Generations[ordinal] = max(j.Generations[ordinal], generation+1)
	if at, found := slices.BinarySearch(j.Ordinals, ordinal); !found {
		j.Ordinals = slices.Insert(slices.Clone(j.Ordinals), at, ordinal)
	}
	n := len(j.Ordinals)
	j.Spec.Replicas = &n
}

// nextFloor is the least generation that a later job of this name may use.
func (j *Job) nextFloor() int {
	floor := j.Floor
	for _, next := range j.Generations {
		floor = max(floor, next)
	}
	return floor
}

// Resize changes the ordinals to n: the lowest free ones are added, the highest are dropped.
func (j *Job) Resize(n int) {
	ordinals := slices.Clone(j.Ordinals)
	for candidate := 0; len(ordinals) < n; candidate++ {
		if at, found := slices.BinarySearch(ordinals, candidate); !found {
			ordinals = slices.Insert(ordinals, at, candidate)
		}
	}
	j.Ordinals = ordinals[:n]
	j.Spec.Replicas = &n
}

// Sorted returns the job's placements by ordinal, then generation.
func (j *Job) Sorted() []*Placement {
	all := make([]*Placement, 0, len(j.Placements))
	for _, p := range j.Placements {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Placement) int {
		if a.Ordinal != b.Ordinal {
			return a.Ordinal - b.Ordinal
		}
		return a.Generation - b.Generation
	})
	return all
}
