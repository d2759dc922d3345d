package fake

import (
	"context"
	"slices"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Crash ends a running workload by itself, with this exit code; while the technology is down nobody can tell that from an end together with it. It
// reports false where none of this instance runs.
func (d *Driver) Crash(id messages.InstanceID, code int, oom bool) bool {
	return d.end(id, driver.Exit{Code: code, OOM: oom})
}

// Interrupt ends a running workload as the technology does at its own end or by somebody's hand. It reports false where none of this
// instance runs.
func (d *Driver) Interrupt(id messages.InstanceID, code int) bool {
	return d.end(id, driver.Exit{Code: code, Interrupted: true})
}

func (d *Driver) end(id messages.InstanceID, exit driver.Exit) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.held[id]
	if w == nil || !w.Running {
		return false
	}
	exit.Interrupted = exit.Interrupted || d.down
	d.endLocked(w, exit)
	return true
}

// Gap ends every Watch, as the loss of a connection does while the technology itself goes on, and then does what none of them tells of.
func (d *Driver) Gap(do func()) {
	d.mu.Lock()
	for w := range d.watchers {
		w.gone = true
		w.wake()
	}
	clear(d.watchers)
	d.mu.Unlock()
	do()
}

// Down takes the technology away or brings it back. While it is down every call returns ErrUnavailable and every Watch ends with it;
// workloads go on, as containers do under a live-restoring dockerd.
func (d *Driver) Down(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
	if !down {
		return
	}
	for w := range d.watchers {
		w.gone = true
		w.wake()
	}
	for _, w := range d.held {
		w.wakeLocked()
	}
}

// Spec returns what the workload of an instance was started with.
func (d *Driver) Spec(id messages.InstanceID) (driver.Spec, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.held[id]
	if w == nil {
		return driver.Spec{}, false
	}
	return w.spec, true
}

// Calls returns how often a method was called: prepare, start, stop, list, watch, exec, usage or logs.
func (d *Driver) Calls(method string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[method]
}

// SetUsage sets what Usage reports for a workload.
func (d *Driver) SetUsage(u driver.Usage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.held[u.Instance]; w != nil {
		w.usage = u
	}
}

// Print adds a line to the output of a workload.
func (d *Driver) Print(id messages.InstanceID, stream, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.held[id]; w != nil {
		w.printLocked(stream, text)
	}
}

func (w *workload) printLocked(stream, text string) {
	w.output = append(w.output, line{stream: stream, text: text, at: time.Now()})
	w.wakeLocked()
}

// Usage returns what SetUsage set, for every running workload.
func (d *Driver) Usage(ctx context.Context) ([]driver.Usage, error) {
	if err := d.enter(ctx, "usage"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []driver.Usage
	for id, w := range d.held {
		if w.Running {
			u := w.usage
			u.Instance = id
			all = append(all, u)
		}
	}
	return all, nil
}

// Logs hands out what Print added.
func (d *Driver) Logs(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error {
	if err := d.enter(ctx, "logs"); err != nil {
		return err
	}
	if _, err := d.find(req.Instance); err != nil {
		return err
	}
	for sent := -1; ; {
		lines, from, news, err := d.output(req, sent)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if err := write(l.stream, l.text); err != nil {
				return err
			}
		}
		sent = from + len(lines)
		if news == nil || !req.Follow {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// output returns the lines after the first sent ones (all that the request asks for where sent is -1), and what tells of more; nil where
// no more can come.
func (d *Driver) output(req messages.LogsRequest, sent int) (lines []line, from int, news <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.held[req.Instance]
	switch {
	case d.down:
		return nil, 0, nil, driver.ErrUnavailable
	case w == nil:
		return nil, 0, nil, nil
	}
	from = min(max(sent, 0), len(w.output))
	if sent < 0 {
		from = slices.IndexFunc(w.output, func(l line) bool { return !l.at.Before(req.Since.Time) })
		if from < 0 {
			from = len(w.output)
		}
		if req.Tail > 0 {
			from = max(from, len(w.output)-req.Tail)
		}
	}
	if w.Running {
		news = w.news
	}
	return slices.Clone(w.output[from:]), from, news, nil
}

func (w *workload) wakeLocked() {
	close(w.news)
	w.news = make(chan struct{})
}

// Held returns the workloads in the order of their instances, also while the technology is down. It counts as no call.
func (d *Driver) Held() []driver.Workload {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listLocked()
}
