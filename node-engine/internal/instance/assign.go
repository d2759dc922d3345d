package instance

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/store"
)

// savesAtOnce bounds how many records of a sync are written at the same time; file systems join concurrent syncs into one.
const savesAtOnce = 8

// Assign takes one assignment. It is durable when Assign returns nil, or it was no newer than what the node holds, or it ends an instance: that is
// done on a full disk too. Assign waits for the disk, never for a driver.
func (s *Set) Assign(a messages.Assignment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if r := s.find(a.Instance); r != nil && s.repeats(&a, r) {
		return nil // without waiting for anybody's disk
	}
	s.desired.Lock()
	defer s.desired.Unlock()
	if !s.adopt(a.Epoch, a.Rev) {
		return nil
	}
	return s.assign(a, false)
}

// repeats reports whether the runner holds this assignment or a newer one.
func (s *Set) repeats(a *messages.Assignment, r *runner) bool {
	held := r.assignment()
	r.mu.Lock()
	quiet := r.quiet
	r.mu.Unlock()
	return !quiet && !a.Newer(&held)
}

// adopt follows the manager to a newer epoch, and reports false for an older one. Where the disk does not take the epoch it counts until the end
// of the process, and is written with the next order. The caller holds desired.
func (s *Set) adopt(epoch, rev uint64) bool {
	s.mu.Lock()
	now := s.tenure
	s.mu.Unlock()
	if epoch < now.Epoch {
		s.log.Debug("ignored what an earlier manager asks for", "epoch", epoch, "rev", rev)
		return false
	}
	if epoch > now.Epoch || s.unwritten {
		err := s.cfg.Store.Put(tenureValue, tenure{Epoch: epoch})
		if s.unwritten = err != nil; err != nil {
			s.log.Warn("epoch of the manager not written", "epoch", epoch, "err", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(epoch, rev)
	return true
}

func (s *Set) noteLocked(epoch, rev uint64) {
	switch t := &s.tenure; {
	case epoch > t.Epoch:
		*t = tenure{Epoch: epoch, Rev: rev}
	case epoch == t.Epoch:
		t.Rev = max(t.Rev, rev)
	}
}

// assign hands an assignment to its runner, a new one where there is none. The caller holds desired.
func (s *Set) assign(a messages.Assignment, force bool) error {
	if a.Spec != nil {
		spec := messages.Job{Spec: *a.Spec}.WithDefaults().Spec
		a.Spec = &spec
	}
	r := s.find(a.Instance)
	if r != nil {
		return wrap(&a, r.accept(a, force))
	}
	r = s.newRunner(a.Instance)
	if done, ok := s.finished.find(a.Instance); ok {
		if before := (messages.Assignment{Epoch: done.Epoch, Rev: done.Rev}); a.Run && !a.Newer(&before) {
			return nil // it ran and was told to end: a late repeat does not bring it back
		}
		r.record.Status.Seq = done.Seq
	}
	if err := r.accept(a, true); err != nil {
		return wrap(&a, err)
	}
	s.mu.Lock()
	other := s.runners[a.Instance]
	if other == nil {
		s.addLocked(r)
	}
	s.mu.Unlock()
	if other != nil { // a stray was found meanwhile; its runner goes on with it
		return wrap(&a, other.accept(a, true))
	}
	return nil
}

func wrap(a *messages.Assignment, err error) error {
	if err != nil {
		return fmt.Errorf("assignment %s rev %d: %w", a.Instance, a.Rev, err)
	}
	return nil
}

// Sync takes the whole set of assignments. What it does not name is not to run, but for what the node was assigned after it was made.
func (s *Set) Sync(sync messages.Sync) error {
	if err := sync.Validate(); err != nil {
		return err
	}
	s.desired.Lock()
	defer s.desired.Unlock()
	if !s.adopt(sync.Epoch, sync.Rev) {
		return nil
	}
	named := make(map[messages.InstanceID]bool, len(sync.Assignments))
	list := slices.Clone(sync.Assignments)
	slices.SortStableFunc(list, func(a, b messages.Assignment) int { return byPriority(&a, &b) })
	for _, a := range list {
		named[a.Instance] = true
	}
	err := errors.Join(s.assignAll(list, false), s.assignAll(s.unnamed(&sync, named), true))
	if err == nil {
		s.clearSpared(named)
	}
	return err
}

// unnamed returns assignments that end what a sync does not name.
func (s *Set) unnamed(sync *messages.Sync, named map[messages.InstanceID]bool) []messages.Assignment {
	var ends []messages.Assignment
	for _, r := range s.all() {
		a := r.assignment()
		kept := a.Epoch > sync.Epoch || (a.Epoch == sync.Epoch && a.Rev > sync.Rev)
		if !named[r.id] && a.Run && !kept {
			ends = append(ends, messages.Assignment{Instance: r.id, Epoch: sync.Epoch, Rev: sync.Rev})
		}
	}
	return ends
}

// assignAll assigns each, some at once. The caller holds desired.
func (s *Set) assignAll(list []messages.Assignment, force bool) error {
	errs := make([]error, len(list))
	places := make(chan struct{}, savesAtOnce)
	var wg sync.WaitGroup
	for i, a := range list {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			errs[i] = s.assign(a, force)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// clearSpared ends the workloads that were kept for a sync and that it did not name.
func (s *Set) clearSpared(named map[messages.InstanceID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.spared {
		if w.seen && !named[id] && s.runners[id] == nil {
			s.clearLocked(w.technology, id)
		}
	}
	clear(s.spared)
	s.blind = false
}

// Acked takes over that the manager's broker has taken a status. A stopped instance is forgotten then.
func (s *Set) Acked(id messages.InstanceID, seq uint64) {
	if r := s.find(id); r != nil {
		r.acked(seq)
	}
}

// forget drops an instance that is done, unless something new has come for it. It reports whether it has.
func (s *Set) forget(r *runner) bool {
	s.desired.Lock()
	defer s.desired.Unlock()
	if !r.done() {
		return false
	}
	r.mu.Lock()
	rec, stored, quiet, dirty := r.record, r.stored, r.quiet, r.dirty
	r.mu.Unlock()
	if !quiet {
		s.finished.add(done{Instance: r.id, Epoch: rec.Assignment.Epoch, Rev: rec.Assignment.Rev, Seq: rec.Status.Seq})
	}
	if stored {
		s.erase(&rec, dirty)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runners, r.id)
	return true
}

// erase takes a record from the disk. Where that fails it comes back after a restart as what it is: stopped. One whose file is behind, and may say
// that it runs, goes in any case.
func (s *Set) erase(rec *store.Record, behind bool) {
	err := s.cfg.Store.Put(finishedValue, s.finished.Done)
	if err == nil || behind {
		err = errors.Join(err, s.cfg.Store.Delete(rec.Assignment.Instance))
	}
	if err != nil {
		s.log.Warn("record not deleted", "instance_id", rec.Assignment.Instance, "err", err)
	}
}

// maxFinished bounds how many finished instances are remembered. A late message is of the last minutes, not of the last thousand changes.
const maxFinished = 256

// finished remembers instances that are over, oldest first.
type finished struct{ Done []done }

type done struct {
	Instance messages.InstanceID `json:"instance"`
	Epoch    uint64              `json:"epoch"`
	Rev      uint64              `json:"rev"`
	Seq      uint64              `json:"seq"`
}

func (f *finished) find(id messages.InstanceID) (done, bool) {
	for _, d := range f.Done {
		if d.Instance == id {
			return d, true
		}
	}
	return done{}, false
}

func (f *finished) add(d done) {
	f.Done = slices.DeleteFunc(f.Done, func(o done) bool { return o.Instance == d.Instance })
	f.Done = append(f.Done, d)
	if over := len(f.Done) - maxFinished; over > 0 {
		f.Done = slices.Delete(f.Done, 0, over)
	}
}
