package instance

import (
	"context"
	"errors"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// sayAfter is how long a technology may be away before its instances say so: a restart of dockerd takes less.
const sayAfter = 2 * time.Second

// maxLook is the longest wait between questions to a technology that does not answer: it is on the same board, and once it answers its workloads
// shall not wait for seconds.
const maxLook = time.Second

// follow watches one driver until ctx ends.
func (s *Set) follow(ctx context.Context, tech messages.Technology, d driver.Driver) {
	log := s.log.With("driver", tech)
	var gap bool
	var lost time.Time
	for tries := 1; ; tries++ {
		seen, err := s.watch(ctx, tech, d, gap)
		if ctx.Err() != nil {
			return
		}
		if seen || lost.IsZero() {
			tries, lost = 1, time.Now()
			log.Warn("driver does not answer", "err", err)
		}
		gap = true
		s.say(tech, time.Since(lost))
		select {
		case <-time.After(backoff(minRetry, maxLook, tries)):
		case <-ctx.Done():
			return
		}
	}
}

// watch follows the driver for as long as it answers. seen reports whether it told what it holds.
func (s *Set) watch(ctx context.Context, tech messages.Technology, d driver.Driver, gap bool) (seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	ready := func() {
		wg.Go(func() { seen = s.takeStock(ctx, tech, d, gap) })
	}
	err = d.Watch(ctx, ready, func(w driver.Workload) { s.changed(tech, w) })
	cancel()
	wg.Wait()
	return seen, err
}

// say tells the runners of a technology that it is away.
func (s *Set) say(tech messages.Technology, since time.Duration) {
	a := silent
	if since >= sayAfter {
		a = awayLong
	}
	for _, r := range s.all() {
		if r.technology() == tech {
			r.lost(a)
		}
	}
}

func (r *runner) technology() messages.Technology {
	a := r.assignment()
	if a.Spec == nil {
		return ""
	}
	return a.Spec.Technology
}

// takeStock lists what the driver holds, tells the runners and ends what nobody wants. It reports whether it could.
func (s *Set) takeStock(ctx context.Context, tech messages.Technology, d driver.Driver, gap bool) bool {
	for tries := 1; ; tries++ {
		marks := map[*runner]int{}
		for _, r := range s.all() {
			marks[r] = r.mark()
		}
		held, err := d.List(ctx)
		if err == nil {
			if gap {
				s.log.Info("driver answers", "driver", tech, "workloads", len(held))
			}
			s.deliver(tech, held, marks, gap)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if !errors.Is(err, driver.ErrUnavailable) {
			s.log.Warn("workloads not listed", "driver", tech, "err", err)
		}
		select {
		case <-time.After(backoff(minRetry, maxRetry, tries)):
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Set) deliver(tech messages.Technology, held []driver.Workload, marks map[*runner]int, gap bool) {
	byID := make(map[messages.InstanceID]*driver.Workload, len(held))
	for i := range held {
		byID[held[i].Instance] = &held[i]
	}
	for _, r := range s.all() {
		mark, ok := marks[r]
		if ok && r.technology() == tech {
			r.listed(mark, byID[r.id], gap)
		}
	}
	for _, w := range held {
		s.clear(tech, w)
	}
}

// changed hands an event of a driver to its runner.
func (s *Set) changed(tech messages.Technology, w driver.Workload) {
	if r := s.find(w.Instance); r != nil {
		if r.technology() == tech {
			r.observe(w)
		}
		return
	}
	if w.Running {
		s.clear(tech, w)
	}
}

// clear ends a workload that has no assignment: it gets a runner that does only that. An assignment that comes meanwhile finds it. One that may
// be wanted nevertheless is left alone until the next sync.
func (s *Set) clear(tech messages.Technology, w driver.Workload) {
	if w.Instance.Validate() != nil { // cannot be one of ours
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runners[w.Instance] != nil {
		return
	}
	if known := s.spared[w.Instance]; known != nil || s.blind {
		if known == nil || !known.seen {
			s.log.Warn("workload without an assignment is kept until the next sync", "instance_id", w.Instance, "driver", tech)
		}
		s.spared[w.Instance] = &stray{technology: tech, seen: true}
		return
	}
	s.clearLocked(tech, w.Instance)
}

func (s *Set) clearLocked(tech messages.Technology, id messages.InstanceID) {
	s.log.Info("workload without an assignment is removed", "instance_id", id, "driver", tech)
	r := s.newRunner(id)
	spec := messages.Job{Spec: messages.Spec{Technology: tech}}.WithDefaults().Spec
	r.quiet = true
	r.record.Assignment = messages.Assignment{Instance: id, Spec: &spec}
	r.record.Status.State, r.record.Status.Instance = messages.Running, id
	s.addLocked(r)
}
