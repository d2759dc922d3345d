package register

import (
	"net"
	"time"

	"skerry.internal/messages"
)

// Bounds of what is remembered so that a client that tries for ever cannot fill the log.
const (
	warnEvery = time.Minute
	maxWarned = 1024
)

// warnings is when each sender was last warned about.
type warnings map[string]time.Time

// due reports whether a refusal of that sender should be logged as a warning.
func (w *warnings) due(remote string, now time.Time) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	if now.Sub((*w)[host]) < warnEvery {
		return false
	}
	if *w == nil || len(*w) >= maxWarned {
		*w = make(warnings)
	}
	(*w)[host] = now
	return true
}

// warn logs a refusal, once a minute for each sender as a warning.
func (s *Server) warn(remote string, r *messages.Refusal) {
	s.mu.Lock()
	due := s.warned.due(remote, time.Now())
	s.mu.Unlock()
	log := s.log.Debug
	if due {
		log = s.log.Warn
	}
	log("node refused", "addr", remote, "code", r.Code, "err", r)
}
