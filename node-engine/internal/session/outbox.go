package session

import (
	"context"
	"sync"

	"skerry.internal/messages"
)

// Outbox holds the statuses on their way to the manager: of every instance the newest one until a broker has acknowledged it. It
// outlives sessions, so that what was not acknowledged is sent again in the next. Its size is bounded by the number of instances.
type Outbox struct {
	news chan struct{} // capacity 1: "look again"

	mu      sync.Mutex // guards what follows
	entries map[messages.InstanceID]*entry
	queue   []messages.InstanceID // whose status waits to be sent, oldest first
}

type entry struct {
	status messages.InstanceStatus
	queued bool // otherwise it has been sent and waits for its acknowledgement
}

// NewOutbox returns an empty Outbox.
func NewOutbox() *Outbox {
	return &Outbox{news: make(chan struct{}, 1), entries: make(map[messages.InstanceID]*entry)}
}

// Put takes a status to be sent, in place of an older one of the same instance that still waits. It never blocks.
func (o *Outbox) Put(status messages.InstanceStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.entries[status.Instance]; !ok || status.Seq > e.status.Seq {
		o.queueLocked(status)
	}
}

// Again makes ready for a new listener: what has been sent without acknowledgement waits to be sent again, and so do the given
// statuses, even where they have been acknowledged before.
func (o *Outbox) Again(statuses []messages.InstanceStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.entries {
		o.queueLocked(e.status)
	}
	for _, status := range statuses {
		if e, ok := o.entries[status.Instance]; !ok || status.Seq >= e.status.Seq {
			o.queueLocked(status)
		}
	}
}

func (o *Outbox) queueLocked(status messages.InstanceStatus) {
	e, ok := o.entries[status.Instance]
	if !ok {
		e = new(entry)
		o.entries[status.Instance] = e
	}
	e.status = status
	if !e.queued {
		e.queued = true
		o.queue = append(o.queue, status.Instance)
	}
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// next waits for the status that is to be sent next.
func (o *Outbox) next(ctx context.Context) (messages.InstanceStatus, error) {
	for {
		if status, ok := o.take(); ok {
			return status, nil
		}
		select {
		case <-o.news:
		case <-ctx.Done():
			return messages.InstanceStatus{}, ctx.Err()
		}
	}
}

func (o *Outbox) take() (messages.InstanceStatus, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return messages.InstanceStatus{}, false
	}
	e := o.entries[o.queue[0]]
	o.queue = o.queue[1:]
	e.queued = false
	return e.status, true
}

// acked forgets the instance's status if it is not newer than the acknowledged one.
func (o *Outbox) acked(id messages.InstanceID, seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.entries[id]; ok && !e.queued && e.status.Seq <= seq {
		delete(o.entries, id)
	}
}
