package telemetry

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l latest[int]
		took, n := time.Second, 0
		read := func() int { n++; time.Sleep(took); return n }
		check := func(name string, wait, want time.Duration, value int, ok bool) {
			t.Helper()
			began := time.Now()
			got, known := l.get(t.Context(), wait, read)
			if got != value || known != ok || time.Since(began) != want {
				t.Errorf("%s: got %v, %v after %v, want %v, %v after %v", name, got, known, time.Since(began), value, ok, want)
			}
		}
		check("not there yet", 600*time.Millisecond, 600*time.Millisecond, 0, false)
		check("joined", 600*time.Millisecond, 400*time.Millisecond, 1, true)
		check("the one before", 100*time.Millisecond, 100*time.Millisecond, 1, true)
		l.wg.Wait()
		took = time.Hour
		check("the last", 100*time.Millisecond, 100*time.Millisecond, 2, true)
		time.Sleep(hangFrom)
		check("it hangs", 100*time.Millisecond, 100*time.Millisecond, 0, false)
		time.Sleep(time.Hour)
		synctest.Wait()
		took = 0
		check("it is back", 100*time.Millisecond, 0, 4, true)
		if n != 4 {
			t.Errorf("%d readings, want 4: one at a time", n)
		}
	})
}
