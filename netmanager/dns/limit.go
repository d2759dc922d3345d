package dns

import (
	"net/netip"
	"sync"
)

// limiter counts what is under way, in all and for each client.
type limiter struct {
	all, each int

	mu    sync.Mutex // guards what follows
	total int
	by    map[netip.Addr]int
}

func newLimiter(all, each int) *limiter {
	return &limiter{all: all, each: each, by: make(map[netip.Addr]int)}
}

// take reports whether there was room for one more; then give must follow.
func (l *limiter) take(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.all || l.by[client] >= l.each {
		return false
	}
	l.total++
	l.by[client]++
	return true
}

func (l *limiter) give(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.by[client]--; l.by[client] <= 0 {
		delete(l.by, client)
	}
}
