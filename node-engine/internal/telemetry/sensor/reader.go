package sensor

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

const (
	fastWait    = 100 * time.Millisecond // what a Read waits for the fast lane: a fiftieth of the interval between two
	slowFrom    = 20 * time.Millisecond  // a reading that takes longer has its sensor read in the slow lane
	hangFrom    = 5 * time.Second        // a slow reading that takes longer is left to itself
	rescanAfter = time.Minute            // sensors come and go with cables: seldom
	maxHanging  = 32                     // readings left to themselves; each holds a thread
)

// Reader gives the values of a board's sensors. It may be used by several goroutines.
type Reader struct {
	tree sysfs.Tree
	log  *slog.Logger
	scan func(sysfs.Tree) []Sensor
	wg   sync.WaitGroup // the walks

	mu         sync.Mutex // guards what follows
	entries    []*entry
	scanned    time.Time
	fast, slow *walk // the one under way in each lane, nil where there is none
	hanging    int   // walks that were left to a sensor that does not answer
	closed     bool
}

// entry is what a Reader knows of a Sensor; the Reader's mutex guards it.
type entry struct {
	Sensor
	value    float64
	good     bool      // the latest reading gave value
	busy     bool      // a walk is reading it
	slowLane bool      // which of the lanes reads it
	started  time.Time // of the latest reading
}

// walk is one pass over the sensors of a lane by a goroutine; the Reader's mutex guards it.
type walk struct {
	slow    bool
	left    bool          // left to the sensor that it hangs in
	current *entry        // being read
	done    chan struct{} // closed at the end
}

// NewReader returns a Reader for the sensors of a tree. It reads nothing yet.
func NewReader(tree sysfs.Tree, log *slog.Logger) *Reader {
	return &Reader{tree: tree, log: log, scan: Scan}
}

// Read returns the values that the sensors give now, and the last ones of those that are slow. It returns within 100 ms whatever
// the sensors do. The first Read has no value of a slow sensor.
func (r *Reader) Read(ctx context.Context) []Reading {
	fast := r.start(false)
	if fast != nil && !ended(ctx, fast.done, fastWait) {
		r.leave(fast)
	}
	r.start(true)
	return r.values()
}

// Close waits for the readings under way, as long as ctx lives: one that hangs in the kernel can't be called back.
func (r *Reader) Close(ctx context.Context) {
	r.mu.Lock()
	r.closed = true
	for _, w := range []*walk{r.fast, r.slow} {
		if w != nil {
			w.left = true
		}
	}
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { // outlives Close only where a reading outlives ctx
		r.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// ended reports whether done is closed within the time.
func ended(ctx context.Context, done <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// start begins a walk in a lane and returns it, or the one that is under way there. Nil says that too many hang.
func (r *Reader) start(slow bool) *walk {
	r.mu.Lock()
	defer r.mu.Unlock()
	lane := r.lane(slow)
	if w := *lane; w != nil && slow && w.current != nil && time.Since(w.current.started) > hangFrom {
		r.leaveLocked(w)
	}
	if *lane != nil {
		return *lane
	}
	if r.closed || r.hanging >= maxHanging {
		return nil
	}
	w := &walk{slow: slow, done: make(chan struct{})}
	*lane = w
	r.wg.Go(func() { r.run(w) })
	return w
}

// lane returns where the walk of a lane is noted.
func (r *Reader) lane(slow bool) **walk {
	if slow {
		return &r.slow
	}
	return &r.fast
}

// leave gives up waiting for a walk of the fast lane.
func (r *Reader) leave(w *walk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A walk that is between two sensors, or is still scanning, hangs in none of them: the next Read finds it further on.
	if r.fast == w && w.current != nil && time.Since(w.current.started) > slowFrom {
		r.leaveLocked(w)
	}
}

// leaveLocked frees a lane from the walk that hangs in it. The caller holds mu.
func (r *Reader) leaveLocked(w *walk) {
	r.log.Debug("sensor left to itself", "err", fmt.Errorf("%s: no answer in time", w.current.Path))
	w.left = true
	w.current.slowLane = true
	r.hanging++
	*r.lane(w.slow) = nil
}

// run is the goroutine of a walk.
func (r *Reader) run(w *walk) {
	defer close(w.done)
	if !w.slow {
		r.rescan()
	}
	r.mu.Lock()
	entries := r.entries
	r.mu.Unlock()
	for _, e := range entries {
		if r.begin(w, e) {
			value, err := e.read(r.tree)
			r.end(w, e, value, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if lane := r.lane(w.slow); *lane == w {
		*lane = nil
	} else {
		r.hanging--
	}
}

// begin reports whether a walk shall read a sensor.
func (r *Reader) begin(w *walk, e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.left || e.busy || e.slowLane != w.slow {
		return false
	}
	e.busy, e.started, w.current = true, time.Now(), e
	return true
}

// end takes a reading down.
func (r *Reader) end(w *walk, e *entry, value float64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.busy, w.current = false, nil
	e.value, e.good = value, err == nil
	// One that was slow once, while the board was busy, comes back; half the time keeps it from going to and fro.
	took := time.Since(e.started)
	e.slowLane = e.slow || took > slowFrom || e.slowLane && took > slowFrom/2
}

// rescan looks for sensors that came or went, once a minute. What is known of those that stayed is kept.
func (r *Reader) rescan() {
	r.mu.Lock()
	known, due := r.entries, r.scanned.IsZero() || time.Since(r.scanned) >= rescanAfter
	r.mu.Unlock()
	if !due {
		return
	}
	was := make(map[messages.SensorInfo]*entry, len(known))
	for _, e := range known {
		was[e.SensorInfo] = e
	}
	var entries []*entry
	for _, s := range r.scan(r.tree) {
		if s.read == nil {
			continue
		}
		e := was[s.SensorInfo]
		if e == nil {
			e = &entry{Sensor: s, slowLane: s.slow}
		}
		entries = append(entries, e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries, r.scanned = entries, time.Now()
}

// values returns what the latest readings gave.
func (r *Reader) values() []Reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Reading
	for _, e := range r.entries {
		if !e.good || e.busy && time.Since(e.started) > hangFrom {
			continue
		}
		all = append(all, Reading{Kind: e.Kind, SensorReading: messages.SensorReading{Name: e.Name, Value: e.value, Unit: e.Unit}})
	}
	return all
}
