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
		processors := time.Duration(runtime.GOMAXPROCS(0))
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
			if rest, want := read(p, 1, 0, 0), max(time.Duration(i+1)*100*time.Microsecond/processors, shortRest); rest != want {
				t.Errorf("the %d. of its kind rests %s, want %s", i+1, rest, want)
			}
			if rest := read(p, 1, 0, 0); rest != 0 {
				t.Errorf("rests %s after its rest", rest)
			}
		}
		p := crowd[0]
		read(p, spell, 0, time.Second)
		if rest := read(p, 1, 0, 0); rest != longRest {
			t.Errorf("rests %s after a second, want %s", rest, longRest)
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
