package instance

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
	"skerry.internal/node-engine/internal/store"
)

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 9: 256 * time.Second,
		10: 5 * time.Minute, 1 << 20: 5 * time.Minute} {
		if got := backoff(time.Second, 5*time.Minute, failures); got != want {
			t.Errorf("failure %d: got %s, want %s", failures, got, want)
		}
	}
	if got := backoff(time.Minute, time.Second, 4); got != time.Minute {
		t.Errorf("got %s, want a maximum below the first wait to hold nobody to less than that", got)
	}
}

func TestClip(t *testing.T) {
	got := clip("first\nsecond\x00\xff " + strings.Repeat("ü", maxReason))
	if !strings.HasPrefix(got, "first second\x00? ü") || !utf8.ValidString(got) || len(got) > maxReason+len("…") {
		t.Errorf("got %q", got)
	}
}

// TestStepMakesOneCall: whatever the state, a step makes at most one call and never goes back in an attempt.
func TestStepMakesOneCall(t *testing.T) {
	states := []messages.State{messages.Pending, messages.Preparing, messages.Starting, messages.Running}
	for _, run := range []bool{true, false} {
		for _, from := range states {
			for _, fails := range []bool{true, false} {
				d := new(fake.Driver)
				if fails {
					d.PrepareFunc = func(context.Context, driver.Spec, func(messages.Progress)) error { return errors.New("no") }
					d.StartFunc = func(context.Context, driver.Spec) error { return errors.New("no") }
				}
				was := messages.InstanceStatus{State: from, Attempt: 2}
				got, err := step(t.Context(), d, task{run: run, spec: driver.Spec{Instance: "web.0.0", Spec: *spec()}}, was)
				if n := d.Calls("prepare") + d.Calls("start") + d.Calls("stop"); n > 1 {
					t.Errorf("%s, run %v: %d calls", from, run, n)
				}
				if got.Attempt != 2 || got.State.Rank() < from.Rank() || (err != nil && got.State != from) {
					t.Errorf("%s, run %v: got %s, err %v", from, run, got.State, err)
				}
				if err == nil && from != messages.Running && got.State == from {
					t.Errorf("%s, run %v: stays", from, run)
				}
			}
		}
	}
}

func TestGate(t *testing.T) {
	g := newGate(1)
	first := g.join(0)
	low, high, high2 := g.join(1), g.join(5), g.join(5)
	if !first.open() || low.open() || high.open() {
		t.Fatal("want the first alone")
	}
	first.leave()
	first.leave() // again does nothing
	if !high.open() || high2.open() || low.open() {
		t.Error("want the higher priority next, in order of arrival")
	}
	high2.leave() // gives up waiting
	high.leave()
	if !low.open() || high2.open() {
		t.Error("want the last one")
	}
}

// TestGateGivesEveryPlaceBack: whatever joins and leaves, no more than the places are held and none is lost.
func TestGateGivesEveryPlaceBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		places := rapid.IntRange(1, 4).Draw(rt, "places")
		g := newGate(places)
		var all []*ticket
		for range rapid.IntRange(1, 50).Draw(rt, "steps") {
			if len(all) == 0 || rapid.Bool().Draw(rt, "join") {
				all = append(all, g.join(rapid.IntRange(-2, 2).Draw(rt, "priority")))
			} else {
				all[rapid.IntRange(0, len(all)-1).Draw(rt, "who")].leave()
			}
			open, waiting := 0, 0
			for _, k := range all {
				switch {
				case k.left:
				case k.open():
					open++
				default:
					waiting++
				}
			}
			if open > places || (waiting > 0 && open < places) || waiting != len(g.queue) {
				rt.Fatalf("got %d of %d places held, %d waiting, queue of %d", open, places, waiting, len(g.queue))
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("made a Set without a store")
	}
}

// BenchmarkAssignToPrepare measures from Assign to the driver's Prepare; disk is the part of it that one record takes to be written.
func BenchmarkAssignToPrepare(b *testing.B) {
	called := make(chan struct{})
	d := &fake.Driver{PrepareFunc: func(context.Context, driver.Spec, func(messages.Progress)) error {
		called <- struct{}{}
		return nil
	}}
	log := slog.New(slog.DiscardHandler)
	disk, err := store.Open(b.TempDir(), log)
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	set, err := New(Config{Drivers: map[messages.Technology]driver.Driver{"docker": d}, Store: disk, Report: func(messages.InstanceStatus) {}}, log)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- set.Run(ctx) }()
	var saving time.Duration
	i := 0
	for b.Loop() {
		id := messages.NewInstanceID("web", i, 0)
		i++
		if err := set.Assign(messages.Assignment{Instance: id, Rev: 1, Epoch: 1, Run: true, Spec: spec()}); err != nil {
			b.Fatal(err)
		}
		<-called
		b.StopTimer()
		began := time.Now()
		if err := disk.Save(store.Record{Assignment: messages.Assignment{Instance: "probe.0.0", Run: true, Spec: spec()}}); err != nil {
			b.Fatal(err)
		}
		saving += time.Since(began)
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(float64(saving.Nanoseconds())/float64(i), "disk-ns/op")
	cancel()
	<-ended
}
