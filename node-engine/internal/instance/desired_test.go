package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

func assignment(id messages.InstanceID, epoch, rev uint64) messages.Assignment {
	return messages.Assignment{Instance: id, Epoch: epoch, Rev: rev, Run: true, Spec: spec()}
}

func TestRepeatsCostNothing(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		reports, starts := r.count(), r.d.Calls("prepare")
		before := written(t, r.dir)
		for range 5000 {
			r.assign("web.0.0", 1, spec())
		}
		sync := messages.Sync{Epoch: 1, Rev: 1, Assignments: []messages.Assignment{assignment("web.0.0", 1, 1)}}
		for range 1000 {
			if err := r.set.Sync(sync); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if r.count() != reports || r.d.Calls("prepare") != starts || written(t, r.dir) != before {
			t.Errorf("got %d reports, %d calls, files written %v, want nothing", r.count()-reports, r.d.Calls("prepare")-starts, written(t, r.dir) != before)
		}
	})
}

func TestIdleWritesNothing(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.ack.Store(true)
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}})))
		settle(time.Minute)
		before := written(t, r.dir)
		settle(24 * time.Hour)
		if written(t, r.dir) != before {
			t.Error("written to while idle")
		}
		r.stop()
		r.start() // and a restart that finds all as it was
		settle(time.Hour)
		if written(t, r.dir) != before {
			t.Error("written to by a restart")
		}
	})
}

// written returns the names and times of all files.
func written(t *testing.T, dir string) string {
	t.Helper()
	all := ""
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && path != filepath.Join(dir, "lock") {
			all += fmt.Sprintln(path, info.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestUnknownIsStopped(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		before := written(t, r.dir)
		r.assign("web.0.0", 4, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped})
		if s := r.last("web.0.0"); s.Seq != 1 || s.Rev != 4 || r.count() != 1 {
			t.Errorf("got %+v, %d reports, want one with seq 1", s, r.count())
		}
		set.Acked("web.0.0", 1)
		synctest.Wait()
		r.assign("web.0.0", 4, nil) // it was lost on its way, and the manager asks again
		synctest.Wait()
		if s := r.last("web.0.0"); s.Seq != 2 || r.count() != 2 {
			t.Errorf("got %+v, %d reports, want a second answer", s, r.count())
		}
		set.Acked("web.0.0", 2)
		synctest.Wait()
		if len(set.Statuses()) != 0 || written(t, r.dir) == "" || before == "" {
			t.Error("not forgotten")
		}
		if records, _, _ := r.store.Load(); len(records) != 0 {
			t.Errorf("on disk: %v", records)
		}
	})
}

func TestLateRepeatDoesNotResurrect(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.ack.Store(true)
		r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		for _, rev := range []uint64{1, 2} {
			r.assign("web.0.0", rev, spec())
		}
		settle(time.Second)
		if len(r.set.Statuses()) != 0 || r.d.Calls("start") != 1 {
			t.Errorf("got %v, want it gone", r.set.Statuses())
		}
		r.stop()
		r.start()
		r.assign("web.0.0", 1, spec()) // also after a restart
		settle(time.Second)
		if len(r.set.Statuses()) != 0 || r.d.Calls("start") != 1 {
			t.Errorf("got %v, want it gone", r.set.Statuses())
		}
		r.assign("web.0.0", 3, spec())
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestFinishedIsBounded(t *testing.T) {
	var f finished
	for i := range 1000 {
		f.add(done{Instance: messages.NewInstanceID("web", i, 0)})
		f.add(done{Instance: messages.NewInstanceID("web", i, 0), Seq: 1})
	}
	if _, ok := f.find("web.999.0"); !ok || len(f.Done) != maxFinished {
		t.Errorf("got %d, want %d with the newest", len(f.Done), maxFinished)
	}
	if _, ok := f.find("web.0.0"); ok {
		t.Error("the oldest is still there")
	}
}

func TestSync(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		r.ack.Store(true)
		sync := func(epoch, rev uint64, list ...messages.Assignment) {
			t.Helper()
			if err := set.Sync(messages.Sync{Epoch: epoch, Rev: rev, Assignments: list}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		running := func(want string) {
			t.Helper()
			if got := r.running(); got != want {
				t.Errorf("got %q running, want %q", got, want)
			}
		}
		sync(1, 5, assignment("a.0.0", 1, 3), assignment("b.0.0", 1, 4))
		running("a.0.0 b.0.0")
		r.assign("c.0.0", 6, spec()) // newer than the next sync, which was made before
		synctest.Wait()
		sync(1, 5, assignment("b.0.0", 1, 4))
		running("b.0.0 c.0.0")
		sync(1, 7, assignment("b.0.0", 1, 4), assignment("c.0.0", 1, 5)) // c's rev is older than held, which changes nothing
		running("b.0.0 c.0.0")
		starts := r.d.Calls("start")
		sync(2, 1, assignment("b.0.0", 2, 1), assignment("c.0.0", 2, 1)) // another manager, whose revs begin anew
		running("b.0.0 c.0.0")
		if r.d.Calls("start") != starts || r.d.Calls("stop") != 1 {
			t.Error("a takeover touched a workload")
		}
		sync(1, 99) // the old manager
		running("b.0.0 c.0.0")
		if err := set.Assign(messages.Assignment{Instance: "b.0.0", Epoch: 1, Rev: 100}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		running("b.0.0 c.0.0")
		digest, epoch, rev := set.Digest()
		want := messages.Digest([]messages.Assignment{assignment("c.0.0", 2, 1), assignment("b.0.0", 2, 1)})
		if digest != want || epoch != 2 || rev != 1 {
			t.Errorf("got %s %d %d, want %s 2 1", digest, epoch, rev, want)
		}
		sync(2, 2)
		running("")
		r.stop()
		set = r.start()
		sync(1, 100, assignment("d.0.0", 1, 100)) // fenced after a restart with nothing held
		running("")
		if _, epoch, _ := set.Digest(); epoch != 2 {
			t.Errorf("got epoch %d, want 2", epoch)
		}
	})
}

func TestInvalidIsRefused(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		for _, a := range []messages.Assignment{
			{}, {Instance: "../x", Run: true, Spec: spec()}, {Instance: "web.0.0", Run: true},
			{Instance: "web.0.0", Run: true, Spec: &messages.Spec{Technology: "docker"}},
		} {
			if err := set.Assign(a); err == nil {
				t.Errorf("took %+v", a)
			}
		}
		if err := set.Sync(messages.Sync{Assignments: []messages.Assignment{assignment("a.0.0", 1, 1), assignment("a.0.0", 1, 1)}}); err == nil {
			t.Error("took a sync that names an instance twice")
		}
		if n := len(set.Statuses()); n != 0 {
			t.Errorf("holds %d instances", n)
		}
	})
}

// TestDiskThatTakesNothing: an assignment is refused with an error rather than run without being durable, and what runs goes on. What ends
// an instance is done: it is what makes room.
func TestDiskThatTakesNothing(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		r.ack.Store(true)
		set := r.start()
		for i := range 3 {
			r.assign(messages.NewInstanceID("web", i, 0), uint64(i+1), spec())
		}
		synctest.Wait()
		full := func(dir string, yes bool) {
			t.Helper()
			dir = filepath.Join(r.dir, dir)
			from, to := dir, dir+"-away"
			if !yes {
				from, to = to, from
			}
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		full("instances", true)
		full("values", true)
		if err := set.Assign(assignment("api.0.0", 1, 4)); err == nil {
			t.Error("took an assignment that is not durable")
		}
		if err := set.Assign(messages.Assignment{Instance: "web.1.0", Epoch: 1, Rev: 5}); err != nil {
			t.Errorf("a stop: %v", err)
		}
		r.d.Crash("web.0.0", 1, false)
		settle(2 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Attempt: 1})
		r.want("web.1.0", messages.InstanceStatus{State: messages.Stopped})
		if err := set.Sync(messages.Sync{Epoch: 2, Rev: 1}); err != nil { // of another manager
			t.Errorf("a sync that ends everything: %v", err)
		}
		synctest.Wait()
		if got := r.running(); got != "" {
			t.Errorf("got %s running, want a newer manager heard", got)
		}
		if err := set.Assign(assignment("web.0.0", 1, 9)); err != nil {
			t.Error(err)
		}
		full("instances", false)
		full("values", false)
		if err := set.Sync(messages.Sync{Epoch: 2, Rev: 2, Assignments: []messages.Assignment{assignment("api.0.0", 2, 2)}}); err != nil {
			t.Error(err)
		}
		settle(time.Minute)
		if got := r.running(); got != "api.0.0" {
			t.Errorf("got %s running, want what the newer manager wants", got)
		}
		r.stop()
		if err := r.start().Assign(assignment("new.0.0", 1, 99)); err != nil {
			t.Error(err)
		}
		settle(time.Minute)
		if strings.Contains(r.running(), "new") {
			t.Errorf("got %s running, want the epoch written once there was room", r.running())
		}
	})
}

// What was stopped while the disk took no file is not begun again by the next engine where it could still be deleted.
func TestStopOnAFullDisk(t *testing.T) {
	bubble(t, new(fake.Driver), func(t *testing.T, r *rig) {
		set := r.start()
		r.assign("web.0.0", 1, spec())
		synctest.Wait()
		blocker := filepath.Join(r.dir, "instances")
		if err := os.Rename(blocker, blocker+"-away"); err != nil {
			t.Fatal(err)
		}
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		if err := errors.Join(os.Rename(blocker+"-away", blocker), os.Rename(filepath.Join(r.dir, "values"), filepath.Join(r.dir, "values-away"))); err != nil {
			t.Fatal(err)
		}
		set.Acked("web.0.0", r.last("web.0.0").Seq)
		synctest.Wait()
		if err := os.Rename(filepath.Join(r.dir, "values-away"), filepath.Join(r.dir, "values")); err != nil {
			t.Fatal(err)
		}
		r.stop()
		r.start()
		settle(time.Minute)
		if got := r.running(); got != "" {
			t.Errorf("got %s running", got)
		}
	})
}

func TestReserved(t *testing.T) {
	d := &fake.Driver{RunFunc: func(s driver.Spec) *driver.Exit {
		if s.Image == "ends" {
			return &driver.Exit{}
		}
		return nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		set := r.start()
		need := func(s *messages.Spec) { s.Resources = messages.Resources{CPUs: 0.5, MemoryMB: 64, GPUs: 1} }
		r.assign("a.0.0", 1, spec(need))
		r.assign("b.0.0", 2, spec(need))
		r.assign("etl.0.0", 3, spec(need, restart(messages.RestartOnFailure, 0), func(s *messages.Spec) { s.Image = "ends" }))
		synctest.Wait()
		if got := set.Reserved(); got.CPUs != 1 || got.MemoryMB != 128 || got.GPUs != 2 {
			t.Errorf("got %+v", got)
		}
		r.d.Crash("a.0.0", 1, false)
		settle(2 * time.Second)
		if got := set.Restarts(); len(got) != 3 || got["a.0.0"] != 1 {
			t.Errorf("got %+v", got)
		}
		r.assign("b.0.0", 4, nil)
		synctest.Wait()
		if got := set.Reserved(); got.MemoryMB != 64 || len(set.Restarts()) != 2 {
			t.Errorf("got %+v", got)
		}
	})
}
