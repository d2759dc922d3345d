package sim

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"skerry.internal/cluster-manager/manager/managersim"
	"skerry.internal/messages"
	"skerry.internal/node-engine/engine/enginesim"
)

func (s *Sim) background() context.Context { return context.Background() }

// final is checked once everything has healed: what is desired is what runs, nothing twice, nothing orphaned, every command answered.
func (r *rules) final() {
	s := r.sim
	st, err := managersim.Load(s.mgr.ctx, &s.disk.Memory)
	if err != nil {
		s.violation("the disk of the manager: %v", err)
		return
	}
	r.answers()
	r.obeyed(st)
	r.leased(st)
	for _, name := range slices.Sorted(maps.Keys(st.Jobs)) {
		r.complete(st, name)
	}
	for _, n := range s.nodes {
		if n.gone {
			r.abandoned(st, n)
			continue
		}
		r.agrees(st, n)
	}
}

// answers checks that each command was answered, once and once again.
func (r *rules) answers() {
	for _, o := range r.sim.client.orders {
		id := o.cmd.RequestID
		switch {
		case o.first == nil && o.acked:
			r.sim.violation("%s was acknowledged, but was neither accepted nor refused", id)
		case o.first == nil:
			r.sim.violation("%s was never taken", id)
		case o.first.Phase == messages.Accepted && len(o.last) == 0 && !o.crashed:
			r.sim.violation("%s (%s) has no last Result", id, describeCommand(&o.cmd))
		}
	}
}

// leased checks that every node has its block and every job its addresses, and that nothing is leased twice.
func (r *rules) leased(st *managersim.State) {
	owners := map[netip.Addr]string{}
	lease := func(a netip.Addr, owner string) {
		if owners[a] != "" || !a.IsValid() {
			r.sim.violation("the address %s is leased to %q and %q", a, owners[a], owner)
		}
		owners[a] = owner
	}
	for _, id := range slices.Sorted(maps.Keys(st.Nodes)) {
		n := st.Nodes[id]
		if n.Info.Overlay != nil && len(n.Blocks) == 0 {
			r.sim.violation("%s has no block", id)
		}
		for _, b := range n.Blocks {
			lease(b.Addr(), string(id))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(st.Jobs)) {
		j := st.Jobs[name]
		if j.Addresses == nil {
			r.sim.violation("%s has no addresses", name)
			continue
		}
		lease(j.Addresses.RoundRobin, string(name))
		lease(j.Addresses.Closest, string(name))
		for _, o := range slices.Sorted(maps.Keys(j.Addresses.Instances)) {
			lease(j.Addresses.Instances[o], string(name))
		}
		for _, o := range j.Ordinals {
			if !j.Addresses.Instances[o].IsValid() {
				r.sim.violation("copy %d of %s has no address", o, name)
			}
		}
	}
}

// wish is what the accepted commands together ask of one job.
type wish struct {
	image  string
	copies int // -1: depends on where they were
}

// obeyed checks that what the manager has on disk is what its clients have asked for.
func (r *rules) obeyed(st *managersim.State) {
	want := map[messages.JobName]*wish{}
	for _, o := range r.sortedOrders() {
		name := o.cmd.Job.Name
		switch o.cmd.Command {
		case messages.Deploy:
			want[name] = &wish{o.cmd.Job.Image, o.cmd.Job.CopyCount()}
		case messages.Delete:
			if len(o.cmd.Worker) == 0 {
				delete(want, name)
			} else if want[name] != nil {
				want[name].copies = -1
			}
		case messages.Replicate:
			if want[name] != nil {
				want[name].copies = o.cmd.Job.CopyCount()
			}
		}
	}
	for name := range st.Jobs {
		if want[name] == nil {
			r.sim.violation("job %s is there, but nobody wants it", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, j := want[name], st.Jobs[name]
		switch {
		case j == nil:
			r.sim.violation("job %s is accepted, but is not there", name)
		case j.Reverted != "": // it may ask for what an earlier command did
		case j.Spec.Image != w.image, w.copies >= 0 && len(j.Ordinals) != w.copies:
			r.sim.violation("job %s is %s ×%d, want %s ×%d", name, j.Spec.Image, len(j.Ordinals), w.image, w.copies)
		}
	}
}

// complete checks one job: every copy is there, once, on a node that lives.
func (r *rules) complete(st *managersim.State, name messages.JobName) {
	s, j := r.sim, st.Jobs[name]
	status := r.jobs[name]
	if status == nil {
		s.violation("job %s has no status", name)
		return
	}
	waiting := map[int]bool{}
	for _, w := range status.Waiting {
		waiting[w.Ordinal] = true
	}
	copies := map[int]int{}
	for _, p := range j.Sorted() {
		if !calm(p.Spec.Image) || !calm(j.Spec.Image) {
			copies[p.Ordinal] = 1
			continue
		}
		if !p.Run || p.After != "" {
			s.violation("%s is left over (run %v, after %q)", p.Instance, p.Run, p.After)
		}
		if n := s.find(p.Node); n != nil && n.gone && (waiting[p.Ordinal] || j.Spec.OnReturn == messages.KeepOriginal || p.Finished) {
			if waiting[p.Ordinal] || p.Finished {
				copies[p.Ordinal]++
			}
			continue
		}
		copies[p.Ordinal]++
	}
	for _, o := range j.Ordinals {
		if copies[o] != 1 && (copies[o] > 1 || !waiting[o]) {
			s.violation("copy %d of %s is placed %d times", o, name, copies[o])
		}
	}
	if j.Deleting {
		s.violation("job %s is still being deleted", name)
	}
	if j.Previous != nil && calm(j.Spec.Image) && calm(j.Previous.Spec.Image) && len(waiting) == 0 {
		s.violation("the change of %s has not come to an end", name)
	}
}

func (s *Sim) find(id messages.NodeID) *node {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// abandoned checks that nobody counts on a node that does not come back.
func (r *rules) abandoned(st *managersim.State, n *node) {
	for _, p := range st.PlacedOn(n.id) {
		j := st.Jobs[p.Job]
		status := r.jobs[p.Job]
		kept := j.Spec.OnReturn == messages.KeepOriginal || p.Finished || !calm(p.Spec.Image) || !calm(j.Spec.Image)
		if !kept && (status == nil || !slices.ContainsFunc(status.Waiting, func(w messages.WaitingCopy) bool { return w.Ordinal == p.Ordinal })) {
			r.sim.violation("%s is still placed on %s, which is gone", p.Instance, n.id)
		}
	}
	if b := r.board[n.id]; b != nil && b.State != messages.NodeLost {
		r.sim.violation("%s is gone, the manager says %s", n.id, b.State)
	}
}

// agrees checks that manager, engine and technology of a node are of one mind.
func (r *rules) agrees(st *managersim.State, n *node) {
	s := r.sim
	if n.life == nil {
		s.violation("the engine of %s does not run", n.id)
		return
	}
	wanted := st.Assignments(n.id)
	if got, _, _ := n.life.engine.Digest(); got != messages.Digest(wanted) {
		s.violation("%s holds other assignments than the manager wants there: %s", n.id, r.differs(st, n))
	}
	held := map[messages.InstanceID]enginesim.Workload{}
	for _, w := range n.driver.Held() {
		held[w.Instance] = w
		if p := st.Placement(w.Instance); p == nil || p.Node != n.id || !p.Run {
			s.violation("%s is orphaned on %s", w.Instance, n.id)
		}
	}
	memory := 0
	for _, p := range st.PlacedOn(n.id) {
		if !p.Finished {
			memory += p.Spec.Resources.MemoryMB
		}
		r.runs(n, p, held)
	}
	if b := r.board[n.id]; b == nil || b.State != messages.NodeOnline {
		s.violation("%s is connected, its status says otherwise", n.id)
	} else if b.Reserved.MemoryMB != memory {
		s.violation("%d MiB are reserved on %s, its instances have %d", b.Reserved.MemoryMB, n.id, memory)
	}
	r.seen(n)
}

// runs checks one placement against what its node runs.
func (r *rules) runs(n *node, p *managersim.Placement, held map[messages.InstanceID]enginesim.Workload) {
	if k := kind(p.Spec.Image); !p.Run || (k != "good" && k != "slow") {
		return
	}
	spec, _ := n.driver.Spec(p.Instance)
	if w, ok := held[p.Instance]; !ok || !w.Running || spec.Image != p.Spec.Image {
		r.sim.violation("%s shall run %s on %s, there is %+v of %s", p.Instance, p.Spec.Image, n.id, w.Running, spec.Image)
	}
}

// seen checks that the manager's last word on each instance is the engine's.
func (r *rules) seen(n *node) {
	for _, i := range n.life.engine.Statuses() {
		job := r.jobs[i.Job]
		if job == nil || !calm(job.Image) || !calm(job.Spec.Image) {
			continue
		}
		for _, report := range job.Instances {
			if report.Instance == i.Instance && report.Run && (report.State != i.State || report.Healthy != i.Healthy || report.Seq != i.Seq) {
				r.sim.violation("the manager says %s, %s says %s", describeStatus(&report.InstanceStatus), n.id, describeStatus(&i))
			}
		}
	}
}

// differs says in words what a node holds and what it should.
func (r *rules) differs(st *managersim.State, n *node) string {
	var want, have []string
	for _, a := range st.Assignments(n.id) {
		want = append(want, describeAssignment(&a))
	}
	for _, i := range n.life.engine.Statuses() {
		have = append(have, describeStatus(&i))
	}
	return "want [" + joined(want) + "], have [" + joined(have) + "]"
}
