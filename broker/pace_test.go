package broker

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Who does not run dry rests the longer the more there are of them; who does, never.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hasty atomic.Int64
		processors := runtime.GOMAXPROCS(0)
		// read returns how long a connection rests in a read of n bytes, for which it waits, and which it takes so long to handle.
		read := func(p *pace, n int, wait, handle time.Duration) time.Duration {
			start := time.Now()
			then := p.before()
			rest := time.Since(start)
			time.Sleep(wait)
			p.after(then, n)
			time.Sleep(handle)
			return rest
		}
		calm := &pace{hasty: &hasty}
		for range 100 {
			if rest := read(calm, spell/2, time.Millisecond, time.Millisecond); rest != 0 {
				t.Fatalf("one that waits for bytes rests %s", rest)
			}
		}
		crowd := make([]*pace, 8)
		for i := range crowd {
			p := &pace{hasty: &hasty}
			crowd[i] = p
			read(p, spell/2, time.Millisecond, 0)
			read(p, spell/2, 0, 100*time.Microsecond)
			if got, want := read(p, 1, 0, 0), rest(100*time.Microsecond, int64(i+1), processors); got != want {
				t.Errorf("the %d. of its kind rests %s, want %s", i+1, got, want)
			}
			if rest := read(p, 1, 0, 0); rest != 0 {
				t.Errorf("rests %s after its rest", rest)
			}
		}
		p := crowd[0]
		read(p, spell, 0, time.Second)
		if got, want := read(p, 1, 0, 0), rest(longSpell, 8, processors); got != want {
			t.Errorf("rests %s after a second that it must have waited for, want %s", got, want)
		}
		read(p, 1, time.Millisecond, 0) // it waits, and is like any other again
		for _, p := range crowd[1:] {
			p.end()
			p.end()
		}
		if n := hasty.Load(); n != 0 {
			t.Errorf("%d are counted that are gone", n)
		}
	})
}

// However many never run dry, a quarter of the processors stays idle.
func TestRest(t *testing.T) {
	const worked = 400 * time.Microsecond
	for _, processors := range []int{1, 2, 4, 64} {
		for _, hasty := range []int64{1, 2, 3, 5, 8, 64, 200} {
			busy := float64(hasty) * float64(worked) / float64(worked+rest(worked, hasty, processors))
			if busy > 0.76*float64(processors) {
				t.Errorf("%d of %d processors: %.2f are busy", hasty, processors, busy)
			}
		}
	}
	if got := rest(time.Hour, 1<<40, 1); got != longRest {
		t.Errorf("rests %s at most, want %s", got, longRest)
	}
	if got := rest(time.Nanosecond, 1, 64); got != shortRest {
		t.Errorf("rests %s at least, want %s", got, shortRest)
	}
}
