package docker

import (
	"time"

	"skerry.internal/node-engine/internal/driver"
)

// oomPatience is how long the end of a container is held back that looks as if the kernel had ended it for want of memory. Docker learns
// of the two by different ways and says them in either order; 140 ms apart were seen, and the container's own state does not make up for it.
const oomPatience = 500 * time.Millisecond

// killed is the exit code of SIGKILL, which is what the kernel ends a process with.
const killed = 137

// shortage brings the ends of containers together with what was said of their memory.
type shortage struct {
	short map[string]bool // containers that the kernel has taken memory from
	held  map[string]held // ends that wait for word of that
}

type held struct {
	driver.Workload
	until time.Time
}

func newShortage() *shortage {
	return &shortage{short: map[string]bool{}, held: map[string]held{}}
}

// oom says that the kernel ended a process of the container. Where its end waits for that, it is returned.
func (s *shortage) oom(id string) (driver.Workload, bool) {
	if h, waits := s.held[id]; waits {
		delete(s.held, id)
		h.Exit.OOM = true
		return h.Workload, true
	}
	if len(s.short) >= maxShort {
		clear(s.short)
	}
	s.short[id] = true
	return driver.Workload{}, false
}

// ended completes how a container ended. It reports whether that can be said now; else due returns it later.
func (s *shortage) ended(id string, w driver.Workload, limited bool, now time.Time) bool {
	if s.short[id] && w.Exit != nil && w.Exit.Code != 0 {
		w.Exit.OOM = true
	}
	delete(s.short, id)
	if w.Exit == nil || w.Exit.OOM || w.Exit.Code != killed || !limited {
		return true
	}
	s.held[id] = held{w, now.Add(oomPatience)}
	return false
}

// begun takes back an end that was held: the container runs again, and nobody waits for how it ended before.
func (s *shortage) begun(id string) { delete(s.held, id) }

// due returns what has waited for long enough, and how long nothing else will have; 0: nothing waits.
func (s *shortage) due(now time.Time) (ready []driver.Workload, next time.Duration) {
	for id, h := range s.held {
		wait := h.until.Sub(now)
		if wait <= 0 {
			ready = append(ready, h.Workload)
			delete(s.held, id)
			continue
		}
		if next == 0 || wait < next {
			next = wait
		}
	}
	return ready, next
}
