package telemetry

import (
	"context"
	"sync"
	"time"
)

// hangFrom is how long a reading may take before the value of the one before it is no longer told.
const hangFrom = 10 * time.Second

// latest asks for a value that may take long, or for ever, and keeps the last that came. The zero latest is ready for use.
type latest[T any] struct {
	wg sync.WaitGroup // the reading under way

	mu      sync.Mutex    // guards what follows
	value   T             // of the last reading that ended
	known   bool          // there was one
	started time.Time     // of the reading under way
	done    chan struct{} // closed when the reading under way ends; nil where there is none
}

// get asks read for a new value, unless that is being done already, waits for it as long as given and returns the last value. False
// says that there is none, or that it is old because the reading after it hangs.
func (l *latest[T]) get(ctx context.Context, wait time.Duration, read func() T) (T, bool) {
	done := l.begin(read)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known || l.done != nil && time.Since(l.started) > hangFrom {
		var none T
		return none, false
	}
	return l.value, true
}

// begin starts a reading, or joins the one under way, and returns what is closed at its end.
func (l *latest[T]) begin(read func() T) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done != nil {
		return l.done
	}
	done := make(chan struct{})
	l.done, l.started = done, time.Now()
	l.wg.Go(func() {
		value := read()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.value, l.known, l.done = value, true, nil
		close(done)
	})
	return done
}
