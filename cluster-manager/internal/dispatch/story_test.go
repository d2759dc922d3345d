package dispatch

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

func keepOriginal(j messages.Job) messages.Job {
	j.OnReturn = messages.KeepOriginal
	return j
}

func replicate(name messages.JobName, n int, worker ...messages.NodeID) messages.Command {
	return messages.Command{Command: messages.Replicate, Job: messages.Job{Name: name, Replicas: &n}, Worker: worker}
}

// A stand-in that is lost in its turn is replaced too, whatever the job wants on the return of the first node.
func TestStandInLost(t *testing.T) {
	for _, on := range []messages.OnReturn{messages.KeepNewest, messages.KeepOriginal} {
		t.Run(string(on), func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			j := job("web", "good", 1)
			j.OnReturn = on
			w.accepted(deploy(j))
			w.disconnect("a")
			w.pass(time.Minute)
			w.wantRunning("web", "web.0.0@a", "web.0.1@b")
			w.disconnect("b")
			w.pass(time.Minute)
			w.wantRunning("web", "web.0.0@a", "web.0.1@b", "web.0.2@c") // a and b do not know
			w.connect("b")
			w.connect("a")
			w.pass(time.Minute)
			want := "web.0.2@c"
			if on == messages.KeepOriginal {
				want = "web.0.0@a"
			}
			w.wantRunning("web", want)
		})
	}
}

func TestSeveralNodesLostAtOnce(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.accepted(deploy(job("web", "good", 6)))
	w.disconnect("a")
	w.disconnect("b")
	w.pass(time.Minute)
	if n := len(w.nodes["c"].holds); n != 6 {
		t.Errorf("c holds %d copies, want all 6", n)
	}
	w.connect("a")
	w.connect("b")
	w.pass(time.Minute)
	if n := w.running("web"); len(n) != 6 {
		t.Errorf("after the return: %v, want each copy once", n)
	}
}

// While an original is awaited its stand-in counts: commands are answered.
func TestCommandWhileOriginalIsAway(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(keepOriginal(job("web", "good", 1))))
	w.disconnect("a")
	w.pass(time.Minute)
	r := w.accepted(replicate("web", 2))
	w.pass(10 * time.Minute)
	w.done(r)
}

// A batch job that has finished runs again when it is changed, and only then.
func TestChangeOfFinishedBatch(t *testing.T) {
	w := newWorld(t, "a")
	j := withPort(job("once", "done", 1), 8080)
	j.Mode = messages.Batch
	j.Resources.MemoryMB = 900
	w.done(w.accepted(deploy(j)))
	w.done(w.accepted(deploy(j)))
	w.wantRunning("once", "once.0.0@a")
	j.Environment = map[string]string{"ROUND": "2"}
	r := w.accepted(deploy(j))
	w.pass(10 * time.Minute)
	w.done(r)
	w.wantRunning("once", "once.0.1@a")
	if s := w.jobs["once"]; s.State != messages.JobDone {
		t.Errorf("state %s", s.State)
	}
}

// What has finished takes no room any more, after a restart of the manager neither.
func TestFinishedGivesRoomBack(t *testing.T) {
	w := newWorld(t, "a")
	j := withPort(job("once", "done", 1), 8080)
	j.Resources.MemoryMB = 900
	w.done(w.accepted(deploy(j)))
	w.boot()
	w.connect("a")
	w.settle()
	k := withPort(job("web", "good", 1), 8080)
	k.Resources.MemoryMB = 900
	w.done(w.accepted(deploy(k)))
	w.wantRunning("web", "web.0.0@a")
}

// fall makes a copy unhealthy for a moment.
func (w *world) fall(id messages.InstanceID) {
	w.change(id, func(s *messages.InstanceStatus) {
		s.State, s.Healthy, s.Attempt, s.Reason = messages.Pending, false, s.Attempt+1, "exited with code 1"
	})
	w.pass(100 * time.Millisecond)
	w.change(id, func(s *messages.InstanceStatus) { s.State, s.Healthy, s.Reason = messages.Running, true, "" })
}

// A replacement that has been good for long enough and falls for a moment, while the others follow, is no reason to go back, also when the time
// that it had to come up is over and it has been restarted before.
func TestSettledCopyFallsDuringChange(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	j := job("web", "good", 3)
	j.Update = messages.Update{Stable: messages.Duration(20 * time.Second), Timeout: messages.Duration(30 * time.Second)}
	w.done(w.accepted(deploy(j)))
	j.Image = "better"
	r := w.accepted(deploy(j))
	w.pass(21 * time.Second)
	w.fall("web.0.1")
	w.pass(21 * time.Second)
	w.fall("web.0.1")
	w.pass(time.Minute)
	w.done(r)
	if s := w.jobs["web"]; s.Reason != "" || s.Image != "better" {
		t.Errorf("got %s, %q", s.Image, s.Reason)
	}
}

// Restarts that were forgiven stay so over a restart of the manager: a copy that lies down in that moment is no reason to go back.
func TestForgivenOverRestart(t *testing.T) {
	w := newWorld(t, "a", "b", "c", "d")
	j := job("web", "good", 4)
	j.Update = messages.Update{Stable: messages.Duration(20 * time.Second), Timeout: messages.Duration(30 * time.Second)}
	w.done(w.accepted(deploy(j)))
	j.Image = "better"
	r := w.accepted(deploy(j))
	w.pass(21 * time.Second)
	for range 2 {
		w.fall("web.0.1")
		w.pass(21 * time.Second)
	}
	w.change("web.0.1", func(s *messages.InstanceStatus) { s.State, s.Healthy, s.Attempt = messages.Pending, false, s.Attempt+1 })
	if w.core.st.Jobs["web"].Previous == nil {
		t.Fatal("the change is over before the manager is started again")
	}
	w.boot()
	for id := range w.nodes {
		w.connect(id)
	}
	w.settle()
	w.pass(time.Second)
	w.change("web.0.1", func(s *messages.InstanceStatus) { s.State, s.Healthy = messages.Running, true })
	w.pass(2 * time.Minute)
	w.done(r)
	if s := w.jobs["web"]; s.Reason != "" || s.Image != "better" {
		t.Errorf("got %s, %q", s.Image, s.Reason)
	}
}

// A replacement whose node comes back late has not failed because its node has said nothing of it yet.
func TestReplacementOnNodeThatComesBack(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(withPort(job("web", "good", 2), 8080), "a", "b"))
	r := w.accepted(deploy(withPort(job("web", "better", 2), 8080), "a", "b"))
	w.pass(500 * time.Millisecond)
	n := w.nodes["a"]
	w.disconnect("a")
	w.pass(10 * time.Minute)
	n.online, n.link = true, new(int)
	w.core.Presence("a", n.link, messages.Presence{Online: true, Epoch: n.epoch, Rev: n.rev, Digest: messages.Digest(slices.Collect(maps.Values(n.holds)))}, w.now)
	w.settle()
	w.report(n)
	w.pass(time.Minute)
	if s := w.jobs["web"]; s.Reason != "" || s.Image != "better" || s.State != messages.JobRunning {
		t.Errorf("got %s %s, %q", s.State, s.Image, s.Reason)
	}
	w.last(r)
}

// A command is not failed for what befalls a copy that was there before it, unless that lasts.
func TestOldCopyFallsDuringCommand(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.done(w.accepted(deploy(job("web", "good", 1))))
	w.pass(time.Hour)
	w.change("web.0.0", func(s *messages.InstanceStatus) { s.Healthy = false })
	r := w.accepted(replicate("web", 2))
	w.pass(time.Second)
	w.change("web.0.0", func(s *messages.InstanceStatus) { s.Healthy = true })
	w.pass(time.Second)
	w.done(r)
	w.change("web.0.0", func(s *messages.InstanceStatus) { s.State, s.Healthy, s.Attempt = messages.Pending, false, 9 })
	w.pass(time.Hour)
	r = w.accepted(replicate("web", 3))
	w.pass(4 * time.Minute)
	if last := w.last(r); last != nil {
		t.Errorf("got %+v before the copy has had its time", last)
	}
	w.pass(2 * time.Minute)
	w.failed(r, messages.Timeout)
}

// A copy that an earlier change has put there and that is sick by now is not the fault of a later change.
func TestSickCopyDoesNotRevertLaterChange(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.accepted(deploy(job("web", "good", 2), "a", "b"))
	w.accepted(deploy(job("web", "better", 2), "a", "b"))
	w.pass(time.Hour)
	w.change("web.0.1", func(s *messages.InstanceStatus) {
		s.Healthy, s.Attempt, s.State, s.Reason = false, 7, messages.Pending, "exited with code 1"
	})
	r := w.accepted(deploy(job("web", "better", 3), "a", "b", "c"))
	w.pass(time.Minute)
	if s := w.jobs["web"]; s.Replicas != 3 || s.Reason != "" {
		t.Errorf("the change was taken back: %d copies, %q", s.Replicas, s.Reason)
	}
	w.failed(r, messages.Exited) // it says of the sick copy that it is sick
	w.wantRunning("web", "web.0.1@a", "web.1.1@b", "web.2.0@c")
}

// A move that fails leaves the old copy where it is, and does not try again by other means.
func TestFailedMoveIsOver(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	old := fate["good"]
	defer func() { fate["good"] = old }()
	fate["good"] = messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageWrongArch, Reason: "the image is for another processor"}
	r := w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}, Worker: []messages.NodeID{"b"}})
	w.pass(time.Hour)
	w.failed(r, messages.ImageWrongArch)
	w.wantRunning("web", "web.0.0@a")
	if n := w.nodes["b"].started; n != 1 {
		t.Errorf("tried %d times", n)
	}
}

// A deploy says anew where a job may be, also for what was moved before.
func TestDeployAfterMoveTakesCopyBack(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}, Worker: []messages.NodeID{"b"}})
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@b")
	r := w.accepted(deploy(job("web", "good", 1), "a"))
	w.pass(time.Minute)
	w.done(r)
	w.wantRunning("web", "web.0.2@a")
}

// A node that is taken out of the worker list loses its copies, one after the other is up elsewhere.
func TestNodeTakenOutOfWorker(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 2), "a"))
	least := 2
	w.watch = func() { least = min(least, w.healthy("web")) }
	r := w.accepted(deploy(job("web", "good", 2), "b"))
	w.pass(time.Minute)
	w.done(r)
	w.wantRunning("web", "web.0.1@b", "web.1.1@b")
	if least < 2 {
		t.Errorf("healthy copies fell to %d", least)
	}
}

// So does one that new constraints rule out.
func TestConstraintsChanged(t *testing.T) {
	w := newWorld(t, "a")
	w.join("roof", func(i *messages.NodeInfo) { i.Labels = map[string]string{"site": "roof"} })
	w.accepted(deploy(job("web", "good", 1), "a", "roof"))
	j := job("web", "good", 1)
	j.Constraints.Labels = map[string]string{"site": "roof"}
	r := w.accepted(deploy(j, "a", "roof"))
	w.pass(time.Minute)
	w.done(r)
	w.wantRunning("web", "web.0.1@roof")
}

// What has done its work stays where it is.
func TestMoveOfFinishedBatch(t *testing.T) {
	w := newWorld(t, "a", "b")
	j := job("once", "done", 1)
	j.Mode = messages.Batch
	w.done(w.accepted(deploy(j, "a")))
	w.done(w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "once"}, From: []messages.NodeID{"a"}}))
	w.pass(time.Minute)
	w.wantRunning("once", "once.0.0@a")
}

// A move while the job changes places what the job is to be: there must be room for that.
func TestMoveDuringChange(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.done(w.accepted(deploy(job("web", "good", 2), "a", "b")))
	j := job("web", "better", 2)
	j.Resources.MemoryMB = 900
	w.core.Command(incoming(messages.Deploy, messages.Encode(deploy(j, "a", "b"))), w.now)
	w.settle()
	filler := job("filler", "good", 1)
	filler.Resources.MemoryMB = 500
	w.accepted(deploy(filler, "c"))
	r := w.send(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"b"}, Worker: []messages.NodeID{"c"}})
	if r.Phase != messages.Refused || r.Code != messages.NoCapacity {
		t.Errorf("got %s %s %s, want refused for want of memory", r.Phase, r.Code, r.Message)
	}
	if held := w.core.table.Reserved("c"); held.MemoryMB > 1000 {
		t.Errorf("c of 1000 MiB holds %+v", held)
	}
}

// A copy that was to go to a node goes there or nowhere.
func TestReplicateWaitsForNobody(t *testing.T) {
	w := newWorld(t, "a", "b")
	big := job("big", "good", 1)
	big.Resources.MemoryMB = 900
	w.done(w.accepted(deploy(big, "b")))
	w.mute("b")
	w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "big"}})
	j := job("web", "good", 1)
	j.Resources.MemoryMB = 200
	w.done(w.accepted(deploy(j)))
	if r := w.send(replicate("web", 2, "b")); r.Phase != messages.Refused || r.Code != messages.NoCapacity {
		t.Errorf("got %s %s, want refused while b is full", r.Phase, r.Code)
	}
	w.wantRunning("web", "web.0.0@a")
}

// Copies on a node are deleted, and none elsewhere with them.
func TestDeleteOnNodeDuringMove(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.done(w.accepted(deploy(job("web", "good", 1), "a")))
	w.core.Command(incoming(messages.Move, messages.Encode(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"},
		Worker: []messages.NodeID{"b"}, RequestID: "m"})), w.now)
	w.settle()
	r := w.send(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"a"}})
	if r.Phase != messages.Refused || r.Code != messages.Unavailable {
		t.Errorf("got %s %s, want refused", r.Phase, r.Code)
	}
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@b")
}

// mute makes a node deaf: it is connected, but does nothing that it is told.
func (w *world) mute(id messages.NodeID) { w.nodes[id].epoch = 1 << 60 }

// A node that never says that an instance has stopped does not keep a command waiting for ever.
func TestStopIsNeverAnswered(t *testing.T) {
	for name, cmd := range map[string]messages.Command{
		"delete":         {Command: messages.Delete, Job: messages.Job{Name: "web"}},
		"delete on node": {Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"a"}},
		"replicate":      replicate("web", 0),
		"move":           {Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.accepted(deploy(job("web", "good", 1)))
			w.mute("a")
			r := w.accepted(cmd)
			w.pass(time.Hour)
			w.failed(r, messages.Timeout)
			if !strings.Contains(w.last(r).Message, "web.0.0 on a") {
				t.Errorf("message %q does not name the instance", w.last(r).Message)
			}
		})
	}
}

// What was deleted or added while a change rolls stays so when the change is taken back.
func TestCountsOutliveRevert(t *testing.T) {
	for name, c := range map[string]struct {
		cmd  messages.Command
		want int
	}{
		"delete on a node": {messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"b"}}, 1},
		"replicate up":     {replicate("web", 4), 4},
		"replicate down":   {replicate("web", 1), 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			w.accepted(deploy(job("web", "good", 2), "a", "b", "c"))
			w.accepted(deploy(job("web", "slow", 2), "a", "b", "c"))
			w.pass(time.Minute)
			r := w.accepted(c.cmd)
			w.pass(time.Hour)
			if s := w.jobs["web"]; s.Replicas != c.want || s.Spec.Image != "good" || s.State != messages.JobRunning || s.Healthy != c.want {
				t.Errorf("got %d copies of %s, %s with %d healthy; want %d of good", s.Replicas, s.Spec.Image, s.State, s.Healthy, c.want)
			}
			if w.last(r) == nil {
				t.Error("no last Result")
			}
		})
	}
}
