package broker

import (
	"sync"
	"time"
)

const (
	// saidEvery and saidMost bound what strangers can put into the owner's log: whoever is turned away and comes again at once would
	// fill a small disk.
	saidEvery = time.Minute
	saidMost  = 60
	// saidLen bounds what of a client's own words is in a line.
	saidLen = 64
)

// say decides whether a kind of warning is logged or only counted.
type say struct {
	mu    sync.Mutex // guards what follows
	since time.Time
	count int
}

// due reports whether to say it now, and how many were left out since the last time it was quiet.
func (s *say) due(now time.Time) (unsaid int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.since) >= saidEvery {
		unsaid = max(0, s.count-saidMost)
		s.since, s.count = now, 0
	}
	s.count++
	return unsaid, s.count <= saidMost
}

// clip shortens what a client said of itself.
func clip(text string) string {
	if len(text) <= saidLen {
		return text
	}
	return text[:saidLen] + "…"
}
