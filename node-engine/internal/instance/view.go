package instance

import "skerry.internal/messages"

// Statuses returns the newest status of each instance that the node holds, those of higher priority first.
func (s *Set) Statuses() []messages.InstanceStatus {
	var all []messages.InstanceStatus
	for _, r := range s.all() {
		r.mu.Lock()
		if !r.quiet && !r.unsaid {
			all = append(all, r.record.Status)
		}
		r.mu.Unlock()
	}
	return all
}

// Restarts returns how often each instance was begun again that shall run or still does.
func (s *Set) Restarts() map[messages.InstanceID]int {
	all := map[messages.InstanceID]int{}
	for _, r := range s.all() {
		r.mu.Lock()
		st := r.record.Status
		hidden := r.quiet || st.State == messages.Stopped || (st.Seq == 0 && !r.record.Assignment.Run)
		r.mu.Unlock()
		if !hidden {
			all[r.id] = st.Attempt
		}
	}
	return all
}

// Digest returns the digest of the assignments that shall run, and the newest epoch and rev that the node has heard. While it is not
// known whether what runs without an assignment is wanted, because records are damaged or there were none at the start, the digest is one
// that no manager has, so that its sync says so.
func (s *Set) Digest() (digest string, epoch, rev uint64) {
	var all []messages.Assignment
	for _, r := range s.all() {
		all = append(all, r.assignment())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	digest = messages.Digest(all)
	if s.blind || len(s.spared) > 0 {
		digest = "unknown"
	}
	return digest, s.tenure.Epoch, s.tenure.Rev
}

// Assignments returns those that shall run.
func (s *Set) Assignments() []messages.Assignment {
	var all []messages.Assignment
	for _, r := range s.all() {
		if a := r.assignment(); a.Run {
			all = append(all, a)
		}
	}
	return all
}

// Reserved returns what the instances reserve that shall run and have not ended, and those that are being stopped.
func (s *Set) Reserved() messages.Resources {
	var sum messages.Resources
	for _, r := range s.all() {
		a, st := r.assignment(), r.status()
		if a.Spec == nil || st.State.Terminal() {
			continue
		}
		sum.CPUs += a.Spec.Resources.CPUs
		sum.MemoryMB += a.Spec.Resources.MemoryMB
		sum.GPUs += a.Spec.Resources.GPUs
	}
	return sum
}
