package dispatch

import (
	"testing"
	"time"

	"skerry.internal/messages"
)

// bare is a job without a health check.
func bare(name messages.JobName, image string) messages.Job {
	j := job(name, image, 1)
	j.Health = nil
	return j
}

// A deploy of a job without a health check is done once its copy has run for update.stable, and not for as long as it was up for a moment.
func TestDeployWithoutHealthCheckIsProvedByTime(t *testing.T) {
	w := newWorld(t, "a")
	r := w.accepted(deploy(bare("web", "good")))
	w.done2(r, func() { w.pass(time.Second) })
	again := w.accepted(deploy(bare("web", "good"))) // it has run for long enough
	w.done(again)

	crash := w.accepted(deploy(bare("crash", "good")))
	for attempt := range 3 { // runs for a moment, each time
		w.change("crash.0.0", func(s *messages.InstanceStatus) {
			s.State, s.Healthy, s.Attempt, s.Code, s.Reason = messages.Pending, false, attempt+1, messages.Exited, "exited with code 1"
		})
		if attempt == 2 {
			break
		}
		w.pass(500 * time.Millisecond)
		w.change("crash.0.0", func(s *messages.InstanceStatus) { s.State, s.Healthy = messages.Running, true })
		if last := w.last(crash); last != nil && attempt == 0 {
			t.Fatalf("too early: %+v", last)
		}
		w.pass(500 * time.Millisecond)
	}
	w.failed(crash, messages.Exited)
}
