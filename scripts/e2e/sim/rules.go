package sim

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"skerry.internal/cluster-manager/manager/managersim"
	"skerry.internal/messages"
	"skerry.internal/node-engine/engine/enginesim"
)

// rules is what must hold, some of it always and some once everything has healed.
type rules struct {
	sim     *Sim
	resting bool
	// of what nodes say
	reports map[track]messages.InstanceStatus
	ended   map[track]bool // has been reported stopped, as it was told
	inputs  map[track]messages.InstanceStatus
	epochs  map[track]uint64
	// of what the manager says
	revs  uint64 // the highest rev that somebody has heard of
	jobs  map[messages.JobName]*messages.JobStatus
	board map[messages.NodeID]*messages.NodeStatus
	// serving is how many copies of a job users may rely on in gentle weather.
	serving   map[messages.JobName]int
	newest    map[messages.JobName]string // request id of the newest command
	takedowns takedowns
}

// track is an instance as one disk of one node knows it; an empty instance is the node itself.
type track struct {
	node     messages.NodeID
	disk     int
	instance messages.InstanceID
}

func newRules(s *Sim) *rules {
	return &rules{sim: s, reports: map[track]messages.InstanceStatus{}, ended: map[track]bool{}, inputs: map[track]messages.InstanceStatus{}, epochs: map[track]uint64{},
		jobs: map[messages.JobName]*messages.JobStatus{}, board: map[messages.NodeID]*messages.NodeStatus{},
		serving: map[messages.JobName]int{}, newest: map[messages.JobName]string{}}
}

// reported checks a status as its engine makes it: seq grows, over restarts, too, and what has stopped stays so.
func (r *rules) reported(l *life, i *messages.InstanceStatus) {
	r.talk("%s reports %s", l.node.id, describeStatus(i))
	if err := i.Validate(); err != nil {
		r.sim.violation("%s reports a status that is not valid: %v", l.node.id, err)
	}
	k := track{l.node.id, l.disk, i.Instance}
	old, ok := r.reports[k]
	if ok && i.Seq <= old.Seq {
		r.sim.violation("%s reports %s after %s: seq does not grow", l.node.id, describeStatus(i), describeStatus(&old))
	}
	if r.ended[k] && i.State == messages.Running {
		r.sim.violation("%s reports %s, though it was told to stop before: no name has two lives", l.node.id, describeStatus(i))
	}
	r.ended[k] = r.ended[k] || (i.State == messages.Stopped && i.Rev > 0) // rev 0: nobody had asked for it
	r.reports[k] = *i
}

// heard checks a status as the manager gets it: seq never goes back, and one seq is one status.
func (r *rules) heard(c *conn, payload []byte) {
	var i messages.InstanceStatus
	if err := json.Unmarshal(payload, &i); err != nil {
		r.sim.violation("%s sends a status that cannot be read: %v", c.node.id, err)
		return
	}
	r.takedowns.heard(i)
	if r.sim.weather == harsh {
		return // the network itself takes seq back
	}
	k := track{c.node.id, c.life.disk, i.Instance}
	old, ok := r.inputs[k]
	switch {
	case ok && i.Seq < old.Seq:
		r.sim.violation("%s sends %s after %s: seq goes back", c.node.id, describeStatus(&i), describeStatus(&old))
	case ok && i.Seq == old.Seq && !reflect.DeepEqual(i, old):
		r.sim.violation("%s sends %s and %s: one seq, two statuses", c.node.id, describeStatus(&i), describeStatus(&old))
	}
	r.inputs[k] = i
}

// talk notes that something was said. Once everything has come to rest there is nothing left to say.
func (r *rules) talk(format string, args ...any) {
	if r.resting {
		r.sim.violation("no rest: "+format, args...)
	}
}

// rest begins the time in which nothing is to happen any more, unless some job cannot come to rest.
func (r *rules) rest() {
	st, err := managersim.Load(r.sim.mgr.ctx, &r.sim.disk.Memory)
	if err != nil {
		r.sim.violation("the disk of the manager: %v", err)
		return
	}
	for _, j := range st.Jobs {
		if !calm(j.Spec.Image) {
			return
		}
		for _, p := range j.Placements { // a copy that is to be replaced stays until there is room for another one
			if !calm(p.Spec.Image) {
				return
			}
		}
	}
	r.resting = true
}

// calm reports whether copies of an image come to rest.
func calm(image string) bool { return slices.Contains([]string{"good", "slow", "batch"}, kind(image)) }

// published checks what the manager says.
func (r *rules) published(t messages.Topic, payload []byte) {
	switch t.Kind {
	case messages.ResultTopic:
		var res messages.Result
		if json.Unmarshal(payload, &res) == nil {
			r.result(t.Request, &res)
		}
	case messages.JobStatusTopic:
		delete(r.jobs, t.Job)
		if len(payload) > 0 {
			r.jobs[t.Job] = new(messages.JobStatus)
			_ = json.Unmarshal(payload, r.jobs[t.Job])
		}
	case messages.NodeStatusTopic:
		r.board[t.Node] = new(messages.NodeStatus)
		_ = json.Unmarshal(payload, r.board[t.Node])
	case messages.SyncTopic:
		var y messages.Sync
		_ = json.Unmarshal(payload, &y)
		r.revs = max(r.revs, y.Rev)
		r.talk("manager → %s %s", t.Node, describe(t, payload))
	case messages.NodeControlTopic:
		r.talk("manager → %s %s", t.Node, describe(t, payload))
	case messages.EventTopic:
		r.event(payload)
	}
}

func (r *rules) event(payload []byte) {
	var e messages.Event
	_ = json.Unmarshal(payload, &e)
	r.sim.tell("event: %s %s", e.Kind, e.Message)
	if r.sim.weather == gentle && (e.Kind == messages.InstanceLost || e.Kind == messages.NodeLostEv) {
		r.sim.violation("%s, though no node was away for %s", e.Message, lostAfter)
	}
}

// result checks that a command has one first Result, which repeats itself, and at most one last.
func (r *rules) result(request string, res *messages.Result) {
	s := r.sim
	s.tell("result: %s %s %s %s %s rev %d", request, res.Command, res.Phase, res.Code, res.Message, res.Rev)
	r.revs = max(r.revs, res.Rev)
	o := s.client.find(request)
	if o == nil {
		s.violation("a Result for %s, which nobody has asked", request)
		return
	}
	if res.Phase == messages.Accepted || res.Phase == messages.Refused {
		if f := o.first; f != nil && f.Phase == messages.Accepted && (f.Phase != res.Phase || f.Rev != res.Rev) {
			s.violation("%s was %s at rev %d and is now %s at rev %d", request, f.Phase, f.Rev, res.Phase, res.Rev)
		}
		o.first = res
		return
	}
	o.last = append(o.last, *res)
	if len(o.last) > 1 {
		s.violation("%s has two last Results: %s and %s", request, o.last[0].Phase, res.Phase)
	}
	r.fulfilled(o, res)
}

// fulfilled notes what users may rely on from now on: what the newest command of a job has asked for is there.
func (r *rules) fulfilled(o *order, res *messages.Result) {
	verb := o.cmd.Command
	pending := slices.ContainsFunc(r.sim.client.orders, func(other *order) bool { return other.cmd.Job.Name == res.Job && !other.acked })
	if pending { // an earlier command that is taken late, maybe after it was refused as unavailable
		return
	}
	if r.sim.weather != gentle || res.Phase != messages.Done || r.newest[res.Job] != o.cmd.RequestID || (verb != messages.Deploy && verb != messages.Replicate) {
		return
	}
	r.serving[res.Job] = o.cmd.Job.CopyCount()
}

// ordered lowers what users may rely on as soon as a client asks for less.
func (r *rules) ordered(cmd *messages.Command) {
	name := cmd.Job.Name
	r.newest[name] = cmd.RequestID
	switch cmd.Command {
	case messages.Delete:
		r.serving[name] = 0
	case messages.Deploy, messages.Replicate:
		r.serving[name] = min(r.serving[name], cmd.Job.CopyCount())
	}
}

// managerDied notes whose last Result may have died with the manager.
func (r *rules) managerDied() {
	for _, o := range r.sim.client.orders {
		o.crashed = o.crashed || len(o.last) == 0
	}
}

// loaded checks that a manager that starts knows all that the one before it has said.
func (r *rules) loaded() {
	s := r.sim
	if s.disk == nil {
		return
	}
	st, err := managersim.Load(s.background(), &s.disk.Memory)
	if err != nil {
		s.violation("the disk of the manager: %v", err)
		return
	}
	if st.Rev < r.revs {
		s.violation("the manager starts at rev %d but has spoken of %d: something it said was not on its disk", st.Rev, r.revs)
	}
}

// always is checked after everything that happens.
func (r *rules) always() {
	s := r.sim
	where := map[messages.InstanceID]messages.NodeID{}
	serving := map[messages.JobName]int{}
	for _, n := range s.nodes {
		for _, w := range n.driver.Held() {
			if !w.Running {
				continue
			}
			if other, twice := where[w.Instance]; twice {
				s.violation("%s runs on %s and on %s", w.Instance, other, n.id)
			}
			where[w.Instance] = n.id
			if s.weather == gentle && n.working(&w) {
				job, _, _, _ := w.Instance.Split()
				serving[job]++
			}
		}
		r.epoch(n)
	}
	if s.weather == gentle {
		r.undisturbed(serving)
	}
}

// epoch checks that a node never forgets how far it has heard of its managers.
func (r *rules) epoch(n *node) {
	if n.life == nil || n.life.dead.Load() {
		return
	}
	k := track{n.id, n.disks, ""}
	_, epoch, _ := n.life.engine.Digest()
	if epoch < r.epochs[k] {
		r.sim.violation("%s goes back from epoch %d to %d", n.id, r.epochs[k], epoch)
	}
	r.epochs[k] = epoch
}

// undisturbed checks that in gentle weather users notice nothing: not during a rollout, a move or a crash of manager or engine.
func (r *rules) undisturbed(serving map[messages.JobName]int) {
	for _, job := range slices.Sorted(maps.Keys(r.serving)) {
		if want := r.serving[job]; serving[job] < want {
			r.sim.violation("%d copies of %s serve, users rely on %d", serving[job], job, want)
			r.serving[job] = serving[job]
		}
	}
	for _, n := range r.sim.nodes {
		n.mu.Lock()
		for id, count := range n.starts {
			if count > 1 {
				r.sim.violation("%s was started %d times on %s", id, count, n.id)
			}
		}
		n.mu.Unlock()
	}
}

// working reports whether a workload that runs serves.
func (n *node) working(w *enginesim.Workload) bool {
	spec, ok := n.driver.Spec(w.Instance)
	return ok && slices.Contains([]string{"good", "slow"}, kind(spec.Image)) && time.Since(w.StartedAt) >= n.warmUp(w.Instance)
}

// sortedOrders returns the accepted commands in the order in which they were taken.
func (r *rules) sortedOrders() []*order {
	var taken []*order
	for _, o := range r.sim.client.orders {
		if o.first != nil && o.first.Phase == messages.Accepted {
			taken = append(taken, o)
		}
	}
	slices.SortStableFunc(taken, func(a, b *order) int { return int(a.first.Rev) - int(b.first.Rev) })
	return taken
}

func joined[T ~string](all []T) string {
	var words []string
	for _, v := range all {
		words = append(words, string(v))
	}
	return strings.Join(words, " ")
}
