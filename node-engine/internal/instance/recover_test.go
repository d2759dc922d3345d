package instance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

func TestRestartAdopts(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}})))
		settle(time.Second)
		before := r.last("web.0.0")
		reports := r.count()
		r.stop()
		settle(time.Hour)
		set := r.start()
		if got := set.Statuses(); len(got) != 1 || got[0].Seq <= before.Seq || !got[0].Healthy || got[0].State != messages.Running {
			t.Errorf("got %+v at once after a restart", got)
		}
		settle(time.Minute)
		if r.count() != reports {
			t.Errorf("got %v, want no report: nothing has changed", r.all[reports:])
		}
		if r.d.Calls("start") != 1 || r.d.Calls("prepare") != 1 || r.d.Calls("stop") != 0 {
			t.Error("a restart of the engine touched a workload")
		}
		p.code.Store(1)
		settle(15500 * time.Millisecond)
		if s := r.last("web.0.0"); s.Seq <= set.Statuses()[0].Seq-3 || s.Code != messages.Unhealthy {
			t.Errorf("got %+v", s)
		}
	})
}

func TestEndedWhileTheEngineWasDown(t *testing.T) {
	cases := map[string]struct {
		policy messages.RestartPolicy
		code   int
		reboot bool
		told   bool
		want   messages.InstanceStatus
	}{
		"done":                {messages.RestartOnFailure, 0, false, false, messages.InstanceStatus{State: messages.ExitedState}},
		"failed":              {messages.RestartNever, 3, false, false, messages.InstanceStatus{State: messages.FailedState, Code: messages.Exited, Reason: "exited with code 3"}},
		"reboot":              {messages.RestartNever, 137, true, false, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"reboot, clean end":   {messages.RestartOnFailure, 0, true, false, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"told to":             {messages.RestartOnFailure, 0, false, true, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"told to, never":      {messages.RestartNever, 137, false, true, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"started once more":   {messages.RestartOnFailure, 3, false, false, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"always, started too": {messages.RestartAlways, 0, false, false, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, spec(restart(c.policy, 1)))
				settle(time.Second)
				r.stop()
				if c.told {
					r.d.Interrupt("web.0.0", c.code)
				}
				r.d.Crash("web.0.0", c.code, false)
				if c.reboot {
					r.boot = "boot-2"
				}
				r.start()
				settle(2 * time.Second)
				r.want("web.0.0", c.want)
				records, _, _ := r.store.Load()
				if (c.reboot || c.told) && (len(records) != 1 || records[0].Failures != 0) {
					t.Errorf("got %+v, want an end by another hand to count as no failure", records)
				}
			})
		})
	}
}

func TestTerminalSurvives(t *testing.T) {
	d := &fake.Driver{RunFunc: func(driver.Spec) *driver.Exit { return &driver.Exit{Code: 3} }}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(restart(messages.RestartNever, 0)))
		synctest.Wait()
		for i := range 3 {
			r.stop()
			r.boot = fmt.Sprint("boot-", i+2)
			r.start()
			settle(time.Minute)
		}
		r.want("web.0.0", messages.InstanceStatus{State: messages.FailedState, Code: messages.Exited})
		if got := d.Calls("start"); got != 1 {
			t.Errorf("got %d starts, want one", got)
		}
		if s := r.set.Statuses(); len(s) != 1 || s[0].State != messages.FailedState || s[0].ExitCode == nil {
			t.Errorf("got %+v", s)
		}
	})
}

func TestUnackedStopSurvives(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.stop()
		set := r.start()
		synctest.Wait()
		got := set.Statuses()
		if len(got) != 1 || got[0].State != messages.Stopped || got[0].Seq <= r.last("web.0.0").Seq {
			t.Fatalf("got %+v, want stopped until it is acknowledged", got)
		}
		set.Acked("web.0.0", got[0].Seq)
		synctest.Wait()
		if len(set.Statuses()) != 0 {
			t.Error("not forgotten")
		}
	})
}

func TestStopThatTheEngineDidNotFinish(t *testing.T) {
	d := &fake.Driver{StopFunc: func(ctx context.Context, _ messages.InstanceID, _ messages.Stop) error {
		select {
		case <-time.After(10 * time.Second):
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
		settle(time.Second)
		r.stop()
		if got := r.running(); got != "web.0.0" {
			t.Fatalf("got %q running", got)
		}
		r.start()
		settle(11 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
	})
}

func TestDriverRestart(t *testing.T) {
	cases := map[string]struct {
		end  func(r *rig)
		want messages.InstanceStatus
	}{
		"workloads live on": {func(*rig) {}, messages.InstanceStatus{State: messages.Running, Healthy: true}},
		"workloads ended":   {func(r *rig) { r.d.Crash("web.0.0", 137, false) }, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"with a clean end":  {func(r *rig) { r.d.Crash("web.0.0", 0, false) }, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, spec(restart(messages.RestartOnFailure, 1)))
				settle(time.Second)
				before := r.last("web.0.0")
				for range 5 { // more often than the policy allows failures
					r.d.Down(true)
					synctest.Wait()
					c.end(r)
					settle(time.Second)
					r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: r.last("web.0.0").Attempt})
					r.d.Down(false)
					settle(5 * time.Second)
					c.want.Attempt = min(c.want.Attempt, 1) * r.last("web.0.0").Attempt
					r.want("web.0.0", c.want)
				}
				if s := r.last("web.0.0"); c.want.Attempt == 0 && s.Seq != before.Seq {
					t.Errorf("got %+v, want no report", s)
				} else if c.want.Attempt != 0 && s.Attempt != 5 {
					t.Errorf("got %+v, want 5 attempts", s)
				}
			})
		})
	}
}

// A service that ends with 0 because it was told to by its technology, which is about to end or was asked by a person, has not done its work.
func TestInterruptedEndIsNoExit(t *testing.T) {
	for _, policy := range []messages.RestartPolicy{messages.RestartNever, messages.RestartOnFailure, messages.RestartAlways} {
		t.Run(string(policy), func(t *testing.T) {
			bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, spec(restart(policy, 1)))
				for attempt := range 5 { // more often than the policy allows failures
					settle(time.Second)
					r.d.Interrupt("web.0.0", 0)
					settle(time.Second)
					r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: attempt + 1, ExitCode: new(0)})
				}
			})
		})
	}
}

// What ended while the driver was not listened to, but was there, ended by itself where the driver says so.
func TestEndInAGap(t *testing.T) {
	cases := map[string]struct {
		end  func(d *fake.Driver)
		want messages.InstanceStatus
	}{
		"done":        {func(d *fake.Driver) { d.Crash("web.0.0", 0, false) }, messages.InstanceStatus{State: messages.ExitedState, ExitCode: new(0)}},
		"failed":      {func(d *fake.Driver) { d.Crash("web.0.0", 3, false) }, messages.InstanceStatus{State: messages.FailedState, Code: messages.Exited, ExitCode: new(3)}},
		"interrupted": {func(d *fake.Driver) { d.Interrupt("web.0.0", 0) }, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
		"removed": {func(d *fake.Driver) {
			if err := d.Stop(context.Background(), "web.0.0", messages.Stop{}); err != nil {
				panic(err)
			}
		}, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
				r.start()
				r.assign("web.0.0", 1, spec(restart(messages.RestartNever, 1)))
				settle(time.Second)
				r.d.Gap(func() { c.end(r.d) })
				settle(time.Minute)
				r.want("web.0.0", c.want)
			})
		})
	}
}

func TestBootWithoutAManager(t *testing.T) {
	var mu sync.Mutex
	var order []messages.InstanceID
	d := &fake.Driver{StartFunc: func(_ context.Context, s driver.Spec) error {
		mu.Lock()
		order = append(order, s.Instance)
		mu.Unlock()
		time.Sleep(time.Second)
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		ids := []messages.InstanceID{"a.0.0", "b.0.0", "c.0.0", "d.0.0", "e.0.0", "f.0.0"}
		for i, id := range ids {
			r.assign(id, uint64(i+1), spec(func(s *messages.Spec) { s.Priority = i - 3 }))
		}
		settle(time.Minute)
		r.stop()
		for _, id := range ids {
			r.d.Crash(id, 255, false)
		}
		order = nil
		r.boot = "boot-2"
		r.d.Down(true) // dockerd is slower than the engine
		r.start()
		settle(3 * time.Second)
		r.d.Down(false)
		settle(10 * time.Second)
		// Two come up at once, so neighbours may swap; the rest is in order.
		rank := map[messages.InstanceID]int{}
		for i, id := range order {
			rank[id] = i
		}
		for i, id := range ids {
			if want := len(ids) - 1 - i; len(order) != len(ids) || rank[id]/2 != want/2 {
				t.Errorf("got order %v, want higher priority first", order)
			}
		}
		for _, id := range ids {
			r.want(id, messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		}
	})
}

func TestLongPullHoldsNobodyUp(t *testing.T) {
	d := &fake.Driver{PrepareFunc: func(ctx context.Context, s driver.Spec, _ func(messages.Progress)) error {
		if s.Image != "huge" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		for i := range 5 {
			r.assign(messages.NewInstanceID("huge", i, 0), uint64(i+1), spec(func(s *messages.Spec) { s.Image, s.Priority = "huge", 10 }))
		}
		synctest.Wait()
		r.assign("web.0.0", 9, spec())
		settle(3*pullPatience + time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestStraysAreRemoved(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		var logged strings.Builder
		r.log = textLog(&logged)
		stray := func(id messages.InstanceID) {
			t.Helper()
			if _, err := r.d.Start(t.Context(), driver.Spec{Instance: id, Spec: *spec()}); err != nil {
				t.Fatal(err)
			}
		}
		running := func(want, what string) {
			t.Helper()
			if got := r.running(); got != want {
				t.Errorf("got %q running, want %q: %s", got, want, what)
			}
		}
		stray("old.0.0")
		stray("old.1.0")
		set := r.start()
		r.assign("web.0.0", 1, spec())
		settle(time.Hour)
		stray("old.2.0")
		synctest.Wait()
		running("old.0.0 old.1.0 old.2.0 web.0.0", "an engine that was told nothing ends nothing")
		if digest, _, _ := set.Digest(); digest == messages.Digest([]messages.Assignment{assignment("web.0.0", 1, 1)}) {
			t.Error("its manager sees no reason to speak")
		}
		if err := set.Sync(messages.Sync{Epoch: 1, Rev: 1, Assignments: []messages.Assignment{assignment("web.0.0", 1, 1)}}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		running("web.0.0", "a sync does not name the strays")
		stray("late.0.0")
		synctest.Wait()
		running("web.0.0", "one that starts later is a stray too")
		if len(set.Statuses()) != 1 || r.count() != 4 {
			t.Errorf("got %v and %d reports, want strays not spoken of", set.Statuses(), r.count())
		}
		r.stop()
		stray("old.3.0")
		r.start()
		settle(time.Second)
		running("web.0.0", "an engine that holds records knows what is a stray")
		kept, removed := strings.Count(logged.String(), "is kept until the next sync"), strings.Count(logged.String(), "without an assignment is removed")
		if kept != 3 || removed != 5 {
			t.Errorf("got %d log lines of what is kept and %d of what is removed, want 3 and 5", kept, removed)
		}
	})
}

func TestStrayThatIsAssignedWhileItIsRemoved(t *testing.T) {
	d := &fake.Driver{StopFunc: func(context.Context, messages.InstanceID, messages.Stop) error {
		time.Sleep(5 * time.Second)
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		if _, err := r.d.Start(t.Context(), driver.Spec{Instance: "web.0.0", Spec: *spec()}); err != nil {
			t.Fatal(err)
		}
		r.start()
		if err := r.set.Sync(messages.Sync{}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if err := r.set.Assign(messages.Assignment{Instance: "web.0.0", Run: true, Spec: spec()}); err != nil { // epoch 0, rev 0
			t.Fatal(err)
		}
		settle(10 * time.Second)
		if got := r.running(); got != "web.0.0" {
			t.Errorf("got %q running", got)
		}
		if s := r.last("web.0.0"); s.State != messages.Running || s.Job != "web" {
			t.Errorf("got %+v", s)
		}
	})
}

func TestDamagedRecordKeepsItsWorkload(t *testing.T) {
	for _, named := range []bool{true, false} {
		bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
			r.start()
			r.assign("web.0.0", 1, spec())
			synctest.Wait()
			r.stop()
			if err := os.WriteFile(filepath.Join(r.dir, "instances", "web.0.0"), []byte("bits"), 0o600); err != nil {
				t.Fatal(err)
			}
			r.start()
			settle(time.Hour)
			if got := r.running(); got != "web.0.0" {
				t.Fatalf("got %q running, want it kept until a manager has spoken", got)
			}
			whole := messages.Sync{Epoch: 1, Rev: 1}
			if named {
				whole.Assignments = append(whole.Assignments, assignment("web.0.0", 1, 1))
			}
			if digest, _, _ := r.set.Digest(); digest == messages.Digest(whole.Assignments) {
				t.Error("its manager sees no reason to speak")
			}
			r.latest = map[messages.InstanceID]messages.InstanceStatus{} // its seq was in the file
			if err := r.set.Sync(whole); err != nil {
				t.Fatal(err)
			}
			settle(time.Minute)
			if got := r.running() == "web.0.0"; got != named {
				t.Errorf("got running %v, want %v", got, named)
			}
			if digest, _, _ := r.set.Digest(); digest != messages.Digest(whole.Assignments) {
				t.Error("its manager would speak again")
			}
			if s := r.last("web.0.0"); named && s.Workload != "fake-1" {
				t.Errorf("got %+v, want the same workload", s)
			}
		})
	}
}

func TestRestartDuringBackoffKeepsIt(t *testing.T) {
	d := &fake.Driver{RunFunc: func(driver.Spec) *driver.Exit { return &driver.Exit{Code: 3} }}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(func(s *messages.Spec) { s.Restart.Backoff = messages.Duration(time.Minute) }))
		synctest.Wait()
		for range 5 {
			r.stop()
			r.start()
			settle(10 * time.Second)
		}
		if got := r.d.Calls("start"); got != 1 {
			t.Errorf("got %d starts, want restarts of the engine not to cut the wait short", got)
		}
		settle(11 * time.Second)
		if got := r.d.Calls("start"); got != 2 {
			t.Errorf("got %d starts, want a second one after a minute", got)
		}
	})
}

func TestLeftoverOfAStopIsRemoved(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.assign("web.0.0", 2, nil)
		settle(time.Second)
		if _, err := r.d.Start(t.Context(), driver.Spec{Instance: "web.0.0", Spec: *spec()}); err != nil { // a request of before that took long
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.running(); got != "" {
			t.Errorf("got %q running", got)
		}
	})
}
