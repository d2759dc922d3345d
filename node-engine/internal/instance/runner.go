package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

const (
	// The wait between calls to a technology that does not answer, or that does not stop a workload.
	minRetry = 200 * time.Millisecond
	maxRetry = 5 * time.Second
	// startMercy is how long a start may go on once the instance shall run otherwise: what is nearly there is replaced as quickly as what is not. One
	// that shall not run at all is cut at once.
	startMercy = 5 * time.Second
	// pullPatience is how long an instance keeps its place among those coming up while its image is brought.
	pullPatience = time.Second
	// progressEvery bounds how often a pull is reported.
	progressEvery = time.Second
	// idle is the wait of a runner that has nothing to do until there is news.
	idle = time.Duration(-1)
)

// runner owns the life of one instance.
type runner struct {
	set  *Set
	id   messages.InstanceID
	log  *slog.Logger
	news chan struct{} // capacity 1: "look again"

	out sync.Mutex // held while something goes to disk or is reported, so that both keep their order; taken before mu

	mu       sync.Mutex   // guards what follows; the record is changed with out held as well, but for Acked
	record   store.Record // the newest assignment and status
	stored   bool         // the record has a file
	dirty    bool         // the file is behind what has been published
	announce bool         // the status has not been reported yet
	unsaid   bool         // nothing has been reported of this life of the instance, and nothing is to be before it has stopped
	quiet    bool         // nobody asked for this instance: end its workload and forget it without a word
	cut      func()       // ends the call under way because of a newer assignment
	glance   func()       // ends the call under way because something was seen
	overtook bool         // a newer assignment came since the last take
	seen     *sighting    // what the driver said last and the runner has not looked at
	answered bool         // the technology has told what it holds since the runner last looked
	marks    int          // counts starts and events, so that an older listing is recognised
	away     away

	life // the runner's goroutine alone
}

// away says whether the technology answers.
type away int

const (
	present  away = iota
	silent        // it has just gone: no health checks
	awayLong      // to be said in the status
)

// sighting is what a driver said of an instance.
type sighting struct {
	driver.Workload
	gap    bool    // the technology was away since the last one
	listed bool    // from a listing, not an event
	ticket *ticket // a place among those coming up, where it may be needed
}

// life is what a runner knows of its instance beside the record.
type life struct {
	acting    messages.Assignment // the newest one that was looked at
	hash      string              // of acting's workload
	pull      pull                // since the image was there
	old       *messages.Spec      // of a workload that another one replaces
	awaiting  bool                // not seen since the engine started
	rebooted  bool                // the record is of an earlier boot
	ending    bool                // what runs is to be ended before anything else
	cause     *failure            // why it is ended; nil: it is replaced
	leftover  bool                // something was seen running that has been stopped
	ended     messages.Time       // start of the last life that is over
	notBefore time.Time
	retries   int
	saidAway  bool // the status says so, beside any call that fails
	ticket    *ticket
	health    checks
}

// run takes steps until ctx ends or the instance is forgotten.
func (r *runner) run(ctx context.Context) {
	defer r.leave()
	for ctx.Err() == nil {
		wait := r.turn(ctx)
		if wait == 0 {
			continue
		}
		if r.done() && r.set.forget(r) {
			return
		}
		r.await(ctx, wait)
	}
}

// await waits for news, for its turn to come up, or until the time is over.
func (r *runner) await(ctx context.Context, wait time.Duration) {
	var timer <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	var granted <-chan struct{}
	if r.ticket != nil && !r.ticket.open() {
		granted = r.ticket.granted
	}
	select {
	case <-ctx.Done():
	case <-r.news:
	case <-timer:
	case <-granted:
	}
}

// turn looks at what is new and takes at most one step. It returns how long there is nothing to do; 0: go on.
func (r *runner) turn(ctx context.Context) time.Duration {
	r.announceNow()
	r.take()
	r.look()
	s := r.status()
	switch {
	case !r.acting.Run && s.State == messages.Stopped && !r.leftover:
		r.leave()
		return idle
	case r.acting.Run && !s.State.Terminal() && r.set.driverFor(r.spec()) == nil:
		r.fail(refused(errNoTechnology, r.spec()), false)
		return 0
	case !r.acting.Run, r.ending:
	case s.State == messages.Stopped:
		r.again("", true)
		return 0
	case s.State.Terminal():
		r.leave()
		return idle
	case r.awaiting:
		return idle
	case s.State == messages.Running:
		r.leave()
		return r.tend(ctx)
	}
	if d := time.Until(r.notBefore); d > 0 {
		r.leave()
		return d
	}
	if r.acting.Run && !r.ending && !r.admitted() {
		return idle
	}
	r.advance(ctx, s)
	return 0
}

// take looks at the newest assignment.
func (r *runner) take() {
	r.mu.Lock()
	want := r.record.Assignment
	r.overtook = false
	r.mu.Unlock()
	if want.Rev == r.acting.Rev && want.Epoch == r.acting.Epoch && want.Run == r.acting.Run && r.hash != "" {
		return
	}
	before, hash := r.acting, hashOf(&want)
	changed := r.hash != "" && hash != r.hash
	if want.Run != before.Run || changed {
		r.notBefore, r.retries = time.Time{}, 0
	}
	r.acting, r.hash = want, hash
	if !want.Run {
		r.ending, r.cause = false, nil
	}
	switch s := r.status(); {
	case want.Run && changed && s.State != messages.Stopped:
		r.ending, r.cause, r.old = true, nil, before.Spec
	case want.Run != (s.State == messages.Stopped) && !r.awaiting:
		r.publish(func(*store.Record) {}) // the rev alone
	}
}

func hashOf(a *messages.Assignment) string {
	if a.Spec == nil {
		return "none"
	}
	return driver.Spec{Instance: a.Instance, Spec: *a.Spec}.Hash()
}

// admitted reports whether it is this instance's turn to come up, and queues for it where it does not yet.
func (r *runner) admitted() bool {
	if r.ticket == nil || r.ticket.gone() {
		r.ticket = r.set.gate.join(r.spec().Priority)
	}
	return r.ticket.open()
}

// leave gives the place among those coming up to others.
func (r *runner) leave() {
	if r.ticket != nil {
		r.ticket.leave()
		r.ticket = nil
	}
}

// spec returns the spec acted on; where an assignment never carried one, an empty one.
func (r *runner) spec() *messages.Spec {
	if r.acting.Spec == nil {
		return &messages.Spec{}
	}
	return r.acting.Spec
}

// advance takes one step and handles what came of it.
func (r *runner) advance(ctx context.Context, s messages.InstanceStatus) {
	spec := r.spec()
	if r.ending && r.old != nil {
		spec = r.old
	}
	t := task{run: r.acting.Run && !r.ending, spec: driver.Spec{Instance: r.id, Spec: *spec}}
	report, pulled := r.reporter()
	t.progress = report
	callCtx, done := r.cuttable(ctx, t.run, s.State)
	next, err := step(callCtx, r.set.driverFor(spec), t, s)
	cut, progressed := done(), r.pull.further(spec.Image, pulled())
	switch {
	case err == nil:
		r.stepped(t.run, next)
	case ctx.Err() != nil || cut:
	case errors.Is(err, driver.ErrUnavailable):
		r.delay(fmt.Sprintf("%s does not answer", spec.Technology), "")
	case errors.Is(err, driver.ErrNetworkDown):
		r.delay(clip(plain(err)), "")
	case !t.run:
		r.delay(clip("it could not be stopped yet: "+err.Error()), messages.DriverFailed)
	default:
		r.fail(refused(err, spec), progressed)
	}
}

// cuttable gives a call its context and makes it one that newer assignments can cut. done ends that and reports whether one has.
// A stop is not cut: the workload would be half gone.
func (r *runner) cuttable(ctx context.Context, up bool, state messages.State) (callCtx context.Context, done func() bool) {
	callCtx, cancel := context.WithCancel(ctx)
	cut := cancel
	var late *time.Timer // guarded by mu, with which every cut is called
	if state == messages.Starting {
		cut = func() {
			switch {
			case !r.record.Assignment.Run:
				cancel()
			case late == nil:
				late = time.AfterFunc(startMercy, cancel)
			}
		}
	}
	r.mu.Lock()
	if state == messages.Starting {
		r.dropLocked() // what was seen is of an earlier life
		r.marks++
	}
	if up {
		r.cut = cut
		if r.overtook {
			cut()
		}
	}
	r.mu.Unlock()
	var place *time.Timer
	if tk := r.ticket; up && state == messages.Preparing && tk != nil {
		place = time.AfterFunc(pullPatience, tk.leave)
	}
	return callCtx, func() bool {
		if place != nil {
			place.Stop()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if state == messages.Starting {
			r.marks++ // a listing from before this moment may not know what has started
			if r.seen != nil && r.seen.listed {
				r.dropLocked()
			}
		}
		if late != nil {
			late.Stop()
		}
		r.cut = nil
		cancel()
		return r.overtook
	}
}

// reporter returns what Prepare calls with its progress, which is reported at most once a second, and what ends that and says
// how far the pull came.
func (r *runner) reporter() (report func(messages.Progress), end func() messages.Progress) {
	var mu sync.Mutex // a driver may call from several goroutines, and late
	var last time.Time
	var most messages.Progress
	over := false
	report = func(p messages.Progress) {
		mu.Lock()
		defer mu.Unlock()
		most = messages.Progress{DoneBytes: max(most.DoneBytes, p.DoneBytes), TotalBytes: max(most.TotalBytes, p.TotalBytes)}
		if over || (!last.IsZero() && time.Since(last) < progressEvery) {
			return
		}
		last = time.Now()
		r.publish(func(rec *store.Record) { rec.Status.Progress = &p })
	}
	end = func() messages.Progress {
		mu.Lock()
		defer mu.Unlock()
		over = true
		return most
	}
	return report, end
}

// pull sums up the tries to bring an image.
type pull struct {
	image string
	bytes int64 // of all tries
}

// wasted is how often the bytes of a whole image may come until it is clear that they are thrown away: what they are does not match
// what they should be, or they are never kept.
const wasted = 2

// further adds a try, and reports whether it has brought the image nearer.
func (p *pull) further(image string, try messages.Progress) bool {
	if p.image != image {
		*p = pull{image: image}
	}
	p.bytes += try.DoneBytes
	return try.DoneBytes > 0 && (try.TotalBytes == 0 || p.bytes <= wasted*try.TotalBytes)
}

// stepped takes over the status that a step led to.
func (r *runner) stepped(up bool, next messages.InstanceStatus) {
	r.retries, r.notBefore = 0, time.Time{}
	if next.State != messages.Preparing {
		r.pull = pull{} // the image is there, or not wanted any more
	}
	switch {
	case r.ending: // and now it has ended
		r.ended = r.status().StartedAt
		cause := r.cause
		r.ending, r.cause, r.old = false, nil, nil
		if cause != nil {
			r.fail(*cause, false)
			return
		}
		r.again("", true)
		return
	case !up:
		r.leftover, r.awaiting = false, false
		r.ended = next.StartedAt
	case next.State == messages.Running:
		r.health = newChecks(false)
		if next.StartedAt == r.ended { // too short a life to tell the two apart
			r.ended = messages.Time{}
		}
	}
	r.publish(func(rec *store.Record) { rec.Status = next })
}

// delay repeats a call later without using up an attempt.
func (r *runner) delay(reason string, code messages.Code) {
	r.retries++
	r.notBefore = time.Now().Add(backoff(minRetry, maxRetry, r.retries))
	r.publish(func(rec *store.Record) { rec.Status.Reason, rec.Status.Code = reason, code })
}

// again begins the next attempt at once and without counting a failure; afresh forgets those before.
func (r *runner) again(reason string, afresh bool) {
	r.notBefore = time.Time{}
	r.publish(func(rec *store.Record) {
		rec.Status = nextAttempt(rec.Status)
		rec.Status.Reason = reason
		if afresh {
			rec.Failures, rec.Tries, rec.Cause = 0, 0, ""
		}
	})
}

// fail ends the attempt and does what the policy says. Where the failed pull has come further, the count begins anew.
func (r *runner) fail(f failure, progressed bool) {
	spec := r.spec()
	r.publish(func(rec *store.Record) {
		if progressed || r.settled(rec.Status) {
			rec.Failures, rec.Tries = 0, 0
		}
		rec.Failures++
		if rec.Cause != f.code {
			rec.Tries = 0
		}
		rec.Tries++
		rec.Cause = f.code
		v := judge(spec.Restart, f, rec.Failures, rec.Tries)
		s := halted(rec.Status)
		if v.state == messages.Pending {
			r.notBefore = time.Now().Add(v.wait)
			s = nextAttempt(s)
			s.NextAt = messages.At(r.notBefore)
		}
		s.State, s.Code, s.Reason = v.state, v.code, v.reason
		if f.exit != nil {
			code := f.exit.Code
			s.ExitCode, s.OOM = &code, f.exit.OOM
		}
		rec.Status = s
	})
}

// settled reports whether a workload has run for so long that its earlier failures are forgotten.
func (r *runner) settled(s messages.InstanceStatus) bool {
	if s.State != messages.Running || (r.spec().Health != nil && !r.health.been) {
		return false
	}
	ran := time.Since(r.health.since)
	if !s.StartedAt.IsZero() { // by the wall clock, which also counts what ran before a restart of the engine
		ran = max(ran, time.Since(s.StartedAt.Time))
	}
	return ran >= settled
}
