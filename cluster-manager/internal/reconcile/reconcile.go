// Package reconcile is the manager's judgement: from what a job shall be (desired) and what nodes last reported (observed) it
// derives the next actions. Plan is a function of its input: it has no clock, does no input or output, changes nothing, and
// returns no action where nothing is to be done. Somebody else applies the actions; applying them and planning again leads to
// the same end from every state, so a lost or repeated message cannot leave a job wrong.
//
// Per ordinal:
//
//	no placement ─────────────────▶ Start
//	one, its node lost ───────────▶ Start a stand-in elsewhere
//	one, out of date ─────────────▶ Start a replacement, one ordinal at a time
//	several, the newest good ─────▶ Stop the others
//	several, the newest failed ───▶ Stop the newest (a move), or Revert the job (a change)
//	several, the newest outdated ─▶ Stop the newest, unless it may be the only one that is up
//	not wanted ───────────────────▶ Stop, then Forget once its node has said so or is lost
package reconcile

import (
	"fmt"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// maxRestarts is how often a replacement may be restarted before it counts as failed: once may be chance.
const maxRestarts = 2

// Kind is what an action does.
type Kind int

// The kinds of action.
const (
	Start   Kind = iota // place an ordinal
	Stop                // a placement shall not run any more
	Forget              // nothing of a placement is left
	Release             // the instance that a placement waited for has gone: hand out its assignment
	Revert              // take a change of the job back
	Settle              // a change has reached every copy
	Drop                // a deleted job has no placement left
)

// Action is one step that somebody else applies.
type Action struct {
	Kind      Kind
	Ordinal   int                 // Start
	Cause     cluster.Cause       // Start
	Replaces  *cluster.Placement  // Start: the one that it stands in for, nil for none
	Placement *cluster.Placement  // Stop, Forget, Release
	Code      messages.Code       // Revert, Stop of a failed replacement
	Reason    string              // Revert, Stop
	Instance  messages.InstanceID // Revert: the one that failed
}

// Liveness is what Plan asks about a node.
type Liveness struct {
	Away    time.Duration // 0: connected
	Allowed bool          // the job may be there
	Blocked bool          // what has not been started there cannot be: the job insists on the overlay, and the node is not part of it
}

// Input is what Plan looks at. Nothing in it is changed.
type Input struct {
	Job       *cluster.Job
	Node      func(messages.NodeID) Liveness
	LostAfter time.Duration // of this job
	Now       time.Time
}

// Output is what shall be done now, and when to look again though nothing has been reported (zero: never).
type Output struct {
	Actions []Action
	Wake    time.Time
}

// Plan returns what is to be done for one job.
func Plan(in Input) Output {
	p := &planner{Input: in}
	p.plan()
	return p.Output
}

type planner struct {
	Input
	Output
	rolling  bool // some ordinal is being replaced by a change
	reverted bool // the change is being taken back
	stale    bool // some copy is not up to date
}

func (p *planner) plan() {
	byOrdinal := map[int][]*cluster.Placement{}
	for _, pl := range p.Job.Sorted() {
		switch {
		case !pl.Run:
			p.retire(pl)
		case p.Job.Held != 0: // nothing is done for it, but it is said when its node is lost
			p.lost(pl)
		case !p.Job.Wanted(pl.Ordinal):
			p.act(Action{Kind: Stop, Placement: pl, Reason: "not wanted any more"})
		default:
			byOrdinal[pl.Ordinal] = append(byOrdinal[pl.Ordinal], pl)
		}
	}
	if p.Job.Deleting {
		if len(p.Job.Placements) == 0 {
			p.act(Action{Kind: Drop})
		}
		return
	}
	if p.Job.Held != 0 {
		return
	}
	for _, o := range p.Job.Ordinals {
		p.replacements(byOrdinal[o])
	}
	for _, o := range p.Job.Ordinals {
		p.ordinal(o, byOrdinal[o])
	}
	if p.Job.Previous != nil && !p.stale && !p.rolling && len(p.Actions) == 0 {
		p.act(Action{Kind: Settle})
	}
}

func (p *planner) act(a Action) { p.Actions = append(p.Actions, a) }

// wake asks to be called at t, if that is before what was asked for.
func (p *planner) wake(t time.Time) {
	if t.After(p.Now) && (p.Wake.IsZero() || t.Before(p.Wake)) {
		p.Wake = t
	}
}

// lost reports whether the placement's node has been away for too long or is not to come back, and asks to be called when that will be.
func (p *planner) lost(pl *cluster.Placement) bool {
	if pl.Abandoned {
		return true
	}
	away := p.Node(pl.Node).Away
	if away == 0 {
		return false
	}
	if away >= p.LostAfter {
		return true
	}
	p.wake(p.Now.Add(p.LostAfter - away))
	return false
}

// retire handles a placement that shall not run. A lost node needs no tombstone: what a node's sync does not name, it stops.
func (p *planner) retire(pl *cluster.Placement) {
	if pl.Gone() || p.lost(pl) {
		p.act(Action{Kind: Forget, Placement: pl})
	}
}

// upToDate reports whether the placement is what the job asks for, where it may be and can be. What has finished need not be anywhere.
func (p *planner) upToDate(pl *cluster.Placement) bool {
	if pl.Hash != p.Job.Hash || pl.Finished {
		return pl.Hash == p.Job.Hash
	}
	l := p.Node(pl.Node)
	return l.Allowed && (!l.Blocked || !notStarted(pl))
}

// notStarted reports whether the placement's node has said that it is still to be started, or started again.
func notStarted(pl *cluster.Placement) bool {
	return pl.Observed != nil && (pl.Observed.State == messages.Pending || pl.Observed.State == messages.Preparing || pl.Observed.State == messages.Starting)
}

// replacements notes whether a change is under way: a newer placement stands beside an older one, or waits for it, or is alone
// and may still become good.
func (p *planner) replacements(all []*cluster.Placement) {
	if len(all) == 0 {
		return
	}
	newest := all[len(all)-1]
	if newest.Cause != cluster.ByChange || newest.Hash != p.Job.Hash {
		return
	}
	if len(all) > 1 || newest.After != "" || p.proving(newest) {
		p.rolling = true
	}
}

// proving reports whether a placement that a change has made is neither good nor given up yet.
func (p *planner) proving(pl *cluster.Placement) bool {
	if p.settled(pl) {
		return false
	}
	code, _ := p.failed(pl, pl.AwaitedSince)
	return code == ""
}

func (p *planner) ordinal(o int, all []*cluster.Placement) {
	switch len(all) {
	case 0:
		cause := cluster.ByDeploy
		if p.Job.Reverted != "" {
			cause = cluster.ByRevert
		}
		p.act(Action{Kind: Start, Ordinal: o, Cause: cause})
	case 1:
		p.single(o, all[0])
	default:
		p.several(all[:len(all)-1], all[len(all)-1])
	}
}

// single judges an ordinal that has one placement.
func (p *planner) single(o int, pl *cluster.Placement) {
	p.released(pl)
	if !pl.Finished && p.lost(pl) {
		p.act(Action{Kind: Start, Ordinal: o, Cause: cluster.ByLoss, Replaces: pl, Reason: "its node is lost"})
		return
	}
	if p.upToDate(pl) {
		p.judgeAlone(pl)
		return
	}
	p.stale = true
	if p.rolling || (!pl.Finished && p.Node(pl.Node).Away > 0) {
		return // one at a time; a copy that is away is replaced once it is back or lost
	}
	p.rolling = true
	p.act(Action{Kind: Start, Ordinal: o, Cause: cluster.ByChange, Replaces: pl})
}

// judgeAlone takes a change back whose replacement has failed with nothing beside it: the old copy had gone before (stop first), or since. A
// copy that an earlier change has made is not this one's fault.
func (p *planner) judgeAlone(pl *cluster.Placement) {
	if pl.Cause != cluster.ByChange || p.Job.Previous == nil || pl.Rev <= p.Job.Previous.Rev || pl.After != "" || p.settled(pl) {
		return
	}
	if code, reason := p.failed(pl, pl.AwaitedSince); code != "" {
		p.revert(pl, code, reason)
	}
}

// revert takes the change back, once however many of its copies have failed, and ends the one that has.
func (p *planner) revert(pl *cluster.Placement, code messages.Code, reason string) {
	if !p.reverted {
		p.reverted = true
		p.act(Action{Kind: Revert, Code: code, Reason: reason, Instance: pl.Instance})
	}
	p.act(Action{Kind: Stop, Placement: pl, Code: code, Reason: reason})
}

// released hands out an assignment that waited until another instance had gone.
func (p *planner) released(pl *cluster.Placement) {
	if pl.After != "" && p.Job.Placements[pl.After] == nil {
		p.act(Action{Kind: Release, Placement: pl})
	}
}

// several judges an ordinal with an older placement or more beside its newest.
func (p *planner) several(olds []*cluster.Placement, newest *cluster.Placement) {
	p.released(newest)
	if p.leftBehind(olds) {
		return
	}
	if !p.upToDate(newest) && !newest.Up() && !newest.Abandoned {
		p.stale, p.rolling = true, true
		if !p.mayBeTheOnlyOne(olds, newest) {
			p.act(Action{Kind: Stop, Placement: newest, Reason: "the job was changed again"})
		}
		return
	}
	switch p.originalOf(olds, newest) {
	case originalUp:
		p.act(Action{Kind: Stop, Placement: newest, Reason: "the original is back (on_return: keep-original)"})
		return
	case originalAwaited:
		if p.lost(newest) {
			p.act(Action{Kind: Stop, Placement: newest, Reason: "its node is lost"}) // the next plan finds another stand-in
		}
		return
	}
	if p.settled(newest) {
		for _, old := range olds {
			p.act(Action{Kind: Stop, Placement: old, Reason: "replaced by " + string(newest.Instance)})
		}
		return
	}
	code, reason := p.failed(newest, newest.AwaitedSince)
	if code == "" {
		return
	}
	p.giveUp(olds, newest, code, reason)
}

// mayBeTheOnlyOne reports whether the newest may be the only one that is up: none of the others is, and what its node says of it is still waited for, as
// after a start of the manager.
func (p *planner) mayBeTheOnlyOne(olds []*cluster.Placement, newest *cluster.Placement) bool {
	if newest.Observed != nil || newest.After != "" || slices.ContainsFunc(olds, (*cluster.Placement).Up) {
		return false
	}
	code, _ := p.failed(newest, newest.AwaitedSince)
	return code == ""
}

// leftBehind stops the placements of boards that do not come back: there is nothing to go back to or to wait for.
func (p *planner) leftBehind(olds []*cluster.Placement) bool {
	found := false
	for _, old := range olds {
		if old.Abandoned && !old.Finished {
			p.act(Action{Kind: Stop, Placement: old, Reason: "its node is not to come back"})
			found = true
		}
	}
	return found
}

// original says how the instance stands that a stand-in was made for, where the job wants it back.
type original int

const (
	originalNone    original = iota // none, or it is not to come back
	originalAwaited                 // away, or back and not reported yet
	originalUp
)

func (p *planner) originalOf(olds []*cluster.Placement, newest *cluster.Placement) original {
	old := olds[len(olds)-1]
	if newest.Cause != cluster.ByLoss || p.Job.Spec.OnReturn != messages.KeepOriginal || !p.upToDate(old) {
		return originalNone
	}
	switch {
	case p.Node(old.Node).Away > 0 || old.Observed == nil:
		return originalAwaited
	case old.Up():
		return originalUp
	default:
		return originalNone
	}
}

// giveUp decides what follows from a replacement that has failed.
func (p *planner) giveUp(olds []*cluster.Placement, newest *cluster.Placement, code messages.Code, reason string) {
	stop := Action{Kind: Stop, Placement: newest, Code: code, Reason: reason}
	switch newest.Cause {
	case cluster.ByChange:
		if p.lost(newest) {
			p.act(stop) // not the change's fault: the next plan tries elsewhere
			return
		}
		if p.Job.Previous != nil {
			p.revert(newest, code, reason)
		}
	case cluster.ByMove:
		p.act(stop)
	case cluster.ByLoss, cluster.ByDeploy, cluster.ByRevert, cluster.ByFind:
		old := olds[len(olds)-1]
		if p.lost(newest) || (p.Node(old.Node).Away == 0 && old.Up()) {
			p.act(stop)
		}
	}
}

// settled reports whether a placement has been good for long enough to rely on it, and asks to be called when that will be.
func (p *planner) settled(pl *cluster.Placement) bool {
	if pl.Finished {
		return true
	}
	if !pl.Up() || p.Node(pl.Node).Away > 0 {
		return false
	}
	at := pl.HealthySince.Add(p.Job.Spec.Update.Stable.Std())
	p.wake(at)
	return !at.After(p.Now)
}

// failed returns why a placement that is waited for since a time is not going to be good, an empty code while it may. Of one that was awaited
// before that time it is not known which of its restarts came after.
func (p *planner) failed(pl *cluster.Placement, since time.Time) (messages.Code, string) {
	o := pl.Observed
	switch {
	case p.lost(pl):
		return messages.Timeout, fmt.Sprintf("%s was lost with node %s", pl.Instance, pl.Node)
	case pl.Ended():
		return codeOf(o), fmt.Sprintf("%s on %s %s: %s", pl.Instance, pl.Node, o.State, o.Reason)
	case o != nil && o.Attempt-pl.Forgiven >= maxRestarts && !pl.Up() && !pl.AwaitedSince.Before(since):
		return codeOf(o), fmt.Sprintf("%s on %s was started again %d times: %s", pl.Instance, pl.Node, o.Attempt-pl.Forgiven, lastExit(o))
	case pl.After != "" || pl.Up():
		return "", "" // not begun, or proving itself
	}
	deadline := since.Add(p.Job.Spec.Update.Timeout.Std())
	p.wake(deadline)
	if deadline.After(p.Now) {
		return "", ""
	}
	return overdue(pl, p.Job.Spec.Update.Timeout)
}

// overdue says what kept a placement from being good in time.
func overdue(pl *cluster.Placement, limit messages.Duration) (messages.Code, string) {
	o := pl.Observed
	if o == nil {
		return messages.Timeout, fmt.Sprintf("%s on %s: its node has not answered for %s", pl.Instance, pl.Node, limit)
	}
	if o.State == messages.Running {
		return messages.Unhealthy, fmt.Sprintf("%s on %s is not healthy after %s%s", pl.Instance, pl.Node, limit, why(pl))
	}
	return messages.Timeout, fmt.Sprintf("%s on %s is still %s after %s%s", pl.Instance, pl.Node, o.State, limit, why(pl))
}

// why returns what follows a statement about an instance: the reason it gives or has given, or how far its pull is.
func why(pl *cluster.Placement) string {
	switch o := pl.Observed; {
	case o.Reason != "":
		return ": " + o.Reason
	case o.State == messages.Preparing && o.Progress != nil && o.Progress.TotalBytes > 0:
		return fmt.Sprintf(": %.1f of %.1f MiB of its image are there", float64(o.Progress.DoneBytes)/(1<<20), float64(o.Progress.TotalBytes)/(1<<20))
	case pl.Complaint != "":
		return "; before: " + pl.Complaint
	case o.State == messages.Preparing:
		return ": its image is being brought"
	default:
		return ""
	}
}

// lastExit says why an instance was started again, also while it runs once more and has no reason to give.
func lastExit(o *messages.InstanceStatus) string {
	switch {
	case o.Reason != "":
		return o.Reason
	case o.OOM:
		return "killed for want of memory"
	case o.ExitCode != nil:
		return fmt.Sprintf("exited with code %d", *o.ExitCode)
	default:
		return "its node does not say why"
	}
}

// codeOf returns the code of a failed status; nodes may leave it out.
func codeOf(o *messages.InstanceStatus) messages.Code {
	if o.Code != "" {
		return o.Code
	}
	return messages.Exited
}
