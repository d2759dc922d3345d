package fake

import (
	"context"
	"fmt"

	"skerry.internal/node-engine/internal/driver"
)

// watcher is one Watch under way. The Driver's mutex guards its fields.
type watcher struct {
	queue []driver.Workload
	gone  bool          // the technology went away
	news  chan struct{} // capacity 1: "look again"
}

func (w *watcher) wake() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// tellLocked queues a workload for every watcher.
func (d *Driver) tellLocked(changed *workload) {
	for w := range d.watchers {
		w.queue = append(w.queue, changed.copy())
		w.wake()
	}
}

// Watch reports starts and ends as driver.Driver says. changed is called in its caller's goroutine and may call the Driver.
func (d *Driver) Watch(ctx context.Context, ready func(), changed func(driver.Workload)) error {
	if err := d.enter(ctx, "watch"); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a Watch that its ctx ended has done its work
		}
		return err
	}
	w := &watcher{news: make(chan struct{}, 1)}
	d.mu.Lock()
	if d.watchers == nil {
		d.watchers = map[*watcher]bool{}
	}
	d.watchers[w] = true
	w.gone = d.down
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, w)
	}()
	ready()
	for {
		batch, gone := d.take(w)
		for _, c := range batch {
			changed(c)
		}
		if gone {
			return fmt.Errorf("watch: %w", driver.ErrUnavailable)
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-w.news:
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *Driver) take(w *watcher) ([]driver.Workload, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	batch := w.queue
	w.queue = nil
	return batch, w.gone
}
