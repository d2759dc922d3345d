package dns

import (
	"context"
	"sync"
	"time"
)

const (
	// patience is how long a query waits for a name to come into the table: less than any resolver's own, and more than the way to the manager
	// and back on a slow link.
	patience = 300 * time.Millisecond
	// forgetful is how long a name that did not come is not asked for again.
	forgetful = 5 * time.Second
	// maxAbsent bounds the names that are remembered as missing. Beyond it they are asked for more often, that is all.
	maxAbsent = 4096
)

// verdict is what is known of a name that is not in the table.
type verdict int

const (
	present verdict = iota // it is in the table now
	absent                 // it was said not to exist
	silent                 // nobody has said anything
)

// misses are the names that are waited for, and those for which that was in vain.
type misses struct {
	onMiss func(string)

	mu      sync.Mutex // guards what follows
	pending map[string]*miss
	absent  map[string]absence
	swept   time.Time
}

type miss struct {
	done    chan struct{} // closed when it is in the table, or known not to exist
	waiting int
}

type absence struct {
	until   time.Time
	verdict verdict
}

func newMisses(onMiss func(string)) *misses {
	return &misses{onMiss: onMiss, pending: make(map[string]*miss), absent: make(map[string]absence)}
}

// known returns what is remembered of a name, so that it need not be waited for.
func (m *misses) known(job string) (verdict, bool) {
	if m.onMiss == nil {
		return absent, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.knownLocked(job)
}

func (m *misses) knownLocked(job string) (verdict, bool) {
	a, ok := m.absent[job]
	if ok && !time.Now().Before(a.until) {
		delete(m.absent, job)
		ok = false
	}
	return a.verdict, ok
}

// wait returns once the name is in the table, or is known to be nowhere, or patience is at its end. has looks at the newest table.
func (m *misses) wait(ctx context.Context, job string, has func(string) bool) verdict {
	m.mu.Lock()
	if v, ok := m.knownLocked(job); ok {
		m.mu.Unlock()
		return v
	}
	p := m.pending[job]
	first := p == nil
	if first {
		p = &miss{done: make(chan struct{})}
		m.pending[job] = p
	}
	p.waiting++
	m.mu.Unlock()

	if first {
		m.onMiss(job)
	}
	v := present
	if !has(job) { // it may have come before we were counted among those who wait
		v = await(ctx, p, job, has)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.waiting--; p.waiting == 0 && m.pending[job] == p {
		delete(m.pending, job)
	}
	switch said, ok := m.knownLocked(job); {
	case v == present:
	case ok:
		v = said
	case ctx.Err() == nil:
		m.rememberLocked(job, silent)
	}
	return v
}

func await(ctx context.Context, p *miss, job string, has func(string) bool) verdict {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	if has(job) {
		return present
	}
	return silent
}

func (m *misses) rememberLocked(job string, v verdict) {
	now := time.Now()
	if len(m.absent) >= maxAbsent && now.Sub(m.swept) >= time.Second { // not for every name of a flood
		m.swept = now
		for k, a := range m.absent {
			if !now.Before(a.until) {
				delete(m.absent, k)
			}
		}
	}
	if len(m.absent) < maxAbsent {
		m.absent[job] = absence{until: now.Add(forgetful), verdict: v}
	}
}

// found wakes those who wait for a name that is there now.
func (m *misses) found(has func(string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for job, p := range m.pending {
		if has(job) {
			close(p.done)
			delete(m.pending, job)
		}
	}
}

// unknown remembers names as not existing and wakes those who wait for them.
func (m *misses) unknown(jobs []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, job := range jobs {
		m.rememberLocked(job, absent)
		if p := m.pending[job]; p != nil {
			close(p.done)
			delete(m.pending, job)
		}
	}
}
