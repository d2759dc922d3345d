package session

import (
	"cmp"
	"math/rand/v2"
	"time"
)

// backoff gives the times to wait between attempts: doubling from min to max, each shortened at random by up to a half, so that
// the nodes of a cluster do not all come back in the same moment.
type backoff struct {
	min, max time.Duration
	jitter   func(time.Duration) time.Duration
	last     time.Duration
}

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.min), b.max)
	return b.jitter(b.last)
}

func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// leaseShare is how many attempts at least fit into the time after which a node counts as lost: some may fail, too. With the
// usual lease a manager that was away for long is found within four seconds.
const leaseShare = 8

// usualLease is the manager's default, which is taken for its lease until it has said one: an engine that was started again knows none.
const usualLease = 30 * time.Second

// within keeps the waits so short, and no longer than most, that a manager that has come back hears of the node before its lease has run out. 0: not
// known.
func (b *backoff) within(lease, most time.Duration) {
	b.max = max(min(most, cmp.Or(lease, usualLease)/leaseShare), b.min)
}

// A session that lasted begins the waits anew, and so does one of outlasts times the wait before it. After a shorter one the next wait is at most
// twice soonAgain.
const (
	outlasts    = 4
	longLasting = 10 * time.Second
	soonAgain   = time.Second
)

// after takes over how long a session lasted. A manager that is restarted now and then shall be found soon each time, however long it was away
// before, and one that hangs up again and again within moments, of less than least, shall be called ever more rarely.
func (b *backoff) after(session, least time.Duration) {
	switch {
	case session < least:
	case session >= longLasting || session >= outlasts*b.last:
		b.reset()
	default:
		b.last = min(b.last, soonAgain)
	}
}

func (b *backoff) reset() { b.last = 0 }
