package overlay

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"skerry.internal/messages"
)

// table is what the node knows of services. It is not safe for concurrent use.
type table struct {
	rev      uint64 // of the last update; 0: none since the start
	services map[messages.JobName]messages.ServiceEntry
	coming   map[messages.JobName]messages.ServiceEntry // a whole table that has not come to its end; nil: none
}

func newTable(kept []messages.ServiceEntry) *table {
	t := &table{services: map[messages.JobName]messages.ServiceEntry{}}
	for _, s := range kept {
		t.services[s.Job] = s
	}
	return t
}

// update takes over what has changed. It reports false where something before it is missing: then all has to be asked for anew.
func (t *table) update(u messages.ServiceUpdate) bool {
	switch {
	case u.Full:
		t.coming = map[messages.JobName]messages.ServiceEntry{}
	case u.Base != t.rev || t.rev == 0:
		t.coming = nil
		return false
	}
	to := t.services
	if t.coming != nil {
		to = t.coming
	}
	for _, s := range u.Services {
		to[s.Job] = s
	}
	for _, gone := range u.Gone {
		delete(to, gone)
	}
	if t.coming != nil && !u.More {
		t.services, t.coming = t.coming, nil
	}
	t.rev = u.Rev
	return true
}

// list returns the services in the order of their names.
func (t *table) list() []messages.ServiceEntry {
	list := make([]messages.ServiceEntry, 0, len(t.services))
	for _, job := range slices.Sorted(maps.Keys(t.services)) {
		list = append(list, t.services[job])
	}
	return list
}

// bearer returns whose service address this is.
func (t *table) bearer(a netip.Addr) (messages.ServiceEntry, bool) {
	text := a.String()
	for _, s := range t.services {
		if s.RoundRobin == text || s.Closest == text || slices.ContainsFunc(s.Instances, func(i messages.ServiceInstance) bool { return i.Service == text }) {
			return s, true
		}
	}
	return messages.ServiceEntry{}, false
}

// uses says when somebody on this node has last used a job: asked for its name, or held a flow to it. It is safe for concurrent use, with a lock of its
// own: it is in the way of names.
type uses struct {
	mu sync.Mutex // guards at
	at map[messages.JobName]time.Time
}

// note says that the job is used now. It reports whether it was not known to be.
func (u *uses) note(job messages.JobName) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, known := u.at[job]
	u.at[job] = time.Now()
	return !known
}

// interest is what the node asks to be told of. It is not safe for concurrent use, but for its uses.
type interest struct {
	uses      *uses
	names     []messages.JobName
	addresses []netip.Addr
	missed    map[netip.Addr]time.Time // when each of the addresses was last missed
	strange   map[netip.Addr]bool      // of flows, and nobody has said yet whose they are; asked for once in a session
	full      bool                     // all is to be said anew
	again     bool                     // it is to be asked once more though it is the same
}

func newInterest() interest {
	return interest{uses: &uses{at: map[messages.JobName]time.Time{}}, missed: map[netip.Addr]time.Time{}}
}

// name adds a job that is used now, and reports whether that is news. Where there are too many, the one that was not used for longest makes room.
func (i *interest) name(job messages.JobName) bool {
	i.uses.note(job)
	if slices.Contains(i.names, job) {
		return false
	}
	if len(i.names) >= messages.MaxInterest {
		i.uses.mu.Lock()
		defer i.uses.mu.Unlock()
		idle := slices.MinFunc(i.names, func(a, b messages.JobName) int { return i.uses.at[a].Compare(i.uses.at[b]) })
		i.names = slices.DeleteFunc(i.names, func(n messages.JobName) bool { return n == idle })
	}
	i.names = append(i.names, job)
	return true
}

// address adds an address; the oldest makes room where there are too many.
func (i *interest) address(a netip.Addr) bool {
	_, known := i.missed[a]
	i.missed[a] = time.Now()
	if known {
		return false
	}
	if len(i.addresses) >= messages.MaxInterest {
		i.forget(i.addresses[0])
	}
	i.addresses = append(i.addresses, a)
	return true
}

// forget takes an address out.
func (i *interest) forget(a netip.Addr) {
	delete(i.missed, a)
	i.addresses = slices.DeleteFunc(i.addresses, func(b netip.Addr) bool { return a == b })
}

// expire forgets the jobs that nobody has used for that long, and the addresses that nobody has missed and no flow goes to. A job of an earlier run counts
// as used when it is first looked at.
func (i *interest) expire(age time.Duration) {
	for a, last := range i.missed {
		if !i.strange[a] && time.Since(last) > age { // it is a service's, but not of one of its present copies
			i.forget(a)
		}
	}
	i.uses.mu.Lock()
	defer i.uses.mu.Unlock()
	now, at := time.Now(), make(map[messages.JobName]time.Time, len(i.names))
	i.names = slices.DeleteFunc(i.names, func(n messages.JobName) bool {
		last, known := i.uses.at[n]
		if !known {
			last = now
		}
		if now.Sub(last) > age {
			return true
		}
		at[n] = last
		return false
	})
	i.uses.at = at // without those that are not asked for any more: who uses one again asks again
}

// answered takes over what an update says about what was asked: an address is known by the name of its job from now on, and what nobody
// bears is forgotten until somebody asks for it again.
func (i *interest) answered(t *table, u messages.ServiceUpdate) {
	for _, a := range slices.Clone(i.addresses) {
		if s, known := t.bearer(a); known { // said now, or before it was asked
			i.forget(a)
			i.name(s.Job)
		}
	}
	i.names = slices.DeleteFunc(i.names, func(n messages.JobName) bool {
		return slices.Contains(u.Unknown, string(n)) || slices.Contains(u.Gone, n)
	})
	for _, text := range u.Unknown {
		if a, err := netip.ParseAddr(text); err == nil {
			i.forget(a)
		}
	}
}

// addressesOf returns all service addresses of a job.
func addressesOf(s messages.ServiceEntry) []netip.Addr {
	texts := []string{s.RoundRobin, s.Closest}
	for _, i := range s.Instances {
		texts = append(texts, i.Service)
	}
	var all []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// maxMesh is up to how many instances a job of this node counts as one that its instances talk to: the manager tells of it in any case, but names the
// nodes of the others as peers only to who asks. Of a larger one all would be peers of all: there it waits until somebody here asks for its name or dials it.
const maxMesh = 32

// message returns the interest as it is sent: what somebody has asked for, and the small ones of this node's own jobs.
func (i *interest) message(t *table, own []messages.JobName) messages.Interest {
	names := slices.Clone(i.names)
	for _, job := range own {
		if s, known := t.services[job]; known && len(s.Instances) > 1 && len(s.Instances) <= maxMesh && len(names) < messages.MaxInterest {
			names = append(names, job)
		}
	}
	slices.Sort(names)
	m := messages.Interest{Names: slices.Compact(names), Full: i.full}
	for _, a := range i.addresses {
		m.Addresses = append(m.Addresses, a.String())
	}
	return m
}
