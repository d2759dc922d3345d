package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

// startsAtOnce is how many instances come up at once unless the Config says otherwise: a board has few processors, and what has
// priority shall have them.
const startsAtOnce = 8

// Config is what a Set needs.
type Config struct {
	Drivers map[messages.Technology]driver.Driver // not changed once the Set is made
	Store   Store
	// Report is called with every new status, per instance in the order of Seq. It must not block and must not call Assign or Sync.
	Report func(messages.InstanceStatus)
	// BootID names the boot of the board: where it differs from a record's, what ended meanwhile ended by the reboot.
	BootID string
	// StartsAtOnce bounds how many instances come up at once; default 8.
	StartsAtOnce int
}

// Store is what survives a Set. A *store.Store is one.
type Store interface {
	Load() (records []store.Record, damaged []messages.InstanceID, err error)
	Save(r store.Record) error
	Delete(id messages.InstanceID) error
	Get(name string, v any) (bool, error)
	Put(name string, v any) error
}

// Set holds the instances of one node and makes their assignments true.
type Set struct {
	cfg  Config
	log  *slog.Logger
	gate *gate
	http *http.Client
	news chan struct{} // capacity 1: there are runners to be started

	desired   sync.Mutex // serialises changes of what is desired on their way to disk; guards what follows
	finished  finished
	unwritten bool // the disk has not taken the epoch of the tenure

	mu      sync.Mutex // guards what follows; never held during a call to a driver, the store or Report
	runners map[messages.InstanceID]*runner
	waiting []*runner // not started yet
	tenure  tenure
	spared  map[messages.InstanceID]*stray // workloads of damaged records, or all unknown ones while blind: a sync says whether they are wanted
	blind   bool                           // it held nothing at its start and has heard no sync since: what runs may be another node's
}

// tenure is how far the node has heard of its managers.
type tenure struct {
	Epoch uint64 `json:"epoch"`
	Rev   uint64 `json:"rev"` // the highest of this epoch
}

// stray is a workload that has no assignment.
type stray struct {
	technology messages.Technology
	seen       bool
}

// The named values in the store.
const (
	tenureValue   = "tenure"
	finishedValue = "finished"
)

// New loads what the store holds and starts nothing.
func New(cfg Config, log *slog.Logger) (*Set, error) {
	if cfg.Store == nil || cfg.Report == nil {
		return nil, errors.New("instance: Store and Report are needed")
	}
	s := &Set{cfg: cfg, log: log, http: newHTTPClient(), news: make(chan struct{}, 1),
		gate: newGate(cmp.Or(cfg.StartsAtOnce, startsAtOnce)), runners: map[messages.InstanceID]*runner{},
		spared: map[messages.InstanceID]*stray{}}
	records, damaged, err := cfg.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("load assignments: %w", err)
	}
	if _, err := cfg.Store.Get(tenureValue, &s.tenure); err != nil {
		return nil, err
	}
	if _, err := cfg.Store.Get(finishedValue, &s.finished.Done); err != nil {
		return nil, err
	}
	for _, id := range damaged {
		s.spared[id] = &stray{}
	}
	s.blind = len(records) == 0
	slices.SortStableFunc(records, func(a, b store.Record) int { return byPriority(&a.Assignment, &b.Assignment) })
	for i := range records {
		a := &records[i].Assignment
		s.noteLocked(a.Epoch, a.Rev)
		s.addLocked(s.load(records[i]))
	}
	return s, nil
}

// byPriority orders assignments: higher priority first.
func byPriority(a, b *messages.Assignment) int { return cmp.Compare(priority(b), priority(a)) }

func priority(a *messages.Assignment) int {
	if a.Spec == nil {
		return 0
	}
	return a.Spec.Priority
}

func (s *Set) newRunner(id messages.InstanceID) *runner {
	return &runner{set: s, id: id, log: s.log.With("instance_id", id), news: make(chan struct{}, 1)}
}

// load makes the runner of a record. Its status takes the seq bound, which nothing published has reached. An instance that was on its
// way up begins a new attempt: how far the old one was reported is not on disk.
func (s *Set) load(rec store.Record) *runner {
	r := s.newRunner(rec.Assignment.Instance)
	rec.Status.Seq = max(rec.SeqBound, rec.Status.Seq)
	r.awaiting, r.hash = !rec.Status.State.Terminal(), rec.Made
	r.rebooted = rec.BootID != s.cfg.BootID
	r.acting = messages.Assignment{Instance: r.id, Rev: rec.Status.Rev, Run: rec.Assignment.Run, Spec: rec.Assignment.Spec}
	st := &rec.Status
	if rec.Assignment.Run && st.State.Rank() < messages.Running.Rank() {
		if spec := rec.Assignment.Spec; !st.NextAt.IsZero() && !r.rebooted { // the clock may have been set meanwhile
			most := backoff(spec.Restart.Backoff.Std(), spec.Restart.MaxBackoff.Std(), max(rec.Failures, 1))
			r.notBefore = time.Now().Add(min(time.Until(st.NextAt.Time), most))
		}
		reason, code, at := st.Reason, st.Code, st.NextAt
		*st = nextAttempt(*st)
		if time.Until(r.notBefore) > 0 {
			st.Reason, st.Code, st.NextAt = reason, code, at
		}
	}
	r.health = newChecks(st.Healthy)
	r.record, r.stored = rec, true
	return r
}

// Run makes the assignments true until ctx ends. It returns once every runner has ended, and leaves the workloads as they are.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for tech, d := range s.cfg.Drivers {
		wg.Go(func() { s.follow(ctx, tech, d) })
	}
	for {
		for _, r := range s.fresh() {
			wg.Go(func() { r.run(ctx) })
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return nil
		}
	}
}

// fresh returns the runners that have not been started.
func (s *Set) fresh() []*runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.waiting
	s.waiting = nil
	return waiting
}

func (s *Set) addLocked(r *runner) {
	s.runners[r.id] = r
	s.waiting = append(s.waiting, r)
	select {
	case s.news <- struct{}{}:
	default:
	}
}

func (s *Set) find(id messages.InstanceID) *runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runners[id]
}

// all returns the runners, those of higher priority first.
func (s *Set) all() []*runner {
	s.mu.Lock()
	all := make([]*runner, 0, len(s.runners))
	for _, r := range s.runners {
		all = append(all, r)
	}
	s.mu.Unlock()
	ranks := make(map[*runner]int, len(all))
	for _, r := range all {
		a := r.assignment()
		ranks[r] = priority(&a)
	}
	slices.SortFunc(all, func(a, b *runner) int {
		return cmp.Or(cmp.Compare(ranks[b], ranks[a]), cmp.Compare(a.id, b.id))
	})
	return all
}

func (r *runner) assignment() messages.Assignment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.record.Assignment
}

// driverFor returns what runs this spec: for one without a technology, of which only a stop is asked, all drivers together; nil
// where the node does not have it.
func (s *Set) driverFor(spec *messages.Spec) driver.Driver {
	if spec.Technology == "" {
		return every{drivers: s.cfg.Drivers}
	}
	d, ok := s.cfg.Drivers[spec.Technology]
	if !ok {
		return nil
	}
	return d
}

// every stands for all drivers where it is not known which one may hold an instance. Only Stop is ever called.
type every struct {
	driver.Driver
	drivers map[messages.Technology]driver.Driver
}

// Stop ends the instance wherever it runs.
func (e every) Stop(ctx context.Context, id messages.InstanceID, stop messages.Stop) error {
	var errs []error
	for _, d := range e.drivers {
		if err := d.Stop(ctx, id, stop); err != nil && !errors.Is(err, driver.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
