package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"

	"skerry.internal/cluster-manager/manager/managersim"
	"skerry.internal/messages"
)

// allowedDown is how many copies of a job a manager may take down at once, where a node has no room for a copy and its replacement.
const allowedDown = 1

// takedowns holds in any weather that the manager itself takes no more copies of a job down than it may: it stops one that it was told is healthy
// only where another instance of that copy has been healthy, or nobody wants the copy, or its replacement waits for the room that it has, and that for
// at most allowedDown copies at a time. Copies that are down by crashes, cut-offs and failures are not its doing.
type takedowns struct {
	mu     sync.Mutex                                       // guards what follows: commits are the manager's goroutine's
	latest map[messages.InstanceID]messages.InstanceStatus  // as the manager was told
	good   map[messages.InstanceID]bool                     // has ever been told to be healthy, or to have done its work
	down   map[messages.JobName]map[int]messages.InstanceID // by copy: what was stopped without another one
}

func (d *takedowns) heard(i messages.InstanceStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.latest == nil {
		d.latest, d.good, d.down = map[messages.InstanceID]messages.InstanceStatus{}, map[messages.InstanceID]bool{}, map[messages.JobName]map[int]messages.InstanceID{}
	}
	if i.Seq >= d.latest[i.Instance].Seq {
		d.latest[i.Instance] = i
	}
	d.good[i.Instance] = d.good[i.Instance] || i.Healthy || i.State == messages.ExitedState
}

// stopping looks at changes before they are made durable, and returns what looks at them afterwards.
func (r *rules) stopping(ctx context.Context, changes []managersim.Change) func() {
	var stopped []managersim.Placement
	for _, c := range changes {
		if !bytes.Contains(c.Value, []byte(`"run":false`)) {
			continue
		}
		var p managersim.Placement
		if json.Unmarshal(c.Value, &p) == nil && p.Instance != "" {
			stopped = append(stopped, p)
		}
	}
	if len(stopped) == 0 {
		return func() {}
	}
	before, err := managersim.Load(ctx, &r.sim.disk.Memory)
	if err != nil {
		return func() {} // loaded says so
	}
	return func() {
		after, err := managersim.Load(ctx, &r.sim.disk.Memory)
		if err != nil {
			return
		}
		for _, p := range stopped {
			if old := before.Placement(p.Instance); old != nil && old.Run {
				r.stopped(after, &p)
			}
		}
	}
}

// stopped looks at one placement that ran and shall not any more.
func (r *rules) stopped(st *managersim.State, p *managersim.Placement) {
	d := &r.takedowns
	d.mu.Lock()
	defer d.mu.Unlock()
	j := st.Jobs[p.Job]
	if j == nil || j.Deleting || !j.Wanted(p.Ordinal) || !d.latest[p.Instance].Healthy {
		return
	}
	replaced := func(ordinal int) bool {
		for _, other := range j.Placements {
			if other.Ordinal == ordinal && other.Run && d.good[other.Instance] {
				return true
			}
		}
		return false
	}
	if replaced(p.Ordinal) {
		return
	}
	awaited := false // a replacement that has no room beside it
	for _, other := range j.Placements {
		awaited = awaited || other.After == p.Instance && other.Run
	}
	if !awaited {
		r.sim.say("manager 3 takedown", func() { r.sim.violation("the manager stops %s, which is healthy, before another one is", p.Instance) })
		return
	}
	if d.down[p.Job] == nil {
		d.down[p.Job] = map[int]messages.InstanceID{}
	}
	down := d.down[p.Job]
	down[p.Ordinal] = p.Instance
	for ordinal := range down {
		if !j.Wanted(ordinal) || replaced(ordinal) {
			delete(down, ordinal)
		}
	}
	if len(down) > allowedDown {
		count := len(down)
		r.sim.say("manager 3 takedown", func() {
			r.sim.violation("the manager stops %s, which is healthy, and so has taken down %d copies of one job, %d at most", p.Instance, count, allowedDown)
		})
	}
}
