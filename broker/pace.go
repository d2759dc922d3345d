package broker

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	spell     = 8 << 10               // bytes that a connection is read without a rest
	waited    = 50 * time.Microsecond // a read that took as long had nothing to read
	longSpell = time.Millisecond      // what took longer waited for something, such as the disk
	shortRest = 20 * time.Microsecond
	longRest  = 250 * time.Millisecond
)

// pace keeps those who always have sent more before the last of it is read from the others. Go looks after connections with news only when a
// processor has nothing else to do, or every 10 ms: a few that never run dry would be served at once and all others that late. So who does not run
// dry rests after each spell, as long as leaves a quarter of the processors idle however many of its kind there are.
type pace struct {
	hasty   *atomic.Int64 // connections of the broker that do not run dry
	began   time.Time     // of the spell
	read    int           // bytes, in the spell
	counted bool          // among the hasty
}

// before is called before each read and returns the time; it rests if a spell is over.
func (p *pace) before() time.Time {
	now := time.Now()
	if p.read < spell {
		return now
	}
	if !p.counted {
		p.counted = true
		p.hasty.Add(1)
	}
	time.Sleep(rest(now.Sub(p.began), p.hasty.Load(), runtime.GOMAXPROCS(0)))
	p.began, p.read = time.Now(), 0
	return p.began
}

// rest is how long one of so many rests that have three quarters of the processors among them.
func rest(worked time.Duration, hasty int64, processors int) time.Duration {
	r := min(worked, longSpell) * time.Duration(4*hasty-3*int64(processors)) / time.Duration(3*processors)
	return min(max(r, shortRest), longRest)
}

// after is called after a read of n bytes that began then.
func (p *pace) after(then time.Time, n int) {
	if now := time.Now(); now.Sub(then) > waited {
		p.end()
		p.began, p.read = now, 0
	}
	p.read += n
}

// end is called after the last read.
func (p *pace) end() {
	if p.counted {
		p.counted = false
		p.hasty.Add(-1)
	}
}
