package instance

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

// op is one thing that happens to a node; which and n choose among instances and amounts.
type op struct {
	kind     string
	which, n int
}

func (o op) String() string { return fmt.Sprintf("%s(%d,%d)", o.kind, o.which, o.n) }

var kinds = []string{"deploy", "deploy", "respec", "delete", "late", "repeat", "sync", "stale sync", "takeover", "exit", "down", "up",
	"restart", "reboot", "wait", "wait", "ack", "slow", "stray"}

// world is a node, and what its manager wants of it.
type world struct {
	*rig
	tb      *collector
	epoch   uint64
	rev     uint64
	desired map[messages.InstanceID]messages.Assignment
	past    []messages.Assignment
	slow    atomic.Bool
}

// collector keeps errors instead of failing the test, so that rapid may look for a shorter run.
type collector struct {
	testing.TB
	errs chan string
}

func (c *collector) Helper() {}

func (c *collector) Errorf(format string, args ...any) {
	select {
	case c.errs <- fmt.Sprintf(format, args...):
	default:
	}
}

func (c *collector) Error(args ...any) { c.Errorf("%s", fmt.Sprint(args...)) }

// TestWhateverHappens lets commands, crashes, outages and restarts come in any order. In the end what runs is what is desired;
// seq and (attempt, state) never go back (see journal.add), nothing is left over and nothing runs twice.
func TestWhateverHappens(t *testing.T) {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm") // some ten thousand syncs
	}
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) op {
			return op{rapid.SampledFrom(kinds).Draw(rt, "kind"), rapid.IntRange(0, 3).Draw(rt, "which"), rapid.IntRange(0, 40).Draw(rt, "n")}
		}), 1, 40).Draw(rt, "ops")
		errs := make(chan string, 1)
		synctest.Test(t, func(t *testing.T) { play(&collector{TB: t, errs: errs}, ops) })
		select {
		case err := <-errs:
			rt.Fatalf("%s\nafter %v", err, ops)
		default:
		}
	})
}

func play(tb *collector, ops []op) {
	w := &world{tb: tb, epoch: 1, desired: map[messages.InstanceID]messages.Assignment{}}
	d := &fake.Driver{
		PrepareFunc: func(ctx context.Context, _ driver.Spec, _ func(messages.Progress)) error { return w.dawdle(ctx) },
		StartFunc:   func(ctx context.Context, _ driver.Spec) error { return w.dawdle(ctx) },
		StopFunc:    func(ctx context.Context, _ messages.InstanceID, _ messages.Stop) error { return w.dawdle(ctx) },
	}
	w.rig = newRig(tb, d)
	w.start()
	for _, o := range ops {
		w.apply(o)
		synctest.Wait()
	}
	w.slow.Store(false)
	w.d.Down(false)
	w.sync(w.wanted(), w.rev)
	w.ack.Store(true)
	for range 3 { // a session that comes back acknowledges all that is held
		settle(30 * time.Minute)
		for _, s := range w.set.Statuses() {
			w.set.Acked(s.Instance, s.Seq)
		}
	}
	settle(time.Minute)
	w.check()
	w.stop()
}

// dawdle makes a call slow where the world is; like a real one it may be cut.
func (w *world) dawdle(ctx context.Context) error {
	if !w.slow.Load() {
		return nil
	}
	select {
	case <-time.After(3 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) id(o op) messages.InstanceID { return messages.NewInstanceID("job", o.which, 0) }

func (w *world) send(a messages.Assignment) {
	w.past = append(w.past, a)
	if err := w.set.Assign(a); err != nil {
		w.tb.Error(err)
	}
}

func (w *world) change(id messages.InstanceID, image string) {
	w.rev++
	a := messages.Assignment{Instance: id, Epoch: w.epoch, Rev: w.rev}
	delete(w.desired, id)
	if image != "" {
		a.Run, a.Spec = true, spec(func(s *messages.Spec) { s.Image = image })
		if id == "job.1.0" {
			checked(messages.Health{Exec: []string{"up"}})(a.Spec)
		}
		w.desired[id] = a
	}
	w.send(a)
}

func (w *world) wanted() []messages.Assignment {
	var list []messages.Assignment
	for _, a := range w.desired {
		list = append(list, a)
	}
	return list
}

func (w *world) sync(list []messages.Assignment, rev uint64) {
	if err := w.set.Sync(messages.Sync{Epoch: w.epoch, Rev: rev, Assignments: list}); err != nil {
		w.tb.Error(err)
	}
}

func (w *world) apply(o op) {
	id := w.id(o)
	switch o.kind {
	case "deploy":
		w.change(id, "app:1")
	case "respec":
		w.change(id, fmt.Sprintf("app:%d", o.n))
	case "delete":
		w.change(id, "")
	case "late", "repeat":
		if len(w.past) > 0 {
			if err := w.set.Assign(w.past[o.n%len(w.past)]); err != nil {
				w.tb.Error(err)
			}
		}
	case "sync":
		w.sync(w.wanted(), w.rev)
	case "stale sync": // of an earlier manager, or made before everything
		if err := w.set.Sync(messages.Sync{Epoch: w.epoch - 1, Rev: 1000}); err != nil {
			w.tb.Error(err)
		}
	case "takeover":
		w.takeover()
	default:
		w.befall(o, id)
	}
}

func (w *world) takeover() {
	w.epoch++
	w.rev = 1
	for id, a := range w.desired {
		a.Epoch, a.Rev = w.epoch, w.rev
		w.desired[id] = a
	}
	w.sync(w.wanted(), w.rev)
}

// befall is what happens to a node that nobody asked for.
func (w *world) befall(o op, id messages.InstanceID) {
	switch o.kind {
	case "exit":
		w.d.Crash(id, o.n%3, o.n == 7)
	case "down":
		w.d.Down(true)
	case "up":
		w.d.Down(false)
	case "restart":
		w.stop()
		w.start()
	case "reboot":
		w.stop()
		for i := range 4 {
			w.d.Crash(messages.NewInstanceID("job", i, 0), 255, false)
		}
		w.boot = fmt.Sprint("boot-", o.n)
		w.start()
	case "wait":
		settle(time.Duration(o.n*o.n) * 50 * time.Millisecond)
	case "ack":
		w.ack.Store(!w.ack.Load())
	case "slow":
		w.slow.Store(!w.slow.Load())
	case "stray":
		if _, err := w.d.Start(context.Background(), driver.Spec{Instance: "stray.0.0", Spec: *spec()}); err != nil {
			return // the technology is away
		}
	}
}

func (w *world) check() {
	held, err := w.d.List(context.Background())
	if err != nil {
		w.tb.Error(err)
	}
	for _, h := range held {
		a, ok := w.desired[h.Instance]
		made, _ := w.d.Spec(h.Instance)
		if !ok || !h.Running || made.Image != a.Spec.Image {
			w.tb.Errorf("holds %s, running %v, image %s; want it there %v", h.Instance, h.Running, made.Image, ok)
		}
	}
	statuses := w.set.Statuses()
	if len(held) != len(w.desired) || len(statuses) != len(w.desired) {
		w.tb.Errorf("got %d workloads and %d statuses, want %d: %+v", len(held), len(statuses), len(w.desired), statuses)
	}
	for _, s := range statuses {
		if s.State != messages.Running || !s.Healthy || s.Rev != w.desired[s.Instance].Rev {
			w.tb.Errorf("got %+v, want running at rev %d", s, w.desired[s.Instance].Rev)
		}
	}
	digest, epoch, _ := w.set.Digest()
	if want := messages.Digest(w.wanted()); digest != want || epoch != w.epoch && epoch != 0 {
		w.tb.Errorf("got digest %s of epoch %d, want %s of %d", digest, epoch, want, w.epoch)
	}
}
