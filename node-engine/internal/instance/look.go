package instance

import (
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

// observe hands over an event of the driver. It never blocks.
func (r *runner) observe(w driver.Workload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marks++
	gap := r.seen != nil && r.seen.gap
	r.seenLocked(&sighting{Workload: w, gap: gap})
}

// mark returns a value by which listed tells whether its listing is older than what the runner knows.
func (r *runner) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marks
}

// listed hands over what a listing says that was begun at mark; w is nil where it does not hold the instance. It never blocks.
func (r *runner) listed(mark int, w *driver.Workload, gap bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away, r.answered = present, true
	s := &sighting{gap: gap, listed: true}
	if w != nil {
		s.Workload = *w
	}
	if r.marks != mark { // something newer is known, but the gap concerns that too
		if r.seen != nil {
			r.seen.gap = r.seen.gap || gap
		}
		r.wake()
		return
	}
	if a := r.record.Assignment; a.Run && !s.Running && !r.record.Status.State.Terminal() {
		s.ticket = r.set.gate.join(a.Spec.Priority) // here, because listings come in order of priority
	}
	r.seenLocked(s)
}

// dropLocked forgets what was seen and not looked at.
func (r *runner) dropLocked() {
	if old := r.seen; old != nil && old.ticket != nil {
		old.ticket.leave()
	}
	r.seen = nil
}

func (r *runner) seenLocked(s *sighting) {
	r.dropLocked()
	r.seen = s
	if r.glance != nil {
		r.glance()
	}
	r.wake()
}

// lost hands over that the technology does not answer. It never blocks.
func (r *runner) lost(a away) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away < a {
		r.away = a
		r.wake()
	}
}

func (r *runner) wake() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// look takes over what has been seen.
func (r *runner) look() {
	r.mu.Lock()
	seen, gone, answered := r.seen, r.away, r.answered
	r.seen, r.answered = nil, false
	r.mu.Unlock()
	r.sayAway(gone)
	if (answered || seen != nil) && gone == present && r.retries > 0 {
		r.retries, r.notBefore = 0, time.Time{}
	}
	if seen == nil {
		return
	}
	if seen.ticket != nil {
		if r.ticket == nil {
			r.ticket = seen.ticket
		} else {
			seen.ticket.leave()
		}
	}
	r.weigh(seen)
}

// sayAway says in the status of what runs, as far as is known, that its technology does not answer, and takes it back.
func (r *runner) sayAway(gone away) {
	s := r.status()
	if s.State.Terminal() || (s.State != messages.Running && !r.awaiting) {
		return
	}
	text := string(r.spec().Technology) + " does not answer"
	switch {
	case gone == awayLong && s.Reason == "":
		r.saidAway = true
		r.publish(func(rec *store.Record) { rec.Status.Reason = text })
	case gone == present && r.saidAway && s.Reason == text:
		r.saidAway = false
		r.publish(func(rec *store.Record) { rec.Status.Reason = "" })
	}
}

// weigh decides what a sighting means.
func (r *runner) weigh(seen *sighting) {
	s := r.status()
	awaited := r.awaiting
	r.awaiting = false
	stale := !seen.StartedAt.IsZero() && messages.At(seen.StartedAt) == r.ended
	switch {
	case !r.acting.Run:
		r.leftover = s.State == messages.Stopped && seen.Running && !stale
	case r.ending:
		if seen.gap && !seen.Running && r.cause != nil { // what looked like its failure was the technology's end
			r.ending, r.cause = false, nil
			r.interrupted(seen.Exit)
		}
	case s.State.Terminal() || stale:
	case seen.Running && (awaited || s.State == messages.Running):
		r.adopt(seen.Workload, awaited)
	case !seen.Running && s.State == messages.Running:
		r.over(seen, awaited)
	}
}

// adopt takes up a workload that runs.
func (r *runner) adopt(w driver.Workload, awaited bool) {
	s := r.status()
	healthy := s.Healthy || r.spec().Health == nil
	if awaited || messages.At(w.StartedAt) != s.StartedAt {
		r.health = newChecks(healthy)
	}
	r.publish(func(rec *store.Record) {
		before := rec.Status
		rec.Status = runs(rec.Status, w)
		rec.Status.Healthy = healthy
		if !healthy { // why it was not stays until it is
			rec.Status.Code, rec.Status.Reason = before.Code, before.Reason
		}
	})
}

// over takes over that a running workload has ended.
func (r *runner) over(seen *sighting, awaited bool) {
	r.ended = r.status().StartedAt
	lost := seen.gap && (seen.Exit == nil || !seen.listed) // a listing knows how it ended, an event only while nothing was missed
	if lost || (awaited && r.rebooted) || seen.Exit == nil || seen.Exit.Interrupted {
		r.interrupted(seen.Exit)
		return
	}
	r.fail(exited(*seen.Exit, r.spec().Resources.MemoryMB), false)
}

// interrupted begins again what ended through no fault of its own.
func (r *runner) interrupted(exit *driver.Exit) {
	r.notBefore = time.Time{}
	r.publish(func(rec *store.Record) {
		rec.Status = nextAttempt(rec.Status)
		rec.Status.Reason = "it was interrupted: " + string(r.spec().Technology) + " or the board was restarted, or somebody ended it by hand"
		if exit != nil {
			rec.Status.ExitCode, rec.Status.OOM = &exit.Code, exit.OOM
		}
	})
}
