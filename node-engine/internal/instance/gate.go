package instance

import (
	"slices"
	"sync"
)

// gate bounds how many instances come up at once, and lets those of higher priority go first.
type gate struct {
	mu    sync.Mutex // guards what follows and the fields of its tickets
	free  int
	queue []*ticket // by priority, then by arrival
}

// ticket is one place in the gate's queue.
type ticket struct {
	gate     *gate
	priority int
	granted  chan struct{} // closed when its holder may go
	held     bool
	left     bool
}

func newGate(places int) *gate { return &gate{free: places} }

// join queues for a place. Who joins must leave.
func (g *gate) join(priority int) *ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &ticket{gate: g, priority: priority, granted: make(chan struct{})}
	at, _ := slices.BinarySearchFunc(g.queue, priority, func(q *ticket, p int) int {
		if q.priority >= p {
			return -1
		}
		return 1
	})
	g.queue = slices.Insert(g.queue, at, t)
	g.admitLocked()
	return t
}

func (g *gate) admitLocked() {
	for g.free > 0 && len(g.queue) > 0 {
		t := g.queue[0]
		g.queue = g.queue[1:]
		g.free--
		t.held = true
		close(t.granted)
	}
}

// leave gives the place, or the wait for it, to others. It may be repeated.
func (t *ticket) leave() {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.left {
		return
	}
	t.left = true
	if t.held {
		g.free++
	} else {
		g.queue = slices.DeleteFunc(g.queue, func(q *ticket) bool { return q == t })
	}
	g.admitLocked()
}

// gone reports whether the ticket has been left.
func (t *ticket) gone() bool {
	t.gate.mu.Lock()
	defer t.gate.mu.Unlock()
	return t.left
}

// open reports whether the holder may go.
func (t *ticket) open() bool {
	select {
	case <-t.granted:
		return true
	default:
		return false
	}
}
