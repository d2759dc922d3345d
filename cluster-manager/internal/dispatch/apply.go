package dispatch

import (
	"fmt"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/reconcile"
	"skerry.internal/cluster-manager/internal/schedule"
	"skerry.internal/messages"
)

// apply carries out one action. It reports whether the state has changed, so that another plan is worth making.
func (c *Core) apply(j *cluster.Job, a reconcile.Action, now time.Time) bool {
	switch a.Kind {
	case reconcile.Start:
		return c.start(j, a, now)
	case reconcile.Stop:
		if a.Code != "" {
			a.Placement.Failure = &cluster.Failure{Code: a.Code, Reason: a.Reason}
			c.stayAfterMove(j, a.Placement)
		}
		c.stop(a.Placement)
	case reconcile.Forget:
		c.forget(a.Placement)
	case reconcile.Release:
		a.Placement.After = ""
		a.Placement.AwaitedSince = now
		a.Placement.Rev = c.st.NextRev()
		c.st.PutPlacement(a.Placement)
		c.assign(a.Placement)
	case reconcile.Revert:
		c.revert(j, a)
	case reconcile.Settle:
		j.Previous = nil
		c.st.PutJob(j)
	case reconcile.Drop:
		c.drop(j)
	}
	c.changed[j.Spec.Name] = true
	return true
}

// stayAfterMove lets the copy that a move could not replace stay where it is, though the move took its node from the worker list.
func (c *Core) stayAfterMove(j *cluster.Job, target *cluster.Placement) {
	old := j.Placements[target.Replaces]
	if target.Cause != cluster.ByMove || old == nil || len(j.Worker) == 0 || slices.Contains(j.Worker, old.Node) {
		return
	}
	j.Worker = normalNodes(append(slices.Clone(j.Worker), old.Node))
	c.st.PutJob(j)
}

// start finds a node for an ordinal. Where none can take it, the reasons are kept and it is tried again when something changes.
func (c *Core) start(j *cluster.Job, a reconcile.Action, now time.Time) bool {
	want := c.want(j)
	if a.Replaces != nil && a.Cause == cluster.ByLoss {
		c.lost(j, a.Replaces)
	}
	if node, found := c.find(want); found {
		c.place(j, a, node, now)
		return true
	}
	if a.Cause == cluster.ByChange && c.stopFirst(j, a, want, now) {
		return true
	}
	if c.refusal == nil {
		_, c.refusal = c.table.Place(want)
	}
	c.wait(j, a.Ordinal, c.refusal, now)
	return false
}

// find looks for a node unless one copy of the job has just found none: within one plan room only gets less.
func (c *Core) find(want schedule.Want) (messages.NodeID, bool) {
	if c.refusal != nil {
		return "", false
	}
	return c.table.Find(want)
}

// lost says once that an instance is lost.
func (c *Core) lost(j *cluster.Job, p *cluster.Placement) {
	if j.Waiting[p.Ordinal] != nil {
		return // said when it was tried first
	}
	c.log.Warn("instance lost", "instance_id", p.Instance, "node_id", p.Node)
	c.event(messages.Event{Kind: messages.InstanceLost, Job: p.Job, Node: p.Node, Instance: p.Instance, State: messages.Lost, Message: fmt.Sprintf("%s is lost with %s", p.Instance, p.Node)})
}

// wait notes why an ordinal has no node.
func (c *Core) wait(j *cluster.Job, ordinal int, refusal *schedule.Refusal, now time.Time) {
	w := j.Waiting[ordinal]
	if w == nil {
		w = &cluster.Waiting{Since: now}
		j.Waiting[ordinal] = w
		c.log.Warn("copy waits for a node", "job_id", j.Spec.Name, "ordinal", ordinal, "err", refusal)
	}
	c.unplaced = append(c.unplaced, ordinal)
	c.waiting[j.Spec.Name] = true
	nodes := refusal.Nodes[:min(len(refusal.Nodes), maxWaiting)]
	if w.Code != refusal.Code || !slices.Equal(w.Nodes, nodes) {
		w.Code, w.Nodes = refusal.Code, nodes
		c.changed[j.Spec.Name] = true
	}
}

// place decides that an ordinal runs on a node.
func (c *Core) place(j *cluster.Job, a reconcile.Action, node messages.NodeID, now time.Time) *cluster.Placement {
	p := c.newPlacement(j, a.Ordinal, a.Cause, node, now)
	if a.Replaces != nil {
		p.Replaces = a.Replaces.Instance
	}
	c.put(j, p)
	c.assign(p)
	return p
}

func (c *Core) newPlacement(j *cluster.Job, ordinal int, cause cluster.Cause, node messages.NodeID, now time.Time) *cluster.Placement {
	generation := j.NextGeneration(ordinal)
	return &cluster.Placement{Instance: messages.NewInstanceID(j.Spec.Name, ordinal, generation), Job: j.Spec.Name, Ordinal: ordinal, Generation: generation,
		Node: node, Rev: c.st.NextRev(), Hash: j.Hash, Spec: j.Spec.Spec, Run: true, Cause: cause, AwaitedSince: now}
}

// put records a new placement with its reservation.
func (c *Core) put(j *cluster.Job, p *cluster.Placement) {
	delete(j.Waiting, p.Ordinal)
	c.reserve(p)
	c.st.PutJob(j) // its next generation
	c.st.PutPlacement(p)
	c.nodes[p.Node], c.summary = true, true
	c.grow(p.Node)
	c.log.Info("instance placed", "instance_id", p.Instance, "node_id", p.Node, "cause", string(p.Cause), "rev", p.Rev)
	c.event(messages.Event{Kind: messages.InstancePlaced, Job: p.Job, Node: p.Node, Instance: p.Instance, Message: fmt.Sprintf("%s is placed on %s (%s)", p.Instance, p.Node, p.Cause)})
}

// stopFirst replaces a copy on a node that cannot hold the old and the new one at once (a host port, the last of the memory): the
// new one waits for the old one to go. It is the way only where no node takes the new one beside the old.
func (c *Core) stopFirst(j *cluster.Job, a reconcile.Action, want schedule.Want, now time.Time) bool {
	old := a.Replaces
	c.table.Release(old.Node, old.Instance)
	want.Worker = []messages.NodeID{old.Node}
	_, found := c.table.Find(want)
	c.reserve(old)
	if !found || (len(j.Worker) > 0 && !slices.Contains(j.Worker, old.Node)) {
		return false
	}
	p := c.newPlacement(j, a.Ordinal, a.Cause, old.Node, now)
	p.Replaces, p.After = old.Instance, old.Instance
	c.put(j, p)
	c.stop(old)
	return true
}

// stop decides that a placement shall not run.
func (c *Core) stop(p *cluster.Placement) {
	p.Run, p.StoppingSince = false, c.now
	p.Rev = c.st.NextRev()
	c.table.Leave(p.Node, p.Instance)
	c.net.Touch(p.Job)
	c.netNow = c.netNow || p.Address != ""
	c.st.PutPlacement(p)
	c.assign(p)
	c.nodes[p.Node] = true
	c.log.Info("instance to be stopped", "instance_id", p.Instance, "node_id", p.Node, "rev", p.Rev)
}

// forget drops a placement of which nothing is left, and looks again at who waits for room.
func (c *Core) forget(p *cluster.Placement) {
	c.st.DropPlacement(p)
	c.table.Release(p.Node, p.Instance)
	c.nodes[p.Node], c.summary, c.refusal = true, true, nil
	c.touchWaiting()
	c.log.Info("instance gone", "instance_id", p.Instance, "node_id", p.Node)
	c.event(messages.Event{Kind: messages.InstanceGone, Job: p.Job, Node: p.Node, Instance: p.Instance, Message: fmt.Sprintf("%s is gone from %s", p.Instance, p.Node)})
}

// assign tells a placement's node what it shall do, where it is connected; one that is not learns it by its next sync.
func (c *Core) assign(p *cluster.Placement) {
	n := c.st.Nodes[p.Node]
	if n == nil || !n.Online || p.Abandoned || (p.After != "" && p.Run) {
		return
	}
	verb := messages.Deploy
	if !p.Run {
		verb = messages.Delete
	}
	c.send(Message{Topic: messages.Topic{Kind: messages.NodeControlTopic, Node: p.Node, Verb: verb}.String(), Payload: c.encodeAssignment(p, n.Epoch), QoS: 1})
}

// encodeAssignment renders what a node is told of a placement.
func (c *Core) encodeAssignment(p *cluster.Placement, epoch uint64) []byte {
	a := messages.Assignment{Instance: p.Instance, Rev: p.Rev, Epoch: epoch, Run: p.Run}
	if !p.Run {
		return messages.Encode(a)
	}
	return messages.EncodeRun(a, c.specs.Of(p))
}

// revert takes a change back: the job asks again for what it asked for before, and who asked for the change is told why.
func (c *Core) revert(j *cluster.Job, a reconcile.Action) {
	prev := j.Previous
	j.Spec, j.Hash, j.Worker, j.Ordinals = prev.Spec, prev.Hash, prev.Worker, prev.Ordinals
	j.Previous = nil
	j.Reverted = a.Reason
	j.Rev = c.st.NextRev()
	c.failDeploys(j, reconcile.Verdict{Phase: messages.Failed, Code: a.Code, Message: a.Reason + "; the job goes back to what it was before"})
	c.st.PutJob(j)
	c.log.Warn("change taken back", "job_id", j.Spec.Name, "instance_id", a.Instance, "rev", j.Rev, "err", a.Reason)
	c.event(messages.Event{Kind: messages.JobReverted, Job: j.Spec.Name, Instance: a.Instance, Message: a.Reason})
}

// drop forgets a deleted job of which nothing is left.
func (c *Core) drop(j *cluster.Job) {
	name := j.Spec.Name
	c.finishOps(j, reconcile.Verdict{Phase: messages.Done, Message: "the job and its instances are gone"})
	c.net.DropJob(j)
	c.st.DropJob(j)
	delete(c.waiting, name)
	c.summary = true
	c.log.Info("job deleted", "job_id", name)
	c.event(messages.Event{Kind: messages.JobDeleted, Job: name, Message: fmt.Sprintf("%s is deleted", name)})
}

// judge answers the commands that have been fulfilled, or cannot be, and asks to be called when that may change.
func (c *Core) judge(j *cluster.Job, now time.Time) {
	in := c.input(j, now)
	var left []cluster.Op
	for _, op := range j.Ops {
		v, out := reconcile.Judge(in, &op)
		c.wakeJob(j.Spec.Name, out.Wake)
		if v.Phase == "" {
			left = append(left, op)
			continue
		}
		c.finish(j, op, v)
	}
	if len(left) != len(j.Ops) {
		j.Ops = left
		c.st.PutJob(j)
	}
}

// clearWaiting forgets the waits of ordinals that have a node again or are not wanted any more: the last plan did not look for one.
func (c *Core) clearWaiting(j *cluster.Job) {
	for o := range j.Waiting {
		if !slices.Contains(c.unplaced, o) {
			delete(j.Waiting, o)
			c.changed[j.Spec.Name] = true
		}
	}
	if len(j.Waiting) == 0 {
		delete(c.waiting, j.Spec.Name)
	}
}
