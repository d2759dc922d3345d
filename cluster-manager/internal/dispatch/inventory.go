package dispatch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// A manager whose state was lost, or is older than what its nodes have heard, must not stop what it does not know: it asks such a node
// what it holds, and keeps what it has never given out itself as jobs that are held. Nothing is started, moved or stopped for a job that is
// held until an operator gives a command for it: what a node says may end or start nothing on another one.
//
//	presence of a node that is not agreed ─▶ asked ─▶ inventory ─▶ agreed: synced, and strays are stopped from then on

// heldReason is what the status of a held job says.
const heldReason = "found on its nodes, unknown to this manager: nothing is changed until a command for it; deploy it again to take it over, or delete it"

// maxFound and maxFoundBytes bound what one node may say that it holds, and maxFound also the instances of held jobs that are placed there: a
// board holds some dozens, and each one takes memory, disk and addresses. What a node says beyond that leaves it as it is.
const (
	maxFound      = 1024
	maxFoundBytes = 16 << 20
)

// said is what a node has said so far of what it holds.
type said struct {
	next  int // the number of the piece that must follow
	bytes int
	held  []messages.Assignment
}

// agree notes that node and manager know the same of what the node holds, or reports false: then the node is asked.
func (c *Core) agree(n *cluster.Node, p messages.Presence) bool {
	if n.Agreed {
		return true
	}
	holdsNone := p.Epoch == 0 || p.Digest == messages.Digest(nil) // epoch 0: no manager has ever told it anything
	if !holdsNone && p.Digest != messages.Digest(c.st.Assignments(n.ID)) {
		c.ask(n)
		return false
	}
	n.Agreed = true
	c.st.PutNode(n)
	return true
}

// ask asks a node what it holds.
func (c *Core) ask(n *cluster.Node) {
	delete(c.inventories, n.ID)
	c.send(Message{Topic: messages.Topic{Kind: messages.InventoryRequestTopic, Node: n.ID}.String(), QoS: 1,
		Payload: messages.Encode(messages.InventoryRequest{Epoch: n.Epoch})})
	if unsaid, ok := c.syncs.due(c.now); ok {
		c.log.Info("node asked what it holds", "node_id", n.ID, "rev", c.st.Rev, "unsaid", unsaid)
	}
}

// Inventory takes a piece of what a node holds.
func (c *Core) Inventory(id messages.NodeID, piece messages.Inventory, now time.Time) {
	c.now = now
	n := c.st.Nodes[id]
	if n == nil || n.Info.Key == "" || !n.Online || n.Agreed {
		return
	}
	var s said
	if piece.N > 0 {
		s = c.inventories[id]
	}
	inOrder := piece.N == s.next
	s.next++
	s.bytes += len(messages.Encode(piece.Assignments))
	s.held = append(s.held, piece.Assignments...)
	delete(c.inventories, id)
	switch {
	case !inOrder || len(s.held) > maxFound || s.bytes > maxFoundBytes || piece.Last && c.found(n, s.held) > maxFound:
		if c.now.Sub(c.strays[id]) >= warnEvery {
			c.strays[id] = c.now
			c.log.Warn("inventory dropped", "node_id", id, "instances", len(s.held), "bytes", s.bytes)
		}
		return // not agreed: nothing is stopped there
	case !piece.Last:
		c.inventories[id] = s
		return
	}
	c.reckon(n, s.held)
	n.Agreed = true
	c.st.PutNode(n)
	c.sendSet(n, c.st.Assignments(id))
}

// found counts the instances of held jobs that are placed on the node and those that would come with what it holds now.
func (c *Core) found(n *cluster.Node, held []messages.Assignment) int {
	count := 0
	for _, p := range c.st.PlacedOn(n.ID) {
		if c.st.Jobs[p.Job].Held != 0 {
			count++
		}
	}
	for _, a := range held {
		if c.st.Placement(a.Instance) == nil {
			count++
		}
	}
	return count
}

// reckon takes up what the node holds and this manager has never given out.
func (c *Core) reckon(n *cluster.Node, held []messages.Assignment) {
	found := map[messages.JobName]bool{}
	count := 0
	for _, a := range held {
		if j := c.finder(n, &a); j != nil {
			c.keep(j, n, &a)
			found[j.Spec.Name] = true
			count++
		}
	}
	if count > 0 {
		c.log.Error("instances found that this manager does not know: their jobs are held until a command for each", "node_id", n.ID, "instances", count, "jobs", len(found))
	}
}

// finder returns the job that an instance found on a node belongs to, nil where it is known or its life is over.
func (c *Core) finder(n *cluster.Node, a *messages.Assignment) *cluster.Job {
	name, ordinal, generation, err := a.Instance.Split()
	if err != nil || !a.Run || a.Spec == nil || c.st.Placement(a.Instance) != nil || generation < c.st.Floors[name].Generation {
		return nil
	}
	j := c.st.Jobs[name]
	switch {
	case j == nil:
		j = c.hold(name, a)
	case j.Held == 0:
		return nil // what the operator has asked for holds
	case !slices.Contains(j.Ordinals, ordinal) && len(j.Ordinals) >= messages.MaxReplicas:
		return nil
	case a.Rev > j.Held && onlyOn(j, n.ID): // a change was under way: the later spec is what it was to become. Nobody says that for others.
		spec := messages.Job{Name: name, Spec: *a.Spec, Replicas: j.Spec.Replicas}.WithDefaults()
		if spec.Validate() == nil {
			j.Spec, j.Hash, j.Held = spec, cluster.HashSpec(spec.Spec), a.Rev
		}
	}
	return j
}

// onlyOn reports whether all that was found of a job is on one node.
func onlyOn(j *cluster.Job, id messages.NodeID) bool {
	for _, p := range j.Placements {
		if p.Node != id {
			return false
		}
	}
	return true
}

// hold makes a job of the first of its instances, nil where no job can be like that.
func (c *Core) hold(name messages.JobName, a *messages.Assignment) *cluster.Job {
	none := 0
	spec := messages.Job{Name: name, Spec: *a.Spec, Replicas: &none}.WithDefaults()
	if spec.Validate() != nil {
		return nil
	}
	j := c.newJob(spec)
	j.Hash, j.Rev, j.Held, j.Ordinals = cluster.HashSpec(spec.Spec), c.st.NextRev(), max(a.Rev, 1), []int{}
	c.st.PutJob(j)
	c.summary = true
	c.event(messages.Event{Kind: messages.JobFound, Job: name, Message: fmt.Sprintf("%s is %s", name, heldReason)})
	return j
}

// newJob returns a job whose instances bear no name that was used before.
func (c *Core) newJob(spec messages.Job) *cluster.Job {
	return &cluster.Job{Spec: spec, Floor: c.st.Floor(spec.Name)}
}

// keep places an instance where it was found.
func (c *Core) keep(j *cluster.Job, n *cluster.Node, a *messages.Assignment) {
	name, ordinal, generation, _ := a.Instance.Split()
	spec := messages.Job{Name: name, Spec: *a.Spec}.WithDefaults().Spec
	p := &cluster.Placement{Instance: a.Instance, Job: name, Ordinal: ordinal, Generation: generation, Node: n.ID, Rev: c.st.NextRev(),
		Hash: cluster.HashSpec(spec), Spec: spec, Run: true, Cause: cluster.ByFind, AwaitedSince: c.now}
	j.Keep(ordinal, generation)
	if err := c.net.LeaseJob(j, j.Ordinals); err != nil {
		c.log.Warn("job has no service address", "job_id", name, "err", err)
	}
	c.put(j, p)
	c.touch(name)
}

// release ends that a job is held: an operator has given a command for it.
func (c *Core) release(j *cluster.Job) {
	if j.Held == 0 {
		return
	}
	j.Held = 0
	j.Rev = c.st.NextRev()
	for _, next := range j.Generations { // names that may be in use on nodes that have not been heard yet
		j.Floor = max(j.Floor, next)
	}
	c.log.Info("job is not held any more", "job_id", j.Spec.Name, "rev", j.Rev)
}

// Inventory hands a piece of what a node holds to the core.
func (l *Loop) Inventory(ctx context.Context, id messages.NodeID, piece messages.Inventory) {
	l.post(ctx, func(c *Core, now time.Time) { c.Inventory(id, piece, now) })
}
