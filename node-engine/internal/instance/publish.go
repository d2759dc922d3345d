package instance

import (
	"reflect"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/store"
)

// seqStep is how many seqs are reserved on disk at once: a write for each of them would wear the card and slow a deploy down.
const seqStep = 64

// status returns the newest status.
func (r *runner) status() messages.InstanceStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.record.Status
}

// publish changes the status by one function and reports it where it differs then.
func (r *runner) publish(change func(*store.Record)) {
	r.out.Lock()
	defer r.out.Unlock()
	r.announceOut()
	r.mu.Lock()
	old, stored, quiet, dirty := r.record, r.stored, r.quiet, r.dirty
	r.mu.Unlock()
	next := old
	change(&next)
	id := &old.Status // what a change may have taken from an older status
	next.Status.Instance, next.Status.Job, next.Status.Generation, next.Status.Seq = id.Instance, id.Job, id.Generation, id.Seq
	if replacing := r.ending && r.cause == nil; !replacing { // what is replaced was made by an older assignment
		next.Status.Rev, next.Made = r.acting.Rev, r.hash
	}
	if same(&old, &next) {
		return
	}
	next.Status.At = messages.At(time.Now())
	next.Acked = false
	if !quiet {
		next.Status.Seq++
	}
	first := dirty || weighs(&old, &next)
	if next.Status.Seq >= next.SeqBound {
		next.SeqBound, first = next.Status.Seq+seqStep, true
	}
	next.BootID = r.set.cfg.BootID
	if stored && first {
		r.save(&next)
	}
	r.mu.Lock()
	r.record, r.unsaid = next, false
	r.mu.Unlock()
	r.logChange(&old.Status, &next.Status)
	if !quiet {
		r.set.cfg.Report(next.Status)
	}
	if stored && !first && next.Status.State == messages.Running {
		r.save(&next)
	}
}

// same reports whether nothing has changed that is worth a report.
func same(a, b *store.Record) bool {
	x, y := a.Status, b.Status
	x.At, y.At = messages.Time{}, messages.Time{}
	return a.Failures == b.Failures && a.Tries == b.Tries && reflect.DeepEqual(x, y)
}

// weighs reports whether the change must be on disk before anybody hears of it.
func weighs(a, b *store.Record) bool {
	return a.Status.Attempt != b.Status.Attempt || a.Failures != b.Failures || b.Status.State.Terminal()
}

// save writes the record. Where the disk does not take it the instance goes on, and the next change is written first.
func (r *runner) save(rec *store.Record) {
	err := r.set.cfg.Store.Save(*rec)
	r.mu.Lock()
	r.dirty = err != nil
	r.mu.Unlock()
	if err != nil {
		r.log.Warn("status not written", "err", err)
	}
}

func (r *runner) logChange(a, b *messages.InstanceStatus) {
	if a.State == b.State && a.Healthy == b.Healthy && a.Attempt == b.Attempt {
		return
	}
	r.log.Info("instance changed", "state", b.State, "attempt", b.Attempt, "healthy", b.Healthy, "reason", b.Reason)
}

// announceNow reports the status that a new instance begins with.
func (r *runner) announceNow() {
	r.out.Lock()
	defer r.out.Unlock()
	r.announceOut()
}

// announceOut is announceNow with out held.
func (r *runner) announceOut() {
	r.mu.Lock()
	due, s := r.announce, r.record.Status
	r.announce = false
	r.mu.Unlock()
	if due {
		r.set.cfg.Report(s)
	}
}

// accept makes a newer assignment durable, then hands it to the goroutine. One that ends the instance is handed over even where the disk does not
// take it: a stop frees the disk, and until the file is written or deleted the next sync repeats it. force is for one that replaces an equal one.
// It never waits for a driver.
func (r *runner) accept(a messages.Assignment, force bool) error {
	r.out.Lock()
	defer r.out.Unlock()
	r.mu.Lock()
	next, quiet, stored := r.record, r.quiet, r.stored
	r.mu.Unlock()
	if !force && !quiet && next.Status.Instance != "" && !a.Newer(&next.Assignment) {
		return nil
	}
	before := next.Assignment
	if a.Spec == nil {
		a.Spec = before.Spec // what is to be stopped, and how
	}
	next.Assignment = a
	if quiet || next.Status.Instance == "" {
		next.Status = firstStatus(&a, next.Status.Seq)
	}
	reserved := next.SeqBound
	next.SeqBound = max(next.SeqBound, next.Status.Seq+seqStep)
	err := r.set.cfg.Store.Save(next)
	if err != nil {
		if a.Run {
			return err
		}
		r.log.Warn("stop not written", "rev", a.Rev, "err", err)
		next.SeqBound = reserved
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	first := quiet || before.Instance == ""
	r.announce = r.announce || (a.Run && first)
	r.unsaid = !a.Run && (first || r.unsaid)
	r.record, r.stored, r.quiet, r.dirty = next, stored || err == nil, false, err != nil
	if before.Instance != "" && (a.Run != before.Run || hashOf(&a) != hashOf(&before)) {
		r.overtook = true
		if r.cut != nil {
			r.cut()
		}
		if r.glance != nil {
			r.glance()
		}
	}
	r.wake()
	return nil
}

// firstStatus is what an instance begins with; one that is not to run says nothing before it is known to be stopped.
func firstStatus(a *messages.Assignment, seq uint64) messages.InstanceStatus {
	job, _, generation, _ := a.Instance.Split() //nolint:errcheck // the assignment has been validated
	if a.Run {
		seq++
	}
	return messages.InstanceStatus{Instance: a.Instance, Job: job, Generation: generation, Rev: a.Rev, Seq: seq,
		State: messages.Pending, At: messages.At(time.Now())}
}

// acked takes over that a status has reached the manager's broker.
func (r *runner) acked(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq == r.record.Status.Seq && !r.record.Acked {
		r.record.Acked = true
		r.wake()
	}
}

// done reports whether nothing is left to do or to say of the instance.
func (r *runner) done() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.record.Assignment.Run && r.record.Status.State == messages.Stopped && (r.record.Acked || r.quiet)
}
