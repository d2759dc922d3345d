// Package schedule decides which node takes an instance, and says of every other one why it did not. Filters come first
// (presence, the command's worker list, kind, labels, architecture, technology, overlay, gpus, cpus, memory, host ports), then scores: the node with
// the fewest instances of the job, then the least loaded one, then the first by name. What is placed is really reserved. The
// package knows no clock, no disk and no network; equal calls on equal tables give equal answers.
//
// The answer is exact. It is found fast because the connected nodes are kept in the order of their load: the first one that passes the
// filters and holds nothing of the job is the best. Reasons are worked out only where no node passes.
package schedule

import (
	"cmp"
	"math"
	"slices"

	"skerry.internal/messages"
)

// Node is what the scheduler has to know of a node.
type Node struct {
	ID     messages.NodeID
	Online bool
	Kind   string
	Info   messages.NodeInfo
	// NoOverlay says why the node is not part of the network; empty: it is.
	NoOverlay string
}

// Want describes an instance that looks for a node.
type Want struct {
	Instance    messages.InstanceID
	Job         messages.JobName
	Spec        messages.Spec
	Constraints messages.Constraints
	Worker      []messages.NodeID          // where not empty, only these; ascending, each once
	Not         map[messages.NodeID]string // nodes to pass over, with the reason
	Patient     bool                       // count what is leaving a node as gone: it can wait for that
}

// Table holds the nodes and what is reserved on them. It is not safe for concurrent use.
type Table struct {
	nodes map[messages.NodeID]*entry
	ready order // those that are connected, the least loaded first
}

// entry is a node with what is reserved on it.
type entry struct {
	Node
	instances map[messages.InstanceID]reservation
	jobs      map[messages.JobName]int // number of instances
	// claims holds who has reserved a port of the host; more than one where some wait for the others to go.
	claims   map[messages.Port][]messages.InstanceID
	reserved messages.Resources
	leaving  messages.Resources // the part of reserved that is being stopped
	load     float64            // the share of the scarcer of cpus and memory that is reserved
}

type reservation struct {
	job     messages.JobName
	spec    messages.Spec
	leaving bool
}

// NewTable returns an empty Table.
func NewTable() *Table { return &Table{nodes: map[messages.NodeID]*entry{}} }

// SetNode adds or changes a node; its reservations stay.
func (t *Table) SetNode(n Node) { t.change(t.entry(n.ID), func(e *entry) { e.Node = n }) }

// Forget drops a node with all that is reserved on it.
func (t *Table) Forget(id messages.NodeID) {
	if e := t.nodes[id]; e != nil {
		t.change(e, func(e *entry) { e.Online = false })
		delete(t.nodes, id)
	}
}

// entry returns a node, made where it is not known.
func (t *Table) entry(id messages.NodeID) *entry {
	e := t.nodes[id]
	if e == nil {
		e = &entry{Node: Node{ID: id}, instances: map[messages.InstanceID]reservation{}, jobs: map[messages.JobName]int{},
			claims: map[messages.Port][]messages.InstanceID{}}
		t.nodes[id] = e
	}
	return e
}

// change keeps the order of the connected nodes over a change of one of them.
func (t *Table) change(e *entry, f func(*entry)) {
	if e.Online {
		t.ready.remove(e)
	}
	f(e)
	e.load = max(e.reserved.CPUs/float64(max(e.Info.CPU.Cores, 1)), float64(e.reserved.MemoryMB)/float64(max(e.Info.MemoryMB, 1)))
	if e.Online {
		t.ready.insert(e)
	}
}

// before orders nodes by load: the least loaded first.
func before(a, b *entry) int {
	if c := cmp.Compare(a.load, b.load); c != 0 {
		return c
	}
	if c := cmp.Compare(len(a.instances), len(b.instances)); c != 0 {
		return c
	}
	return cmp.Compare(a.ID, b.ID)
}

// Reserve takes what the instance needs on the node, whether it fits or not: the reconciler says what is there, and that counts.
// Reserving again replaces what was reserved for the instance there.
func (t *Table) Reserve(node messages.NodeID, instance messages.InstanceID, job messages.JobName, spec messages.Spec) {
	t.change(t.entry(node), func(e *entry) {
		e.release(instance)
		e.instances[instance] = reservation{job: job, spec: spec}
		e.jobs[job]++
		add(&e.reserved, spec.Resources, 1)
		for _, p := range spec.Ports {
			if key, fixed := hostPort(p); fixed {
				e.claims[key] = append(e.claims[key], instance)
			}
		}
	})
}

// Release gives back what was reserved for the instance on the node.
func (t *Table) Release(node messages.NodeID, instance messages.InstanceID) {
	e := t.nodes[node]
	if e == nil {
		return
	}
	if _, found := e.instances[instance]; found {
		t.change(e, func(e *entry) { e.release(instance) })
	}
}

func (e *entry) release(instance messages.InstanceID) {
	r, found := e.instances[instance]
	if !found {
		return
	}
	delete(e.instances, instance)
	if e.jobs[r.job]--; e.jobs[r.job] == 0 {
		delete(e.jobs, r.job)
	}
	add(&e.reserved, r.spec.Resources, -1)
	if r.leaving {
		add(&e.leaving, r.spec.Resources, -1)
	}
	if len(e.instances) == 0 {
		e.reserved, e.leaving = messages.Resources{}, messages.Resources{} // sums of fractions drift
	}
	for _, p := range r.spec.Ports {
		key, fixed := hostPort(p)
		if !fixed {
			continue
		}
		e.claims[key] = slices.DeleteFunc(e.claims[key], func(id messages.InstanceID) bool { return id == instance })
		if len(e.claims[key]) == 0 {
			delete(e.claims, key)
		}
	}
}

// Leave says that the instance is being stopped: what it has reserved counts until Release, but not for who can wait.
func (t *Table) Leave(node messages.NodeID, instance messages.InstanceID) {
	e := t.nodes[node]
	if e == nil {
		return
	}
	if r, found := e.instances[instance]; found && !r.leaving {
		r.leaving = true
		e.instances[instance] = r
		add(&e.leaving, r.spec.Resources, 1)
	}
}

func add(sum *messages.Resources, r messages.Resources, sign int) {
	sum.CPUs += float64(sign) * r.CPUs
	sum.MemoryMB += sign * r.MemoryMB
	sum.GPUs += sign * r.GPUs
}

// Reserved returns what is reserved on the node, cpus to a thousandth: sums of fractions drift.
func (t *Table) Reserved(node messages.NodeID) messages.Resources {
	e := t.nodes[node]
	if e == nil {
		return messages.Resources{}
	}
	r := e.reserved
	r.CPUs = math.Round(r.CPUs*1000) / 1000
	return r
}

// hostPort returns what names a port of the host that is taken, and whether p takes one.
func hostPort(p messages.Port) (messages.Port, bool) {
	return messages.Port{Host: p.Host, Protocol: cmp.Or(p.Protocol, "tcp")}, p.Host != 0
}

// Place returns the node that takes the instance, and reserves nothing. Where none does, it returns the reason of each node and the
// code of the ones that came closest.
func (t *Table) Place(w Want) (messages.NodeID, *Refusal) {
	if id, found := t.Find(w); found {
		return id, nil
	}
	return "", t.explain(&w)
}

// Find is Place without the reasons, which cost more than the answer where there are many nodes.
func (t *Table) Find(w Want) (messages.NodeID, bool) {
	s := search{want: &w}
	if len(w.Worker) > 0 {
		for _, e := range t.named(w.Worker) {
			if s.look(e) {
				break
			}
		}
		return s.answer()
	}
	for _, piece := range t.ready.pieces {
		if slices.ContainsFunc(piece, s.look) {
			break
		}
	}
	return s.answer()
}

// search looks at nodes, the least loaded first, and keeps the best.
type search struct {
	want  *Want
	best  *entry
	least int // instances of the job on best
}

// look reports whether nothing better can follow.
func (s *search) look(e *entry) bool {
	if e.against(s.want) != nothing {
		return false
	}
	if n := e.jobs[s.want.Job]; s.best == nil || n < s.least {
		s.best, s.least = e, n
	}
	return s.least == 0
}

func (s *search) answer() (messages.NodeID, bool) {
	if s.best == nil {
		return "", false
	}
	return s.best.ID, true
}

// named returns those of the nodes that are connected, the least loaded first.
func (t *Table) named(ids []messages.NodeID) []*entry {
	named := make([]*entry, 0, len(ids))
	for _, id := range ids {
		if e := t.nodes[id]; e != nil && e.Online {
			named = append(named, e)
		}
	}
	slices.SortFunc(named, before)
	return named
}

// Allows reports whether the node may hold the instance by what does not change with load: worker list, kind, labels and architecture.
func (t *Table) Allows(node messages.NodeID, w *Want) bool {
	e := t.nodes[node]
	if e == nil {
		return false
	}
	if len(w.Worker) > 0 {
		if _, named := slices.BinarySearch(w.Worker, node); !named {
			return false
		}
	}
	return e.mismatch(w) == nothing
}

// Overlays reports whether an instance that is placed on the node can be started there as far as the overlay goes.
func (t *Table) Overlays(node messages.NodeID, w *Want) bool {
	e := t.nodes[node]
	return e != nil && !e.lacksOverlay(w)
}
