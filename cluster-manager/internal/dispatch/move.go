package dispatch

import (
	"fmt"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/reconcile"
	"skerry.internal/messages"
)

// move places a stand-in for every copy that is to leave its node. The plan stops the old one only once the new one is good; where
// one copy finds no node, nothing is moved.
func (c *Core) move(j *cluster.Job, cmd messages.Command, op cluster.Op, now time.Time) (uint64, *refusal) {
	leaving, r := c.leaving(j, cmd)
	if r != nil {
		return 0, r
	}
	targets, r := c.targets(j, cmd, leaving)
	if r != nil {
		return 0, r
	}
	if len(leaving) > 0 {
		c.supersede(j)
	}
	if len(j.Worker) > 0 && len(cmd.Worker) > 0 {
		stay := slices.DeleteFunc(slices.Clone(j.Worker), func(id messages.NodeID) bool { return slices.Contains(cmd.From, id) })
		j.Worker = normalNodes(slices.Concat(stay, cmd.Worker))
	}
	for i, old := range leaving {
		p := c.place(j, reconcile.Action{Ordinal: old.Ordinal, Cause: cluster.ByMove, Replaces: old}, targets[i], now)
		op.Targets = append(op.Targets, p.Instance)
	}
	rev := j.Rev
	if len(leaving) > 0 {
		rev = c.st.NextRev()
	}
	c.accept(j, op, rev)
	return rev, nil
}

// leaving returns the copies that a move is about: those on the nodes to leave, or all that are not on a target.
func (c *Core) leaving(j *cluster.Job, cmd messages.Command) ([]*cluster.Placement, *refusal) {
	var leaving []*cluster.Placement
	count := map[int]int{}
	there := false
	for _, p := range j.Sorted() {
		if !p.Run {
			continue
		}
		count[p.Ordinal]++
		if p.Finished || slices.Contains(cmd.Worker, p.Node) { // what has done its work has nothing to do elsewhere
			there = true
			continue
		}
		if len(cmd.From) == 0 || slices.Contains(cmd.From, p.Node) {
			leaving = append(leaving, p)
		}
	}
	for _, p := range leaving {
		if count[p.Ordinal] > 1 {
			return nil, beingReplaced(p)
		}
	}
	if len(leaving) == 0 && !there {
		return nil, refuse(messages.NoNodeMatches, "no copy of %s runs on %v", j.Spec.Name, cmd.From)
	}
	return leaving, nil
}

// beingReplaced refuses what is about one of two instances that are there for one copy: either may be the one that stays.
func beingReplaced(p *cluster.Placement) *refusal {
	return refuse(messages.Unavailable, "copy %d is being replaced at this moment: wait until the job is running, then try again", p.Ordinal)
}

// targets finds a node for each copy that leaves, with nothing left reserved.
func (c *Core) targets(j *cluster.Job, cmd messages.Command, leaving []*cluster.Placement) ([]messages.NodeID, *refusal) {
	want := c.want(j)
	if len(cmd.Worker) > 0 {
		want.Worker = normalNodes(cmd.Worker)
	}
	want.Not = map[messages.NodeID]string{}
	for _, id := range cmd.From {
		want.Not[id] = "is one of the nodes to leave"
	}
	var nodes []messages.NodeID
	defer func() {
		for i, node := range nodes {
			c.table.Release(node, trialName(j, leaving[i].Ordinal))
		}
	}()
	for _, p := range leaving {
		want.Instance = trialName(j, p.Ordinal)
		node, refused := c.table.Place(want)
		if refused != nil {
			return nil, placementRefusal(p.Ordinal, refused)
		}
		c.table.Reserve(node, want.Instance, want.Job, want.Spec)
		nodes = append(nodes, node)
	}
	return slices.Clone(nodes), nil
}

// trialName is the name of a reservation that is taken back before anybody sees it; no placement ever bears it.
func trialName(j *cluster.Job, ordinal int) messages.InstanceID {
	return messages.InstanceID(fmt.Sprintf("%s.%d.trial", j.Spec.Name, ordinal))
}
