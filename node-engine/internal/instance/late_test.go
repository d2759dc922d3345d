package instance

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

// What arrives late here: events and listings of earlier lives, assignments in the middle of something else.

func TestLateEventsAreOfAnEarlierLife(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		r.assign("web.0.0", 1, spec())
		settle(time.Second)
		held, _ := r.d.List(t.Context())
		run := set.find("web.0.0")
		mark := run.mark()
		r.d.Crash("web.0.0", 1, false)
		settle(2 * time.Second)
		reports := r.count()
		old := held[0]
		run.observe(old) // it runs
		synctest.Wait()
		old.Running, old.Exit = false, &driver.Exit{Code: 1}
		run.observe(old) // it has ended
		synctest.Wait()
		run.listed(mark, nil, false) // a listing of before the restart
		synctest.Wait()
		run.listed(mark, &old, false)
		settle(time.Minute)
		if r.count() != reports {
			t.Errorf("got %+v, want what is late to change nothing", r.all[reports:])
		}
	})
}

func TestListingDuringAStart(t *testing.T) {
	var set *Set
	var mark int
	d := &fake.Driver{StartFunc: func(context.Context, driver.Spec) error {
		run := set.find("web.0.0")
		mark = run.mark()
		run.listed(mark, nil, false) // there is nothing yet
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		set = r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		set.find("web.0.0").listed(mark, nil, false) // the same, delivered late
		settle(time.Minute)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestDeleteDuringBackoff(t *testing.T) {
	d := &fake.Driver{RunFunc: func(driver.Spec) *driver.Exit { return &driver.Exit{Code: 1} }}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(func(s *messages.Spec) { s.Restart.Backoff = messages.Duration(time.Hour) }))
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Pending, Code: messages.Exited, Attempt: 1})
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped, Attempt: 1})
	})
}

func TestReplacementIsRemembered(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		settle(time.Second)
		r.d.Down(true)
		r.assign("web.0.0", 2, spec(func(s *messages.Spec) { s.Image = "app:2" }))
		settle(time.Minute)
		if s := r.last("web.0.0"); s.Rev != 1 || !strings.Contains(s.Reason, "does not answer") {
			t.Errorf("got %+v, want the old workload to be spoken of with its own rev", s)
		}
		r.stop()
		r.d.Down(false)
		r.start()
		settle(time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		if made, _ := r.d.Spec("web.0.0"); made.Image != "app:2" || r.last("web.0.0").Rev != 2 {
			t.Errorf("got %s, want the replacement", made.Image)
		}
	})
}

func TestForgetLooksAgain(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		if set.forget(set.find("web.0.0")) || set.find("web.0.0") == nil {
			t.Error("forgot an instance that something new had come for")
		}
	})
}

func TestFailuresInTheStartPeriodDoNotCount(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}, StartPeriod: messages.Duration(time.Minute)})))
		settle(time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		p.code.Store(1)
		settle(65 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		settle(4500 * time.Millisecond)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Pending, Code: messages.Unhealthy, Attempt: 1})
	})
}

// TestUnhealthyBecauseTheDriverWent: a check may notice the end of dockerd before the engine does.
func TestUnhealthyBecauseTheDriverWent(t *testing.T) {
	var p probe
	d := p.driver()
	d.StopFunc = func(context.Context, messages.InstanceID, messages.Stop) error { return driver.ErrUnavailable }
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}})))
		settle(21 * time.Second)
		p.code.Store(1)
		settle(15 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Reason: "docker does not answer"})
		reports := r.count()
		settle(time.Minute)
		if r.count() != reports {
			t.Errorf("got %d reports while nothing changes", r.count()-reports)
		}
		p.code.Store(0)
		r.d.Down(true)
		r.d.Crash("web.0.0", 137, false)
		settle(time.Second)
		r.d.Down(false)
		settle(10 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		if records, _, _ := r.store.Load(); len(records) != 1 || records[0].Failures != 0 {
			t.Errorf("got %+v, want no failure counted", records)
		}
	})
}

// A manager that has lost the news that an instance is gone asks for its end again. The answer is news, with a seq of its own.
func TestStoppedAgainHasItsOwnSeq(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.ack.Store(true)
		r.assign("web.0.0", 1, spec())
		r.assign("web.0.0", 2, nil)
		settle(time.Second)
		last := r.last("web.0.0")
		r.stop()
		set := r.open()
		r.assign("web.0.0", 2, nil)
		for _, s := range set.Statuses() { // what a session answers to a sync, before the runner has done anything
			if s.Seq <= last.Seq {
				t.Errorf("got %s with seq %d after %s with seq %d", s.State, s.Seq, last.State, last.Seq)
			}
		}
		r.run()
		settle(time.Minute)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
		if s := r.last("web.0.0"); s.Seq <= last.Seq {
			t.Errorf("got stopped with seq %d after %d", s.Seq, last.Seq)
		}
	})
}
