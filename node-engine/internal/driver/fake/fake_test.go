package fake_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/drivertest"
	"skerry.internal/node-engine/internal/driver/fake"
)

func TestConformance(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) drivertest.Harness {
		return harness(t)
	})
}

// harness runs the suite's programs: each is kept by the instance whose spec it made.
func harness(t *testing.T) drivertest.Harness {
	var mu sync.Mutex
	programs := map[messages.InstanceID]drivertest.Program{}
	program := func(id messages.InstanceID) drivertest.Program {
		mu.Lock()
		defer mu.Unlock()
		return programs[id]
	}
	d := &fake.Driver{}
	d.PrepareFunc = func(_ context.Context, spec driver.Spec, _ func(messages.Progress)) error {
		if spec.Image == "absent" {
			return driver.ErrImageNotFound
		}
		return nil
	}
	d.RunFunc = func(spec driver.Spec) *driver.Exit {
		p := program(spec.Instance)
		if p.Exit {
			return &driver.Exit{Code: p.Code}
		}
		return nil
	}
	d.PrintFunc = func(spec driver.Spec) string {
		if p := program(spec.Instance); p.Print != "" {
			return p.Print + "\n"
		}
		return ""
	}
	d.StopFunc = func(ctx context.Context, id messages.InstanceID, stop messages.Stop) error {
		if !program(id).Stubborn {
			return nil
		}
		select {
		case <-time.After(stop.Grace.Std()):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.ExecFunc = func(ctx context.Context, _ messages.InstanceID, argv []string) (int, error) {
		switch argv[0] {
		case "hang":
			<-ctx.Done()
			return 0, ctx.Err()
		case "fail":
			return 7, nil
		default:
			return 0, nil
		}
	}
	return drivertest.Harness{
		Driver: d,
		Again:  func() driver.Driver { return d },
		Spec: func(id messages.InstanceID, p drivertest.Program) driver.Spec {
			mu.Lock()
			defer mu.Unlock()
			programs[id] = p
			return driver.Spec{Instance: id, Spec: messages.Spec{Image: "present"}}
		},
		Absent: func(id messages.InstanceID) driver.Spec {
			return driver.Spec{Instance: id, Spec: messages.Spec{Image: "absent"}}
		},
		Kill: func(id messages.InstanceID) {
			if !d.Interrupt(id, 137) {
				t.Errorf("kill %s: it does not run", id)
			}
		},
		Succeed: []string{"succeed"}, Fail: []string{"fail"}, Hang: []string{"hang"},
		Down: func() { d.Down(true) },
	}
}

// The fake must be usable in a bubble: blocked hooks are durably blocked, time is virtual, and nothing is left behind.
func TestInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{
			PrepareFunc: func(ctx context.Context, _ driver.Spec, progress func(messages.Progress)) error {
				progress(messages.Progress{DoneBytes: 1, TotalBytes: 2})
				select {
				case <-time.After(time.Hour):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var seen []driver.Workload
		wg.Go(func() {
			if err := d.Watch(ctx, func() {}, func(w driver.Workload) { seen = append(seen, w) }); err != nil {
				t.Error(err)
			}
		})
		begun := time.Now()
		spec := driver.Spec{Instance: "web.0.0", Spec: messages.Spec{Image: "x"}}
		if err := d.Prepare(ctx, spec, nil); err != nil {
			t.Fatal(err)
		}
		if time.Since(begun) != time.Hour {
			t.Errorf("prepare took %v", time.Since(begun))
		}
		if _, err := d.Start(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if !d.Crash("web.0.0", 137, true) || d.Crash("web.0.0", 1, false) {
			t.Error("crash: want true for what runs and false for what has ended")
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if len(seen) != 2 || !seen[0].Running || seen[1].Exit == nil || !seen[1].Exit.OOM {
			t.Errorf("watched %+v", seen)
		}
		if n := d.Calls("start"); n != 1 {
			t.Errorf("got %d starts counted, want 1", n)
		}
	})
}

// Down and back: workloads stay.
func TestBackAgain(t *testing.T) {
	d := &fake.Driver{}
	spec := driver.Spec{Instance: "web.0.0", Spec: messages.Spec{Image: "x"}}
	if _, err := d.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	d.Down(true)
	d.Down(false)
	if l, err := d.List(t.Context()); err != nil || len(l) != 1 || !l[0].Running {
		t.Errorf("got %+v, %v", l, err)
	}
}
