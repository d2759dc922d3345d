package dispatch

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// forget takes the manager's disk away and starts it over an empty one: every node registers anew.
func (w *world) forget() {
	w.t.Helper()
	w.store = new(store.Memory)
	w.jobs = map[messages.JobName]*messages.JobStatus{}
	w.boot()
}

// comeBack registers and connects a node that has been told something before.
func (w *world) comeBack(id messages.NodeID) {
	w.t.Helper()
	info := messages.NodeInfo{Name: id, Key: "key of " + string(id), Epoch: w.nodes[id].epoch, Arch: "amd64", CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}
	if _, err := w.core.Register(info, false, w.now); err != nil {
		w.t.Fatal(err)
	}
	w.connect(id)
	w.settle()
}

// starts counts what the nodes have started so far.
func (w *world) starts() int {
	n := 0
	for _, b := range w.nodes {
		n += b.started
	}
	return n
}

// What nodes run while their manager has lost everything runs on, however they come back and whatever fails meanwhile; the first command
// for a job makes it an ordinary one.
func TestFoundJobIsHeld(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.done(w.accepted(deploy(job("web", "good", 3))))
	w.forget()
	w.comeBack("a")
	w.comeBack("b")
	w.pass(10 * time.Minute)
	w.wantRunning("web", "web.0.0@a", "web.1.0@b", "web.2.0@c")
	w.disconnect("b") // lost: nobody has said yet that it is to be replaced
	w.pass(10 * time.Minute)
	if got := w.jobs["web"].Instances; len(got) != 2 || got[1].State != messages.Lost {
		t.Errorf("its node is lost: got %+v", got)
	}
	w.comeBack("c")
	if got := w.jobs["web"]; got.State != messages.JobHeld || got.Replicas != 3 {
		t.Errorf("%s of %d, want held of 3", got.State, got.Replicas)
	}
	if n := w.starts(); n != 3 {
		t.Errorf("%d starts, want 3", n)
	}
	r := w.accepted(deploy(job("web", "good", 3)))
	w.pass(time.Minute)
	w.done(r)
	if got := w.jobs["web"]; got.State != messages.JobRunning || got.Reason != "" {
		t.Errorf("%s %q, want running", got.State, got.Reason)
	}
	if n := w.starts(); n != 4 {
		t.Errorf("%d starts, want 4: the lost copy is replaced, the others stay", n)
	}
	w.connect("b") // and the one that comes back late is stopped, as ever
	w.pass(time.Minute)
	if got := w.running("web"); len(got) != 3 {
		t.Errorf("running: %v", got)
	}
}

// Each verb ends that a job is held.
func TestCommandsForHeldJobs(t *testing.T) {
	for _, c := range []struct {
		cmd  messages.Command
		want int
	}{
		{messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}}, 0},
		{messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"a"}}, 1},
		{messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}}, 2},
		{messages.Command{Command: messages.Replicate, Job: job("web", "", 2)}, 2},
		{messages.Command{Command: messages.Replicate, Job: job("web", "", 3)}, 3},
		{deploy(job("web", "better", 2)), 2},
	} {
		w := newWorld(t, "a", "b", "c")
		w.done(w.accepted(deploy(job("web", "good", 2))))
		w.forget()
		for _, id := range []messages.NodeID{"a", "b", "c"} {
			w.comeBack(id)
		}
		w.pass(time.Minute)
		r := w.accepted(c.cmd)
		w.pass(time.Minute)
		w.done(r)
		if got := w.running("web"); len(got) != c.want {
			t.Errorf("%s: running %v, want %d", c.cmd.Command, got, c.want)
		}
		if s := w.jobs["web"]; s != nil && s.State != messages.JobRunning {
			t.Errorf("%s: %s", c.cmd.Command, s.State)
		}
	}
}

// A node that does not say what it holds is told to stop nothing.
func TestSilentNodeIsLeftAlone(t *testing.T) {
	w := newWorld(t, "a")
	w.done(w.accepted(deploy(job("web", "good", 2))))
	w.forget()
	w.silent = true
	w.comeBack("a")
	w.pass(time.Hour)
	w.wantRunning("web", "web.0.0@a", "web.1.0@a")
	w.done(w.accepted(deploy(job("new", "good", 1))))
	w.silent = false
	w.connect("a")
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.0@a", "web.1.0@a")
	w.wantRunning("new", "new.0.0@a")
}

// What the manager has given out itself and ended stays ended: also after the job, and its node, are forgotten.
func TestEndedInstanceIsNotFound(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	w.accepted(deploy(job("old", "good", 1), "a"))
	w.disconnect("a")
	w.pass(time.Minute)
	w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "old"}})
	w.accepted(messages.Command{Command: messages.Replicate, Job: job("web", "", 0)})
	w.pass(time.Minute)
	w.core.NodeCommand(IncomingNode{MayCommand: true, Command: messages.NodeCommand{Command: messages.Remove, Node: "a"}}, w.now)
	w.settle()
	w.boot()
	w.connect("b")
	w.comeBack("a")
	w.pass(time.Minute)
	w.wantRunning("old")
	w.wantRunning("web")
	w.done(w.accepted(deploy(job("old", "good", 1), "b")))
	w.wantRunning("old", "old.0.1@b")
}

// What a node makes up does no harm to others: a job that is only said to be there is started nowhere, and never reverted to.
func TestInventedInstances(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.done(w.accepted(deploy(job("web", "good", 1), "b")))
	evil := messages.Spec{Image: "sick", Technology: messages.Docker}
	hold := func(id messages.InstanceID, rev uint64) messages.Assignment {
		return messages.Assignment{Instance: id, Rev: rev, Epoch: 9, Run: true, Spec: &evil}
	}
	w.core.Presence("a", w.nodes["a"].link, messages.Presence{Online: true, Epoch: 9, Rev: 1 << 60, Digest: "made up"}, w.now)
	w.core.Inventory("a", messages.Inventory{Assignments: []messages.Assignment{hold("web.0.7", 1<<60), hold("mine.0.0", 1<<60)}}, w.now)
	w.core.Inventory("a", messages.Inventory{N: 1, Last: true, Assignments: []messages.Assignment{hold("mine.1.0", 5)}}, w.now)
	w.pass(time.Hour)
	w.wantRunning("web", "web.0.0@b")
	if s := w.jobs["mine"]; s.State != messages.JobHeld || s.Replicas != 2 {
		t.Errorf("got %+v", s)
	}
	r := w.accepted(deploy(job("mine", "missing", 1), "b"))
	w.pass(time.Hour)
	w.failed(r, messages.ImageNotFound)
	if s := w.jobs["mine"]; s.Image != "missing" {
		t.Errorf("went back to %s", s.Image)
	}
}

// What a node shows of a job that another one has shown before does not change what the job is.
func TestHeldJobIsNotChangedFromElsewhere(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.done(w.accepted(deploy(job("web", "good", 1), "a")))
	w.forget()
	w.comeBack("a")
	w.silent = true
	w.comeBack("b")
	evil := messages.Spec{Image: "sick", Technology: messages.Docker}
	w.core.Presence("b", w.nodes["b"].link, messages.Presence{Online: true, Epoch: 9, Rev: 1 << 60, Digest: "made up"}, w.now)
	w.core.Inventory("b", messages.Inventory{Last: true, Assignments: []messages.Assignment{{Instance: "web.1.0", Rev: 1 << 60, Epoch: 9, Run: true, Spec: &evil}}}, w.now)
	w.pass(time.Minute)
	if s := w.jobs["web"]; s.State != messages.JobHeld || s.Replicas != 2 || s.Image != "good" {
		t.Errorf("got %s of %d, image %s", s.State, s.Replicas, s.Image)
	}
}

// What one node says takes bounded room, however often it says something else.
func TestInventoryIsBounded(t *testing.T) {
	w := newWorld(t, "a")
	w.silent = true
	epoch := uint64(9)
	say := func(pieces ...messages.Inventory) int {
		t.Helper()
		epoch++ // it has heard of another manager
		w.core.Presence("a", w.nodes["a"].link, messages.Presence{Online: true, Epoch: epoch, Digest: "made up"}, w.now)
		for _, p := range pieces {
			w.core.Inventory("a", p, w.now)
		}
		w.core.TakeMessages()
		return len(w.core.State().Jobs)
	}
	piece := func(n int, last bool, name string, count, size int) messages.Inventory {
		p := messages.Inventory{N: n, Last: last}
		spec := &messages.Spec{Image: "good", Technology: messages.Docker, Environment: map[string]string{"LARGE": strings.Repeat("x", size)}}
		for i := range count {
			p.Assignments = append(p.Assignments, messages.Assignment{Instance: messages.NewInstanceID(messages.JobName(fmt.Sprint(name, i)), 0, 0), Rev: 5, Epoch: 9, Run: true, Spec: spec})
		}
		return p
	}
	if n := say(piece(0, false, "a", 1, 0), piece(2, true, "b", 1, 0)); n != 0 {
		t.Errorf("a piece was missing: %d jobs were found", n)
	}
	if n := say(piece(0, false, "a", 1, 0), piece(1, false, "b", 1, 0), piece(1, true, "c", 1, 0)); n != 0 {
		t.Errorf("a piece came twice: %d jobs were found", n)
	}
	if n := say(piece(0, true, "a", maxFound+1, 0)); n != 0 {
		t.Errorf("too many: %d jobs were found", n)
	}
	var large []messages.Inventory
	for i := range 40 {
		large = append(large, piece(i, i == 39, fmt.Sprint("large", i, "x"), 1, 500_000))
	}
	if n := say(large...); n != 0 {
		t.Errorf("too large: %d jobs were found", n)
	}
	if n := say(piece(0, false, "a", 400, 0), piece(1, true, "b", 400, 0)); n != 800 {
		t.Errorf("%d jobs were found, want all 800", n)
	}
	if n := say(piece(0, true, "c", 400, 0)); n != 800 {
		t.Errorf("said bit by bit: %d jobs were found", n)
	}
	if n := say(piece(0, false, "a", 400, 0), piece(1, true, "b", 400, 0)); n != 800 || !w.core.State().Nodes["a"].Agreed {
		t.Errorf("repeated: %d jobs, want the same 800 and to agree", n)
	}
}

// Pieces that make no sense leave a node as it is.
func TestTornInventory(t *testing.T) {
	w := newWorld(t, "a")
	w.done(w.accepted(deploy(job("web", "good", 1))))
	w.forget()
	w.silent = true
	w.comeBack("a")
	w.core.Inventory("a", messages.Inventory{N: 3, Last: true}, w.now)
	w.core.Inventory("nobody", messages.Inventory{Last: true}, w.now)
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.0@a")
}

// The name of an instance is used once, also by jobs of one name after another, and by a manager that was started anew meanwhile.
func TestNamesOfDeletedJobs(t *testing.T) {
	w := newWorld(t, "a")
	for i := range 3 {
		w.done(w.accepted(deploy(job("web", "good", 1))))
		w.wantRunning("web", fmt.Sprintf("web.0.%d@a", i))
		w.done(w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}}))
		w.boot()
		w.connect("a")
		w.settle()
	}
}
