package instance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

func TestDeployAndDelete(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		if got, want := r.path("web.0.0"), "pending preparing starting running"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		if s := r.last("web.0.0"); s.Address == "" || s.Workload == "" || s.ImageID == "" || s.Seq != 4 || s.Rev != 1 {
			t.Errorf("got %+v", s)
		}
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
		if held, _ := r.d.List(t.Context()); len(held) != 0 {
			t.Errorf("left: %v", held)
		}
		if got := set.Statuses(); len(got) != 1 || got[0].State != messages.Stopped {
			t.Errorf("got %v, want stopped until acknowledged", got)
		}
		set.Acked("web.0.0", r.last("web.0.0").Seq-1)
		synctest.Wait()
		if len(set.Statuses()) != 1 {
			t.Error("forgotten by the acknowledgement of an older status")
		}
		set.Acked("web.0.0", r.last("web.0.0").Seq)
		synctest.Wait()
		if got := set.Statuses(); len(got) != 0 {
			t.Errorf("got %v, want forgotten", got)
		}
		if records, _, _ := r.store.Load(); len(records) != 0 {
			t.Errorf("on disk: %v", records)
		}
	})
}

func TestDeleteDuringPrepare(t *testing.T) {
	d := &fake.Driver{PrepareFunc: func(ctx context.Context, _ driver.Spec, _ func(messages.Progress)) error {
		<-ctx.Done() // a pull that never ends
		return ctx.Err()
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Preparing})
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
		if n := d.Calls("start"); n != 0 {
			t.Errorf("got %d starts, want none", n)
		}
	})
}

func TestDeleteDuringStart(t *testing.T) {
	d := &fake.Driver{StartFunc: func(ctx context.Context, _ driver.Spec) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Starting})
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
	})
}

func TestChangeDuringStart(t *testing.T) {
	d := &fake.Driver{StartFunc: func(ctx context.Context, s driver.Spec) error {
		if s.Environment["VERSION"] != "" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		changed := spec()
		changed.Environment = map[string]string{"VERSION": "2"}
		r.assign("web.0.0", 2, changed)
		settle(startMercy - time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Starting}) // it could end by itself
		settle(time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
	})
}

func TestRunAgainDuringStop(t *testing.T) {
	d := &fake.Driver{StopFunc: func(ctx context.Context, _ messages.InstanceID, stop messages.Stop) error {
		select {
		case <-time.After(stop.Grace.Std()):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.assign("web.0.0", 3, spec())
		settle(9 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		if r.last("web.0.0").Rev != 1 {
			t.Error("the stop was cut short")
		}
		settle(2 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		if s := r.last("web.0.0"); s.Rev != 3 || s.Workload != "fake-2" {
			t.Errorf("got %+v, want a new workload for rev 3", s)
		}
	})
}

func TestProgress(t *testing.T) {
	d := &fake.Driver{PrepareFunc: func(_ context.Context, _ driver.Spec, progress func(messages.Progress)) error {
		for i := range 50 {
			progress(messages.Progress{DoneBytes: int64(i + 1), TotalBytes: 50})
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		settle(10 * time.Second)
		told := 0
		for _, s := range r.all {
			if s.State == messages.Preparing && s.Progress != nil {
				told++
			}
		}
		if told < 4 || told > 6 {
			t.Errorf("got %d reports of progress in 5 s, want one a second", told)
		}
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		if r.last("web.0.0").Progress != nil {
			t.Error("progress of a pull that is over")
		}
	})
}

func TestRestartPolicy(t *testing.T) {
	cases := map[string]struct {
		spec *messages.Spec
		exit driver.Exit
		want messages.InstanceStatus
		wait time.Duration
	}{
		"always, clean end": {spec(restart(messages.RestartAlways, 0)), driver.Exit{}, messages.InstanceStatus{
			State: messages.Pending, Code: messages.Exited, Reason: "exited with code 0, next attempt in 4s", Attempt: 3}, 3500 * time.Millisecond},
		"on-failure, clean end": {spec(restart(messages.RestartOnFailure, 0)), driver.Exit{}, messages.InstanceStatus{
			State: messages.ExitedState, Reason: "exited with code 0", ExitCode: new(0)}, time.Hour},
		"on-failure, bad end": {spec(restart(messages.RestartOnFailure, 0)), driver.Exit{Code: 3}, messages.InstanceStatus{
			State: messages.Pending, Code: messages.Exited, Reason: "exited with code 3, next attempt in 4s", Attempt: 3, ExitCode: new(3)}, 3500 * time.Millisecond},
		"on-failure, gives up": {spec(restart(messages.RestartOnFailure, 5)), driver.Exit{Code: 3}, messages.InstanceStatus{
			State: messages.FailedState, Code: messages.Exited, Reason: "gave up after 5 attempts: exited with code 3", Attempt: 5, ExitCode: new(3)}, time.Hour},
		"never, clean end": {spec(restart(messages.RestartNever, 0)), driver.Exit{}, messages.InstanceStatus{
			State: messages.ExitedState, Reason: "exited with code 0"}, time.Hour},
		"never, bad end": {spec(restart(messages.RestartNever, 0)), driver.Exit{Code: 3}, messages.InstanceStatus{
			State: messages.FailedState, Code: messages.Exited, Reason: "exited with code 3; its restart policy is never", ExitCode: new(3)}, time.Hour},
		"out of memory": {spec(restart(messages.RestartOnFailure, 1), func(s *messages.Spec) { s.Resources.MemoryMB = 64 }), driver.Exit{Code: 137, OOM: true},
			messages.InstanceStatus{State: messages.FailedState, Code: messages.Exited, Attempt: 1, ExitCode: new(137),
				Reason: "gave up after 1 attempt: killed for want of memory: it used more than its 64 MiB; raise resources.memory_mb"}, time.Hour},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := &fake.Driver{RunFunc: func(driver.Spec) *driver.Exit { return &c.exit }}
			bubble(t, d, func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, c.spec)
				settle(c.wait)
				r.want("web.0.0", c.want)
				s := r.last("web.0.0")
				if s.OOM != c.exit.OOM || (s.State == messages.Pending) == s.NextAt.IsZero() {
					t.Errorf("got %+v", s)
				}
				held, _ := r.d.List(t.Context())
				if len(held) != 1 {
					t.Errorf("got %d workloads, want the ended one kept for its logs", len(held))
				}
			})
		})
	}
}

func TestBackoffIsBounded(t *testing.T) {
	d := &fake.Driver{RunFunc: func(driver.Spec) *driver.Exit { return &driver.Exit{Code: 1} }}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(func(s *messages.Spec) { s.Restart.MaxBackoff = messages.Duration(10 * time.Second) }))
		settle(15*time.Second + 1) // 1+2+4+8
		starts := r.d.Calls("start")
		settle(100 * time.Second)
		if got := r.d.Calls("start") - starts; got != 10 {
			t.Errorf("got %d starts in 100 s, want one every 10 s", got)
		}
	})
}

func TestFailuresAreForgotten(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartAlways, 2)))
		for range 10 {
			settle(settled + time.Second)
			if !r.d.Crash("web.0.0", 1, false) {
				t.Fatal("does not run")
			}
			synctest.Wait()
			if s := r.last("web.0.0"); !strings.Contains(s.Reason, "next attempt in 1s") {
				t.Fatalf("got %+v", s)
			}
		}
		for range 3 {
			r.d.Crash("web.0.0", 1, false)
			settle(10 * time.Second)
		}
		r.want("web.0.0", messages.InstanceStatus{State: messages.FailedState, Code: messages.Exited, Reason: "gave up after 2 attempts", Attempt: 11})
	})
}

func TestStartErrors(t *testing.T) {
	cases := map[string]struct {
		prepare, start error
		spec           *messages.Spec
		first, last    messages.InstanceStatus
		calls          int
	}{
		"image not found": {prepare: driver.ErrImageNotFound, spec: spec(), calls: 3,
			first: messages.InstanceStatus{State: messages.Pending, Code: messages.ImageNotFound, Attempt: 1, Reason: "image app:1 was not found: check its name"},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageNotFound, Attempt: 2, Reason: "gave up after 3 attempts: image app:1 was not found"}},
		"wrong processor": {prepare: driver.ErrImageArch, spec: spec(), calls: 1,
			first: messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageWrongArch, Reason: "processor"},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageWrongArch}},
		"invalid": {start: driver.ErrInvalid, spec: spec(), calls: 1,
			first: messages.InstanceStatus{State: messages.FailedState, Code: messages.DriverFailed, Reason: "cannot run here"},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.DriverFailed}},
		"port in use": {start: driver.ErrPortInUse, spec: spec(), calls: 5,
			first: messages.InstanceStatus{State: messages.Pending, Code: messages.PortInUse, Attempt: 1, Reason: "a host port is taken"},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.PortInUse, Attempt: 4, Reason: "gave up after 5 attempts"}},
		"port in use, bounded": {start: driver.ErrPortInUse, spec: spec(restart(messages.RestartAlways, 2)), calls: 3,
			first: messages.InstanceStatus{State: messages.Pending, Code: messages.PortInUse, Attempt: 1},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.PortInUse, Attempt: 2, Reason: "gave up after 2 attempts"}},
		"anything, never": {start: errors.New("boom\nbang"), spec: spec(restart(messages.RestartNever, 0)), calls: 3,
			first: messages.InstanceStatus{State: messages.Pending, Code: messages.DriverFailed, Attempt: 1, Reason: "boom bang, next attempt in 1s"},
			last:  messages.InstanceStatus{State: messages.FailedState, Code: messages.DriverFailed, Attempt: 2}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			calls := 0
			d := &fake.Driver{
				PrepareFunc: func(context.Context, driver.Spec, func(messages.Progress)) error {
					calls++
					return wrapped(c.prepare)
				},
				StartFunc: func(context.Context, driver.Spec) error { return wrapped(c.start) },
			}
			bubble(t, d, func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, c.spec)
				synctest.Wait()
				r.want("web.0.0", c.first)
				settle(time.Hour)
				r.want("web.0.0", c.last)
				if calls != c.calls {
					t.Errorf("got %d tries, want %d", calls, c.calls)
				}
			})
		})
	}
}

func wrapped(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("engine: %w", err)
}

func TestPullGoesOnWhileBytesCome(t *testing.T) {
	tries := 0
	d := &fake.Driver{PrepareFunc: func(_ context.Context, _ driver.Spec, progress func(messages.Progress)) error {
		tries++
		if tries < 20 {
			progress(messages.Progress{DoneBytes: 1 << 20})
			return errors.New("connection reset")
		}
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartAlways, 2)))
		settle(time.Minute)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 19})
	})
}

// A pull that brings the whole image each time, and each time in vain, is given up.
func TestPullThatThrowsItsBytesAwayIsGivenUp(t *testing.T) {
	tries := 0
	d := &fake.Driver{PrepareFunc: func(_ context.Context, _ driver.Spec, progress func(messages.Progress)) error {
		tries++
		progress(messages.Progress{DoneBytes: 1 << 20, TotalBytes: 1 << 20})
		return errors.New("verification failed")
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartAlways, 2)))
		settle(10 * time.Minute)
		all := r.set.Statuses()
		if len(all) != 1 || all[0].State != messages.FailedState || all[0].Code != messages.DriverFailed || tries > 6 {
			t.Errorf("after %d tries: %+v, want failed", tries, all)
		}
	})
}

func TestNoTechnology(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(func(s *messages.Spec) { s.Technology = "unikernel" }))
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.FailedState, Code: messages.NoTechnology, Reason: "this node does not run unikernel"})
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
	})
}

func TestTechnologyGoesFromUnderAnInstance(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.open("unikernel")
		r.run()
		r.assign("web.0.0", 1, spec(func(s *messages.Spec) {
			s.Technology = "unikernel"
			s.Health = &messages.Health{Exec: []string{"true"}}
		}))
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		r.stop()
		r.start()
		settle(time.Minute)
		r.want("web.0.0", messages.InstanceStatus{State: messages.FailedState, Code: messages.NoTechnology})
	})
}

func TestUnavailableUsesNoAttempt(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.d.Down(true)
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartNever, 1)))
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Preparing, Reason: "docker does not answer"})
		if n := r.count(); n > 4 {
			t.Errorf("got %d reports, want no repeats", n)
		}
		if n := r.d.Calls("prepare"); n < 3600/5 || n > 3600/5+20 {
			t.Errorf("got %d calls in an hour, want one every 5 s", n)
		}
		r.d.Down(false)
		settle(6 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		r.d.Down(true)
		r.assign("web.0.0", 2, nil)
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Reason: "docker does not answer"})
		r.d.Down(false)
		settle(6 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
	})
}

// A board whose network is still coming up gives up nothing that insists on it.
func TestNetworkThatIsDownUsesNoAttempt(t *testing.T) {
	var up atomic.Bool
	d := &fake.Driver{StartFunc: func(context.Context, driver.Spec) error {
		if up.Load() {
			return nil
		}
		return fmt.Errorf("it asks for the overlay: %w: the manager is away", driver.ErrNetworkDown)
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartNever, 1)))
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Starting, Reason: "it asks for the overlay: the node's overlay is not up: the manager is away"})
		up.Store(true)
		settle(maxRetry)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestStopThatFailsIsRepeated(t *testing.T) {
	var refuse atomic.Bool
	refuse.Store(true)
	d := &fake.Driver{StopFunc: func(context.Context, messages.InstanceID, messages.Stop) error {
		if refuse.Load() {
			return errors.New("device busy")
		}
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.assign("web.0.0", 2, nil)
		settle(time.Minute)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Code: messages.DriverFailed, Reason: "could not be stopped yet: stop: device busy"})
		refuse.Store(false)
		settle(6 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
	})
}

func TestNewSpecReplaces(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		first := r.last("web.0.0").Workload
		r.assign("web.0.0", 2, spec(restart(messages.RestartNever, 7), func(s *messages.Spec) { s.Priority = 5 }))
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		if s := r.last("web.0.0"); s.Rev != 2 || s.Workload != first || r.d.Calls("stop") != 0 {
			t.Errorf("got %+v, want rev 2 and the workload untouched", s)
		}
		r.assign("web.0.0", 3, spec(func(s *messages.Spec) { s.Image = "app:2" }))
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		if got, _ := r.d.Spec("web.0.0"); got.Image != "app:2" || r.last("web.0.0").Workload == first {
			t.Errorf("got %s, want the new image", got.Image)
		}
	})
}

func TestTerminalStaysForTheSameWorkload(t *testing.T) {
	d := &fake.Driver{RunFunc: func(s driver.Spec) *driver.Exit {
		if s.Image == "app:1" {
			return &driver.Exit{}
		}
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		set := r.start()
		r.assign("etl.0.0", 1, spec(restart(messages.RestartOnFailure, 0)))
		synctest.Wait()
		r.want("etl.0.0", messages.InstanceStatus{State: messages.ExitedState})
		if err := set.Assign(messages.Assignment{Instance: "etl.0.0", Rev: 1, Epoch: 2, Run: true, Spec: spec(restart(messages.RestartOnFailure, 0))}); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if n := d.Calls("start"); n != 1 {
			t.Errorf("got %d starts, want a takeover to run no batch again", n)
		}
		if err := set.Assign(messages.Assignment{Instance: "etl.0.0", Rev: 2, Epoch: 2, Run: true, Spec: spec(func(s *messages.Spec) { s.Image = "app:2" })}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.want("etl.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
	})
}

func TestRestartedByAnotherHand(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		settle(time.Second)
		if err := r.d.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil { // docker rm -f
			t.Fatal(err)
		}
		settle(2 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
	})
}
