package instance

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
	"skerry.internal/node-engine/internal/store"
)

// rig is a Set on a fake driver that can be ended and started again on the same store.
type rig struct {
	t    testing.TB
	dir  string
	boot string
	d    *fake.Driver
	ack  atomic.Bool // every status is acknowledged at once
	log  *slog.Logger

	store *store.Store
	set   *Set
	stop  func()
	*journal
}

// journal keeps every report and checks what must hold of all of them.
type journal struct {
	t      testing.TB
	mu     sync.Mutex // guards what follows
	all    []messages.InstanceStatus
	latest map[messages.InstanceID]messages.InstanceStatus
}

func newRig(t testing.TB, d *fake.Driver) *rig {
	return &rig{t: t, dir: t.TempDir(), boot: "boot-1", d: d, log: slog.New(slog.DiscardHandler),
		journal: &journal{t: t, latest: map[messages.InstanceID]messages.InstanceStatus{}}}
}

// open makes the Set without running it.
func (r *rig) open(drivers ...messages.Technology) *Set {
	r.t.Helper()
	var err error
	if r.store, err = store.Open(r.dir, r.log); err != nil {
		r.t.Fatal(err)
	}
	all := map[messages.Technology]driver.Driver{messages.Docker: r.d}
	for _, tech := range drivers {
		all[tech] = r.d
	}
	r.set, err = New(Config{Drivers: all, Store: r.store, Report: r.report, BootID: r.boot, StartsAtOnce: 2}, r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.set
}

// start makes the Set and runs it.
func (r *rig) start() *Set {
	r.t.Helper()
	r.open()
	r.run()
	return r.set
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	set := r.set
	wg.Go(func() {
		if err := set.Run(ctx); err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.stop = func() {
		cancel()
		wg.Wait()
		r.store.Close()
	}
}

func (r *rig) report(s messages.InstanceStatus) {
	r.add(s)
	if r.ack.Load() {
		r.set.Acked(s.Instance, s.Seq)
	}
}

// add keeps a status; it fails the test where seq or (attempt, state) goes back or the status could not be sent.
func (j *journal) add(s messages.InstanceStatus) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := s.Validate(); err != nil {
		j.t.Errorf("status %+v: %v", s, err)
	}
	old, ok := j.latest[s.Instance]
	if ok && s.Seq <= old.Seq {
		j.t.Errorf("%s: seq %d after %d", s.Instance, s.Seq, old.Seq)
	}
	if ok && old.State != messages.Stopped && (s.Attempt < old.Attempt || (s.Attempt == old.Attempt && s.State.Rank() < old.State.Rank())) {
		j.t.Errorf("%s: attempt %d %s after %d %s", s.Instance, s.Attempt, s.State, old.Attempt, old.State)
	}
	j.latest[s.Instance] = s
	j.all = append(j.all, s)
}

func (j *journal) last(id messages.InstanceID) messages.InstanceStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.latest[id]
}

func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.all)
}

// path returns the states that an instance has been reported in, repeats left out.
func (j *journal) path(id messages.InstanceID) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var words []string
	for _, s := range j.all {
		if s.Instance == id && (len(words) == 0 || words[len(words)-1] != string(s.State)) {
			words = append(words, string(s.State))
		}
	}
	return strings.Join(words, " ")
}

// assign hands over an assignment of epoch 1.
func (r *rig) assign(id messages.InstanceID, rev uint64, spec *messages.Spec) {
	r.t.Helper()
	if err := r.set.Assign(messages.Assignment{Instance: id, Rev: rev, Epoch: 1, Run: spec != nil, Spec: spec}); err != nil {
		r.t.Fatal(err)
	}
}

// want checks the newest status of an instance by what is set in w.
func (r *rig) want(id messages.InstanceID, w messages.InstanceStatus) {
	r.t.Helper()
	got := r.last(id)
	if got.State != w.State || got.Healthy != w.Healthy || got.Code != w.Code || got.Attempt != w.Attempt ||
		!strings.Contains(got.Reason, w.Reason) || (w.ExitCode != nil && (got.ExitCode == nil || *got.ExitCode != *w.ExitCode)) {
		r.t.Errorf("%s: got %+v, want %+v", id, got, w)
	}
}

func (r *rig) running() string {
	held, err := r.d.List(context.Background())
	if err != nil {
		r.t.Error(err)
	}
	var ids []string
	for _, w := range held {
		if w.Running {
			ids = append(ids, string(w.Instance))
		}
	}
	return strings.Join(ids, " ")
}

func spec(change ...func(*messages.Spec)) *messages.Spec {
	s := messages.Job{Spec: messages.Spec{Image: "app:1", Technology: messages.Docker}}.WithDefaults().Spec
	for _, c := range change {
		c(&s)
	}
	return &s
}

func restart(p messages.RestartPolicy, attempts int) func(*messages.Spec) {
	return func(s *messages.Spec) { s.Restart.Policy, s.Restart.MaxAttempts = p, attempts }
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, d *fake.Driver, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, d)
		test(t, r)
		if r.stop != nil {
			r.stop()
		}
	})
}

// settle lets everybody get as far as they can without time passing, or with some.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
