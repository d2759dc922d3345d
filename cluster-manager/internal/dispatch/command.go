package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/reconcile"
	"skerry.internal/cluster-manager/internal/schedule"
	"skerry.internal/messages"
)

// Incoming is a command as it came from a client.
type Incoming struct {
	Command       messages.Command // as messages.DecodeCommand returned it
	Bad           error            // and its error
	User          string           // who made it: request ids are each user's own
	MayCommand    bool             // the client has an operator's right
	ResponseTopic string           // MQTT 5
	Correlation   []byte
}

// op returns what is needed to answer the command.
func (in *Incoming) op(now time.Time) cluster.Op {
	return cluster.Op{Command: in.Command.Command, RequestID: in.Command.RequestID, ResponseTopic: in.ResponseTopic, Correlation: in.Correlation,
		ID: in.Command.Job.ID, Since: now}
}

// refusal is why a command is not taken.
type refusal struct {
	code    messages.Code
	message string
	nodes   []messages.Passed
}

func refuse(code messages.Code, format string, args ...any) *refusal {
	return &refusal{code: code, message: fmt.Sprintf(format, args...)}
}

// placementRefusal turns the scheduler's answer into ours.
func placementRefusal(ordinal int, r *schedule.Refusal) *refusal {
	return &refusal{code: r.Code, message: fmt.Sprintf("copy %d: %s", ordinal, r.Error()), nodes: r.Nodes[:min(len(r.Nodes), maxReported)]}
}

// Command takes one command. Its first Result is among the messages that leave once the changes are durable. It returns false where
// the command was refused for want of a right.
func (c *Core) Command(in Incoming, now time.Time) bool {
	c.now = now
	cmd, op := in.Command, in.op(now)
	if !in.MayCommand {
		c.answer(op, c.result(op, cmd.Job.Name, &refusal{code: messages.NotAllowed, message: "this client may look but not command: connect as an operator"}, 0))
		return false
	}
	if in.Bad != nil {
		c.answer(op, c.result(op, cmd.Job.Name, refuse(messages.BadPayload, "%s", oneLine(in.Bad)), 0))
		return true
	}
	key := requestKey(in.User, cmd.RequestID)
	if known, ok := c.requests[key]; ok {
		r := known.Result
		if refused := known.mistaken(cmd, now); refused != nil {
			r = c.result(op, cmd.Job.Name, refused, 0)
		}
		c.answer(op, r)
		return true
	}
	rev, refused := c.execute(cmd, op, now)
	r := c.result(op, cmd.Job.Name, refused, rev)
	if refused == nil || refused.code != messages.Unavailable { // that one says "try again"
		c.remember(key, request{Result: r, At: now, Of: fingerprint(cmd)}, refused == nil)
	}
	c.answer(op, r)
	c.say(cmd, refused, rev)
	return true
}

func (c *Core) say(cmd messages.Command, refused *refusal, rev uint64) {
	if refused != nil {
		c.logRefusal(refused, "command", string(cmd.Command), "job_id", cmd.Job.Name)
		return
	}
	c.log.Info("command accepted", "command", string(cmd.Command), "job_id", cmd.Job.Name, "rev", rev)
}

// oneLine joins the lines of a validation error.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// execute changes the desired state and returns the rev of the change.
func (c *Core) execute(cmd messages.Command, op cluster.Op, now time.Time) (uint64, *refusal) {
	if r := c.otherCluster(cmd.Cluster); r != nil {
		return 0, r
	}
	if r := c.knownNodes(cmd.Worker, cmd.From); r != nil {
		return 0, r
	}
	j := c.st.Jobs[cmd.Job.Name]
	if cmd.Command == messages.Deploy {
		return c.deploy(j, cmd, op, now)
	}
	if j == nil || (j.Deleting && cmd.Command != messages.Delete) {
		return 0, refuse(messages.UnknownJob, "there is no job %s", cmd.Job.Name)
	}
	if op.ID.IsZero() {
		op.ID = j.Spec.ID
	}
	switch cmd.Command {
	case messages.Delete:
		return c.remove(j, cmd, op)
	case messages.Move:
		return c.move(j, cmd, op, now)
	case messages.Replicate:
		return c.replicate(j, cmd, op, now)
	default:
		return 0, refuse(messages.BadPayload, "verb %q is not one that clients use", cmd.Command)
	}
}

// otherCluster refuses a command that names clusters, and not this one.
func (c *Core) otherCluster(names []string) *refusal {
	if len(names) == 0 || slices.Contains(names, c.cfg.Cluster) {
		return nil
	}
	return refuse(messages.WrongCluster, "this is cluster %s, the command is for %s", c.cfg.Cluster, strings.Join(names, ", "))
}

// knownNodes refuses names that no node bears.
func (c *Core) knownNodes(lists ...[]messages.NodeID) *refusal {
	var unknown []messages.Passed
	for _, list := range lists {
		for _, id := range list {
			if c.st.Nodes[id] == nil {
				unknown = append(unknown, messages.Passed{Node: id, Code: messages.UnknownNode, Reason: "no node of this name has ever registered"})
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return &refusal{code: messages.UnknownNode, message: fmt.Sprintf("no node %s has ever registered", unknown[0].Node), nodes: unknown}
}

// deploy creates the job or changes it to what is given.
func (c *Core) deploy(j *cluster.Job, cmd messages.Command, op cluster.Op, now time.Time) (uint64, *refusal) {
	spec := cmd.Job.WithDefaults()
	worker := normalNodes(cmd.Worker)
	if j != nil && !j.Deleting && sameJob(j, spec, worker) {
		return c.redeploy(j, op), nil
	}
	next := &cluster.Job{Spec: spec, Hash: cluster.HashSpec(spec.Spec), Worker: worker}
	if j != nil && !j.Deleting {
		next.Ordinals = j.Ordinals
	}
	next.Resize(spec.CopyCount())
	if r := c.feasible(j, next, true); r != nil {
		return 0, r
	}
	if r := c.leaseAddresses(j, next); r != nil {
		return 0, r
	}
	kind, text := messages.JobChanged, "changed"
	if j == nil {
		j = c.newJob(spec)
		kind, text = messages.JobDeployed, "deployed"
	} else {
		c.supersede(j)
		c.keepPrevious(j)
	}
	j.Spec, j.Hash, j.Worker, j.Ordinals, j.Addresses = next.Spec, next.Hash, next.Worker, next.Ordinals, next.Addresses
	j.Deleting, j.Reverted = false, ""
	c.accept(j, op, c.st.NextRev())
	c.event(messages.Event{Kind: kind, Job: spec.Name, Message: fmt.Sprintf("%s is %s: %d of %s", spec.Name, text, spec.CopyCount(), spec.Image)})
	return j.Rev, nil
}

// accept records a changed job with the command that waits for its last Result.
func (c *Core) accept(j *cluster.Job, op cluster.Op, rev uint64) {
	c.release(j)
	j.Rev = rev
	op.Rev = rev
	c.addOp(j, op)
	c.st.PutJob(j)
	c.touch(j.Spec.Name)
	c.summary = true
}

// maxOps bounds the commands that wait on one job; an older one is answered as superseded.
const maxOps = 32

func (c *Core) addOp(j *cluster.Job, op cluster.Op) {
	if op.RequestID == "" && op.ResponseTopic == "" {
		return // nobody to answer
	}
	if len(j.Ops) >= maxOps {
		c.finish(j, j.Ops[0], superseded)
		j.Ops = slices.Clone(j.Ops[1:])
	}
	j.Ops = append(j.Ops, op)
}

// redeploy answers a deploy of what is there already: nothing changes, but a copy that was given up gets another life.
func (c *Core) redeploy(j *cluster.Job, op cluster.Op) uint64 {
	c.release(j)
	if j.Previous == nil {
		for _, p := range j.Sorted() {
			if p.Run && p.Ended() {
				c.stop(p)
			}
		}
	}
	op.Rev = j.Rev
	c.addOp(j, op)
	c.st.PutJob(j)
	c.touch(j.Spec.Name)
	return j.Rev
}

// sameJob reports whether the job asks for just this.
func sameJob(j *cluster.Job, spec messages.Job, worker []messages.NodeID) bool {
	return string(messages.Encode(j.Spec)) == string(messages.Encode(spec)) && slices.Equal(j.Worker, worker)
}

func normalNodes(ids []messages.NodeID) []messages.NodeID {
	return slices.Compact(slices.Sorted(slices.Values(ids)))
}

// keepPrevious notes what a change can go back to: the last state that every copy had reached.
func (c *Core) keepPrevious(j *cluster.Job) {
	if j.Previous == nil && !j.Deleting && j.Held == 0 {
		j.Previous = &cluster.Previous{Rev: c.st.Rev, Spec: j.Spec, Hash: j.Hash, Worker: j.Worker, Ordinals: j.Ordinals}
	}
}

// feasible refuses a job that cannot be placed as things are: every new copy must find a node, and every copy that would be
// replaced must find one that takes its replacement, beside it or after it. A patient one waits for what is leaving a node. Nothing stays reserved.
func (c *Core) feasible(j, next *cluster.Job, patient bool) *refusal {
	want := c.want(next)
	want.Patient = patient
	placed := map[int]*cluster.Placement{}
	if j != nil { // of one that is being deleted: what has not been stopped yet, and need not be now
		for _, p := range j.Sorted() {
			if p.Run {
				placed[p.Ordinal] = p
			}
		}
	}
	type trial struct {
		node     messages.NodeID
		instance messages.InstanceID
	}
	var trials []trial
	defer func() {
		for _, t := range trials {
			c.table.Release(t.node, t.instance)
		}
	}()
	for _, o := range next.Ordinals {
		if p := placed[o]; p != nil {
			if r := c.replaceable(p, next, want); r != nil {
				return r
			}
			continue
		}
		want.Instance = trialName(next, o)
		node, refused := c.table.Place(want)
		if refused != nil {
			return placementRefusal(o, refused)
		}
		c.table.Reserve(node, want.Instance, want.Job, want.Spec)
		trials = append(trials, trial{node, want.Instance})
	}
	return nil
}

// replaceable refuses a change of a copy whose replacement finds no node, neither in its place, which is looked at first because
// that is quick, nor beside it.
func (c *Core) replaceable(p *cluster.Placement, next *cluster.Job, want schedule.Want) *refusal {
	allowed := c.table.Allows(p.Node, &want)
	if allowed && p.Hash == next.Hash {
		return nil
	}
	c.table.Release(p.Node, p.Instance)
	defer c.reserve(p)
	if allowed {
		there := want
		there.Worker = []messages.NodeID{p.Node}
		if _, found := c.table.Find(there); found {
			return nil
		}
	}
	if _, refused := c.table.Place(want); refused != nil {
		return placementRefusal(p.Ordinal, refused)
	}
	return nil
}

// remove deletes the job, or with a list of nodes only its copies there.
func (c *Core) remove(j *cluster.Job, cmd messages.Command, op cluster.Op) (uint64, *refusal) {
	if len(cmd.Worker) == 0 {
		c.supersede(j)
		j.Deleting = true
		j.Previous = nil
		c.accept(j, op, c.st.NextRev())
		return j.Rev, nil
	}
	gone, stay := map[int]bool{}, []*cluster.Placement{}
	for _, p := range j.Sorted() {
		switch {
		case !p.Run:
		case slices.Contains(cmd.Worker, p.Node):
			gone[p.Ordinal] = true
		case !c.isLost(j, p):
			stay = append(stay, p)
		}
	}
	for _, p := range stay {
		if gone[p.Ordinal] {
			return 0, beingReplaced(p)
		}
	}
	c.supersede(j)
	j.Ordinals = slices.DeleteFunc(slices.Clone(j.Ordinals), func(o int) bool { return gone[o] })
	j.Resize(len(j.Ordinals))
	keepCount(j)
	c.accept(j, op, c.st.NextRev())
	return j.Rev, nil
}

// keepCount makes the number of copies outlive a change that is taken back: it was not part of that change.
func keepCount(j *cluster.Job) {
	if prev := j.Previous; prev != nil {
		prev.Ordinals = j.Ordinals
		prev.Spec.Replicas = j.Spec.Replicas
	}
}

// replicate sets the number of copies. New ones go to the given nodes.
func (c *Core) replicate(j *cluster.Job, cmd messages.Command, op cluster.Op, now time.Time) (uint64, *refusal) {
	n := cmd.Job.CopyCount()
	if n == len(j.Ordinals) {
		c.release(j)
		op.Rev = j.Rev
		c.addOp(j, op)
		c.st.PutJob(j)
		c.touch(j.Spec.Name)
		return j.Rev, nil
	}
	next := &cluster.Job{Spec: j.Spec, Hash: j.Hash, Worker: j.Worker, Ordinals: j.Ordinals}
	if len(cmd.Worker) > 0 {
		next.Worker = normalNodes(cmd.Worker)
	}
	next.Resize(n)
	added := slices.DeleteFunc(slices.Clone(next.Ordinals), func(o int) bool { return slices.Contains(j.Ordinals, o) })
	check := &cluster.Job{Spec: next.Spec, Hash: next.Hash, Worker: next.Worker, Ordinals: added}
	if r := c.feasible(nil, check, len(cmd.Worker) == 0); r != nil { // the nodes are for now: a copy that waited would go anywhere
		return 0, r
	}
	if r := c.leaseAddresses(j, next); r != nil {
		return 0, r
	}
	c.supersede(j)
	if len(j.Worker) > 0 {
		j.Worker = normalNodes(slices.Concat(j.Worker, cmd.Worker))
	}
	j.Spec, j.Ordinals, j.Addresses = next.Spec, next.Ordinals, next.Addresses
	keepCount(j)
	if prev := j.Previous; prev != nil && len(prev.Worker) > 0 {
		prev.Worker = normalNodes(slices.Concat(prev.Worker, cmd.Worker))
	}
	c.accept(j, op, c.st.NextRev())
	for _, o := range added {
		want := c.want(next)
		if node, found := c.table.Find(want); found {
			c.place(j, reconcile.Action{Kind: reconcile.Start, Ordinal: o, Cause: cluster.ByDeploy}, node, now)
		}
	}
	c.event(messages.Event{Kind: messages.JobChanged, Job: j.Spec.Name, Message: fmt.Sprintf("%s shall have %d copies", j.Spec.Name, n)})
	return j.Rev, nil
}
