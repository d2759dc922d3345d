package sim

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"skerry.internal/cluster-manager/manager/managersim"
	"skerry.internal/messages"
)

// RunLoss plays the story of a manager that loses its disk while its nodes run on, in gentle weather: users are to notice nothing, nothing is
// started twice, and once the operator has said again what he wants all is as it was. It is called in a bubble of testing/synctest.
func RunLoss(seed uint64, dir string, log *slog.Logger) Outcome {
	s := begin(seed, gentle, None, dir, log)
	var wanted []messages.Command
	for _, name := range []messages.JobName{"web", "db", "cam"} {
		wanted = append(wanted, messages.Command{Command: messages.Deploy, Job: s.client.job(name, 1+s.rng.IntN(3))})
	}
	for _, cmd := range wanted {
		s.client.command(cmd)
	}
	s.advance(2 * time.Minute)
	s.plague()
	s.after(s.between(5*time.Second, chaosTime/2), s.loseDisk)
	s.advance(chaosTime)
	s.heal()
	s.advance(2 * time.Minute)
	s.rules.held(wanted)
	for _, cmd := range wanted {
		s.client.command(cmd)
	}
	s.advance(healTime - restTime)
	s.rules.rest()
	s.advance(restTime)
	s.rules.final()
	s.end()
	return s.outcome
}

// loseDisk kills the manager and gives the next one an empty disk.
func (s *Sim) loseDisk() {
	s.mgr.kill()
	s.tell("the manager loses its disk")
	s.disk = &disk{sim: s}
	s.client.orders = nil
	s.rules.revs, s.rules.jobs = 0, map[messages.JobName]*messages.JobStatus{}
}

// held checks that a manager that has lost its disk knows again what runs, and leaves it alone.
func (r *rules) held(wanted []messages.Command) {
	st, err := managersim.Load(r.sim.mgr.ctx, &r.sim.disk.Memory)
	if err != nil {
		r.sim.violation("the disk of the manager: %v", err)
		return
	}
	for _, cmd := range wanted {
		name := cmd.Job.Name
		j, status := st.Jobs[name], r.jobs[name]
		switch {
		case j == nil || status == nil:
			r.sim.violation("job %s is not found again", name)
		case status.State != messages.JobHeld || len(j.Ordinals) != cmd.Job.CopyCount() || status.Healthy != cmd.Job.CopyCount():
			r.sim.violation("job %s is %s with %d of %d copies, want it held with %d", name, status.State, status.Healthy, len(j.Ordinals), cmd.Job.CopyCount())
		}
	}
	if len(st.Jobs) != len(wanted) {
		r.sim.violation("jobs %v are there", joined(slices.Sorted(maps.Keys(st.Jobs))))
	}
}
