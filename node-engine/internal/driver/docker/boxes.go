package docker

import (
	"maps"
	"slices"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// joined is the sandbox of an instance and what it is attached as.
type joined struct {
	sandbox
	driver.Attached
}

// boxes remembers the sandboxes of a driver. All of it is found again by asking Docker, see sweep.
type boxes struct {
	size int           // of the pool
	news chan struct{} // capacity 1: "look at the pool"
	lost chan struct{} // capacity 1: "look at what is apart"

	mu     sync.Mutex                     // guards what follows; never held during a call
	warm   []sandbox                      // never joined by anybody
	held   map[string]bool                // by name: made or taken, and not yet joined
	owners map[messages.InstanceID]joined //
	apart  map[messages.InstanceID]bool   // run in a sandbox that could not be attached
	deploy int                            // how many starts are under way
	quiet  time.Time                      // when the last of them ended
}

func newBoxes(size int) *boxes {
	return &boxes{size: max(size, 0), news: make(chan struct{}, 1), held: map[string]bool{}, owners: map[messages.InstanceID]joined{},
		apart: map[messages.InstanceID]bool{}, lost: make(chan struct{}, 1)}
}

// begin and end stand around a start, so that the pool is filled when there is nothing better to do.
func (b *boxes) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deploy++
}

func (b *boxes) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deploy--
	b.quiet = time.Now()
	b.look()
}

func (b *boxes) look() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// idle returns how long no start has been under way.
func (b *boxes) idle() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deploy > 0 {
		return 0
	}
	return time.Since(b.quiet)
}

// take returns a warm sandbox and holds it; false where there is none. dead are those that had ended meanwhile.
func (b *boxes) take() (box sandbox, ok bool, dead []sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.warm) > 0 {
		box, b.warm = b.warm[0], b.warm[1:]
		if box.alive() {
			b.held[box.name] = true
			return box, true, dead
		}
		dead = append(dead, box)
	}
	return sandbox{}, false, dead
}

// hold keeps the sandbox of this name from being taken for a leftover.
func (b *boxes) hold(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[name] = true
}

func (b *boxes) release(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held, name)
}

// keep puts a sandbox that nobody has joined into the pool; false where the pool is full.
func (b *boxes) keep(box sandbox) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held, box.name)
	if len(b.warm) >= b.size || slices.ContainsFunc(b.warm, func(w sandbox) bool { return w.id == box.id }) {
		return false
	}
	b.warm = append(b.warm, box)
	return true
}

// missing returns how many sandboxes the pool lacks.
func (b *boxes) missing() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size - len(b.warm)
}

// own notes whose a sandbox is. It returns the one that the instance had before.
func (b *boxes) own(id messages.InstanceID, j joined) (before joined) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held, j.name)
	delete(b.apart, id)
	before = b.owners[id]
	b.owners[id] = j
	return before
}

// part notes that an instance runs without being attached, or that this is over.
func (b *boxes) part(id messages.InstanceID, apart bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !apart {
		delete(b.apart, id)
		return
	}
	b.apart[id] = true
	select {
	case b.lost <- struct{}{}:
	default:
	}
}

// parted returns the instances that run without being attached.
func (b *boxes) parted() []messages.InstanceID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.apart))
}

// of returns what is known of an instance.
func (b *boxes) of(id messages.InstanceID) (joined, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, ok := b.owners[id]
	return j, ok
}

// disown forgets the sandbox of an instance and returns it.
func (b *boxes) disown(id messages.InstanceID) (joined, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, ok := b.owners[id]
	delete(b.owners, id)
	delete(b.apart, id)
	return j, ok
}

// owner returns whose sandbox this is. One of the pool is forgotten: who asks has seen it end.
func (b *boxes) owner(box string) (messages.InstanceID, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, j := range b.owners {
		if j.id == box {
			return id, true
		}
	}
	b.warm = slices.DeleteFunc(b.warm, func(w sandbox) bool { return w.id == box })
	return "", false
}

// known reports whether a sandbox is one that this process has to do with.
func (b *boxes) known(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held[name] || slices.ContainsFunc(b.warm, func(w sandbox) bool { return w.name == name }) {
		return true
	}
	for _, j := range b.owners {
		if j.name == name {
			return true
		}
	}
	return false
}
