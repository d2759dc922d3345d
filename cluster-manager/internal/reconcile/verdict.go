package reconcile

import (
	"fmt"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// Verdict says whether a command has been fulfilled. An empty Phase: not yet.
type Verdict struct {
	Phase   messages.Phase
	Code    messages.Code
	Message string
}

// Judge returns whether the job has reached what the command asked for, given what Plan said of the same input. It asks to be
// called again through the returned Output's Wake.
func Judge(in Input, op *cluster.Op) (Verdict, Output) {
	p := &planner{Input: in}
	var v Verdict
	switch op.Command {
	case messages.Delete:
		v = p.deleted()
	case messages.Move:
		v = p.moved(op)
	default:
		v = p.reached(op)
	}
	return v, p.Output
}

// deleted: done when nothing that shall not run is left. A job that is deleted whole is done when it is dropped.
func (p *planner) deleted() Verdict {
	leaving := p.Job.Deleting
	for _, pl := range p.Job.Sorted() {
		if pl.Run {
			continue
		}
		if v := p.overstayed(pl); v.Phase != "" {
			return v
		}
		leaving = true
	}
	if leaving {
		return Verdict{}
	}
	return Verdict{Phase: messages.Done, Message: "its instances on these nodes are gone"}
}

// overstayed fails what waits for too long for an instance that was told to stop and whose node, connected or not, does not say that it has.
// It asks to be called when that will be so.
func (p *planner) overstayed(pl *cluster.Placement) Verdict {
	limit := pl.Spec.Stop.Grace + p.Job.Spec.Update.Timeout
	deadline := pl.StoppingSince.Add(limit.Std())
	p.wake(deadline)
	if deadline.After(p.Now) {
		return Verdict{}
	}
	return Verdict{messages.Failed, messages.Timeout, fmt.Sprintf("%s on %s was told to stop %s ago and its node has not said that it has", pl.Instance, pl.Node, limit)}
}

// moved: done when every target is good and what it replaced has gone.
func (p *planner) moved(op *cluster.Op) Verdict {
	for _, id := range op.Targets {
		target := p.Job.Placements[id]
		if target == nil || !target.Run {
			return p.givenUp(id, target)
		}
		if old := p.Job.Placements[target.Replaces]; old != nil {
			if !old.Run {
				return p.overstayed(old)
			}
			return Verdict{}
		}
		if p.settled(target) {
			continue
		}
		if code, reason := p.failed(target, target.AwaitedSince); code != "" { // after the old one had gone: nothing stops it
			return Verdict{messages.Failed, code, reason}
		}
		return Verdict{}
	}
	return Verdict{Phase: messages.Done, Message: "moved"}
}

// givenUp is the verdict on a move whose target was stopped again.
func (p *planner) givenUp(id messages.InstanceID, target *cluster.Placement) Verdict {
	v := Verdict{messages.Failed, messages.Unhealthy, fmt.Sprintf("%s was given up", id)}
	if target != nil && target.Failure != nil {
		v.Code, v.Message = target.Failure.Code, target.Failure.Reason
	}
	_, ordinal, generation, _ := id.Split()
	for _, old := range p.Job.Placements {
		if old.Ordinal == ordinal && old.Generation < generation && old.Run {
			v.Message += "; what it should replace was left running"
			break
		}
	}
	return v
}

// proved reports whether a copy has shown that it works: by its health check, or, where it has none, by running for as long as a
// replacement must; a program that ends as soon as it has begun was up for a moment, too. It asks to be called when that will be so.
func (p *planner) proved(pl *cluster.Placement) bool {
	if pl.Finished || !pl.Up() || pl.Spec.Health != nil {
		return pl.Up()
	}
	at := pl.HealthySince.Add(p.Job.Spec.Update.Stable.Std())
	p.wake(at)
	return !at.After(p.Now)
}

// reached: done when each copy is there, up to date and proved, and nothing else is left.
func (p *planner) reached(op *cluster.Op) Verdict {
	limit := p.Job.Spec.Update.Timeout
	count := map[int]int{}
	waiting := false
	for _, pl := range p.Job.Sorted() {
		switch {
		case !pl.Run:
			if v := p.overstayed(pl); v.Phase != "" {
				return v
			}
			waiting = true
			continue
		case !pl.Finished && p.lost(pl):
			continue // its stand-in counts
		case pl.After != "" || !p.upToDate(pl):
			waiting = true
			continue
		}
		count[pl.Ordinal]++
		if p.proved(pl) {
			continue
		}
		waiting = true
		since := pl.AwaitedSince
		if since.Before(op.Since) { // what was so before the command is given the same time
			since = op.Since
		}
		if code, reason := p.failed(pl, since); code != "" {
			return Verdict{messages.Failed, code, reason}
		}
	}
	for _, o := range p.Job.Ordinals {
		if w := p.Job.Waiting[o]; w != nil {
			deadline := w.Since.Add(limit.Std())
			p.wake(deadline)
			if !deadline.After(p.Now) {
				return Verdict{messages.Failed, w.Code, fmt.Sprintf("no node could take copy %d for %s", o, limit)}
			}
		}
		waiting = waiting || count[o] != 1
	}
	if waiting || p.Job.Previous != nil {
		return Verdict{}
	}
	return Verdict{Phase: messages.Done, Message: fmt.Sprintf("%d of %d copies run", len(p.Job.Ordinals), len(p.Job.Ordinals))}
}
