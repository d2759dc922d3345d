// Package fake is a driver that works in memory, for tests of whatever stands on the seam. It keeps workloads with their state, reports
// their ends to watchers, and lets a test decide how each call goes. It starts no goroutine and sleeps nowhere by itself, so it may
// be used inside a testing/synctest bubble.
package fake

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Driver is a driver.Driver in memory; its zero value is ready. The functions are set before its first use; each may be nil and is called
// without a lock held, so it may block until its ctx ends, sleep in virtual time, or call the Driver.
type Driver struct {
	// PrepareFunc decides how Prepare goes.
	PrepareFunc func(ctx context.Context, spec driver.Spec, progress func(messages.Progress)) error
	// StartFunc is asked before a workload is made to run; an error of it leaves none.
	StartFunc func(ctx context.Context, spec driver.Spec) error
	// RunFunc says what a workload that has been started does: with nil it runs until it is stopped or crashed, otherwise it ends at once.
	RunFunc func(spec driver.Spec) *driver.Exit
	// PrintFunc returns what a workload that has been started writes to its stdout.
	PrintFunc func(spec driver.Spec) string
	// StopFunc is asked before a workload is removed; an error of it leaves the workload.
	StopFunc func(ctx context.Context, id messages.InstanceID, stop messages.Stop) error
	// ExecFunc is the program that Exec runs; without it every program ends with code 0.
	ExecFunc func(ctx context.Context, id messages.InstanceID, argv []string) (int, error)

	mu       sync.Mutex // guards everything below
	down     bool
	made     int // workloads so far, for ids and addresses
	nextPort int
	held     map[messages.InstanceID]*workload
	watchers map[*watcher]bool
	calls    map[string]int
}

var (
	_ driver.Driver = (*Driver)(nil)
	_ driver.Meter  = (*Driver)(nil)
	_ driver.Logger = (*Driver)(nil)
)

type workload struct {
	driver.Workload
	hash   string
	spec   driver.Spec
	usage  driver.Usage
	output []line
	news   chan struct{} // closed and renewed with every line and every end
}

type line struct {
	stream, text string
	at           time.Time
}

// Prepare calls PrepareFunc; without it every image is there.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec, progress func(messages.Progress)) error {
	if err := d.enter(ctx, "prepare"); err != nil {
		return err
	}
	if d.PrepareFunc == nil {
		return nil
	}
	if progress == nil {
		progress = func(messages.Progress) {}
	}
	return d.PrepareFunc(ctx, spec, progress)
}

// Start makes the workload run as driver.Driver says.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Workload, error) {
	if err := d.enter(ctx, "start"); err != nil {
		return driver.Workload{}, err
	}
	if w, ok := d.running(spec); ok {
		return w, nil
	}
	if err := checkSignal(spec.Stop.Signal); err != nil {
		return driver.Workload{}, err
	}
	if d.StartFunc != nil {
		if err := d.StartFunc(ctx, spec); err != nil {
			return driver.Workload{}, err
		}
	}
	var exit *driver.Exit
	if d.RunFunc != nil {
		exit = d.RunFunc(spec)
	}
	var text string
	if d.PrintFunc != nil {
		text = d.PrintFunc(spec)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return driver.Workload{}, driver.ErrUnavailable
	}
	return d.runLocked(spec, exit, text)
}

// running returns the workload of spec where it runs already.
func (d *Driver) running(spec driver.Spec) (driver.Workload, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.held[spec.Instance]
	if w == nil || !w.Running || w.hash != spec.Hash() {
		return driver.Workload{}, false
	}
	return w.copy(), true
}

func (d *Driver) runLocked(spec driver.Spec, exit *driver.Exit, text string) (driver.Workload, error) {
	hash := spec.Hash()
	w := d.held[spec.Instance]
	if w != nil && w.hash == hash && w.Running {
		return w.copy(), nil // another Start was faster
	}
	ports, err := d.portsLocked(spec)
	if err != nil {
		return driver.Workload{}, err
	}
	if w != nil && w.hash != hash {
		d.endLocked(w, driver.Exit{Code: 143, Interrupted: true})
		w = nil
	}
	if w == nil {
		w = d.makeLocked(spec, hash)
	}
	w.Running, w.Exit, w.Ports, w.StartedAt = true, nil, ports, time.Now()
	d.tellLocked(w)
	started := w.copy()
	if text != "" {
		w.printLocked("stdout", text)
	}
	if exit != nil {
		d.endLocked(w, *exit)
	}
	return started, nil
}

func (d *Driver) makeLocked(spec driver.Spec, hash string) *workload {
	d.made++
	w := &workload{spec: spec, hash: hash, news: make(chan struct{})}
	w.Workload = driver.Workload{
		Instance: spec.Instance,
		ID:       "fake-" + strconv.Itoa(d.made),
		ImageID:  "fake:" + spec.Image,
		Address:  netip.AddrFrom4([4]byte{10, 88, byte(d.made >> 8), byte(d.made)}),
	}
	if d.held == nil {
		d.held = map[messages.InstanceID]*workload{}
	}
	d.held[spec.Instance] = w
	return w
}

// portsLocked fills in host ports, and refuses those that another running workload has.
func (d *Driver) portsLocked(spec driver.Spec) ([]messages.Port, error) {
	taken := map[messages.Port]bool{}
	for id, w := range d.held {
		for _, p := range w.Ports {
			taken[messages.Port{Host: p.Host, Protocol: p.Protocol}] = w.Running && id != spec.Instance
		}
	}
	var ports []messages.Port
	for _, p := range spec.Ports {
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if taken[messages.Port{Host: p.Host, Protocol: p.Protocol}] {
			return nil, fmt.Errorf("port %d/%s: %w", p.Host, p.Protocol, driver.ErrPortInUse)
		}
		if p.Host == 0 {
			p.Host = 32768 + d.nextPort%28000
			d.nextPort++
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// Stop ends and removes the workload; StopFunc may delay or refuse that.
func (d *Driver) Stop(ctx context.Context, id messages.InstanceID, stop messages.Stop) error {
	if err := d.enter(ctx, "stop"); err != nil {
		return err
	}
	if _, err := d.find(id); err != nil {
		return err
	}
	begun := time.Now()
	if d.StopFunc != nil {
		if err := d.StopFunc(ctx, id, stop); err != nil {
			return err
		}
	}
	code := 128 + 15
	if grace := stop.Grace.Std(); grace > 0 && time.Since(begun) >= grace {
		code = 128 + 9 // it had to be killed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.held[id]; w != nil {
		d.endLocked(w, driver.Exit{Code: code, Interrupted: true})
		delete(d.held, id)
	}
	return nil
}

// List returns the workloads in the order of their instances.
func (d *Driver) List(ctx context.Context) ([]driver.Workload, error) {
	if err := d.enter(ctx, "list"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listLocked(), nil
}

func (d *Driver) listLocked() []driver.Workload {
	all := make([]driver.Workload, 0, len(d.held))
	for _, w := range d.held {
		all = append(all, w.copy())
	}
	slices.SortFunc(all, func(a, b driver.Workload) int { return strings.Compare(string(a.Instance), string(b.Instance)) })
	return all
}

// Exec calls ExecFunc for a workload that runs.
func (d *Driver) Exec(ctx context.Context, id messages.InstanceID, argv []string) (int, error) {
	if err := d.enter(ctx, "exec"); err != nil {
		return 0, err
	}
	w, err := d.find(id)
	if err != nil {
		return 0, err
	}
	if !w.Running {
		return 0, fmt.Errorf("exec in %s: it does not run", id)
	}
	if d.ExecFunc == nil {
		return 0, nil
	}
	return d.ExecFunc(ctx, id, argv)
}

// enter counts a call and reports why it cannot be served.
func (d *Driver) enter(ctx context.Context, call string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.calls == nil {
		d.calls = map[string]int{}
	}
	d.calls[call]++
	if d.down {
		return fmt.Errorf("%s: %w", call, driver.ErrUnavailable)
	}
	return nil
}

func (d *Driver) find(id messages.InstanceID) (driver.Workload, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.held[id]
	if w == nil {
		return driver.Workload{}, fmt.Errorf("instance %s: %w", id, driver.ErrNotFound)
	}
	return w.copy(), nil
}

// endLocked marks a workload as ended and tells the watchers; where it does not run it does nothing.
func (d *Driver) endLocked(w *workload, exit driver.Exit) {
	if !w.Running {
		return
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	w.Running, w.Exit, w.Ports = false, &exit, nil
	w.wakeLocked()
	d.tellLocked(w)
}

func (w *workload) copy() driver.Workload {
	c := w.Workload
	c.Ports = slices.Clone(w.Ports)
	if w.Exit != nil {
		e := *w.Exit
		c.Exit = &e
	}
	return c
}

// checkSignal refuses what no kernel knows: the fake takes the names without numbers of their own for granted.
func checkSignal(name string) error {
	if name == "" || strings.HasPrefix(name, "SIGRT") {
		return nil
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return nil
	}
	known := []string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "WINCH", "CONT", "STOP", "ABRT", "ALRM", "PWR"}
	if slices.Contains(known, strings.TrimPrefix(name, "SIG")) {
		return nil
	}
	return fmt.Errorf("stop signal %q: %w", name, driver.ErrInvalid)
}
