package dispatch

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

func TestDeploySpreads(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	r := w.accepted(deploy(job("web", "good", 2)))
	w.done(r)
	w.wantRunning("web", "web.0.0@a", "web.1.0@b")
	if s := w.jobs["web"]; s.State != messages.JobRunning || s.Healthy != 2 || s.Replicas != 2 {
		t.Errorf("status: %+v", s)
	}
}

func TestEqualDeployChangesNothing(t *testing.T) {
	w := newWorld(t, "a", "b")
	first := w.accepted(deploy(job("web", "good", 2)))
	again := w.accepted(deploy(job("web", "good", 2)))
	w.done(again)
	if again.Rev != first.Rev || w.nodes["a"].started+w.nodes["b"].started != 2 {
		t.Errorf("rev %d then %d, started %d and %d", first.Rev, again.Rev, w.nodes["a"].started, w.nodes["b"].started)
	}
}

func TestDeleteThenDeploy(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 2)))
	r := w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.done(r)
	w.wantRunning("web")
	if s, there := w.jobs["web"]; !there || s != nil {
		t.Errorf("retained status of a deleted job: %+v", s)
	}
	w.done(w.accepted(deploy(job("web", "good", 1))))
	if n := w.running("web"); len(n) != 1 {
		t.Errorf("running: %v", n)
	}
}

// A delete of a job is taken back by a deploy that comes before its instances have gone.
func TestDeployWhileDeleting(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	w.disconnect("a")
	del := w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.join("b", nil)
	r := w.accepted(deploy(job("web", "good", 1)))
	w.failed(del, messages.Superseded)
	w.done2(r, func() { w.connect("a"); w.settle() })
	w.wantRunning("web", "web.0.1@b")
}

// done2 checks that a command is done after f only.
func (w *world) done2(r messages.Result, f func()) {
	w.t.Helper()
	if last := w.last(r); last != nil {
		w.t.Fatalf("too early: %+v", last)
	}
	f()
	w.done(r)
}

func TestChangeReplacesOneAtATime(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.accepted(deploy(job("web", "good", 3)))
	least, most := 3, 3
	w.watch = func() { least, most = min(least, w.healthy("web")), max(most, w.healthy("web")) }
	r := w.accepted(deploy(job("web", "better", 3)))
	w.pass(time.Minute)
	w.done(r)
	if least != 3 || most != 4 {
		t.Errorf("healthy copies during the change: %d to %d, want 3 to 4", least, most)
	}
	for _, i := range w.running("web") {
		if !strings.Contains(i, ".1@") {
			t.Errorf("not replaced: %s", i)
		}
	}
	if s := w.jobs["web"]; s.State != messages.JobRunning {
		t.Errorf("state %s", s.State)
	}
}

func TestBadChangeGoesBack(t *testing.T) {
	for image, code := range map[string]messages.Code{"sick": messages.Unhealthy, "missing": messages.ImageNotFound, "crashes": messages.Exited, "slow": messages.Timeout} {
		t.Run(image, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.accepted(deploy(job("web", "good", 2)))
			least := 2
			w.watch = func() { least = min(least, w.healthy("web")) }
			r := w.accepted(deploy(job("web", image, 3)))
			w.pass(6 * time.Minute)
			w.failed(r, code)
			w.wantRunning("web", "web.0.0@a", "web.1.0@b")
			if s := w.jobs["web"]; s.Spec.Image != "good" || s.State != messages.JobRunning || s.Reason == "" || s.Replicas != 2 || least != 2 {
				t.Errorf("status %+v, least healthy %d", s, least)
			}
		})
	}
}

func withPort(j messages.Job, host int) messages.Job {
	j.Ports = []messages.Port{{Host: host, Container: 80}}
	return j
}

// On a node that cannot hold both, the old copy goes first; where the new one is bad, the old one comes back.
func TestChangeWithHostPort(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(withPort(job("web", "good", 1), 8080)))
	r := w.accepted(deploy(withPort(job("web", "better", 1), 8080)))
	w.pass(time.Minute)
	w.done(r)
	w.wantRunning("web", "web.0.1@a")
	r = w.accepted(deploy(withPort(job("web", "missing", 1), 8080)))
	w.pass(time.Minute)
	w.failed(r, messages.ImageNotFound)
	w.wantRunning("web", "web.0.3@a")
	if s := w.jobs["web"]; s.Spec.Image != "better" || s.State != messages.JobRunning {
		t.Errorf("status %+v", s)
	}
}

func TestChangeDuringChange(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 2)))
	first := w.accepted(deploy(job("web", "slow", 2)))
	second := w.accepted(deploy(job("web", "better", 2)))
	w.failed(first, messages.Superseded)
	w.pass(time.Minute)
	w.done(second)
	if n := w.running("web"); len(n) != 2 || w.healthy("web") != 2 {
		t.Errorf("running %v", n)
	}
}

func TestMove(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	least := 1
	w.watch = func() { least = min(least, w.healthy("web")) }
	r := w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}, Worker: []messages.NodeID{"b"}})
	w.pass(10 * time.Second)
	w.done(r)
	w.wantRunning("web", "web.0.1@b")
	if least != 1 {
		t.Errorf("healthy copies during the move fell to %d", least)
	}
	if s := w.jobs["web"]; !slices.Equal(s.Worker, []messages.NodeID{"b"}) {
		t.Errorf("worker after the move: %v", s.Worker)
	}
	again := w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}, Worker: []messages.NodeID{"b"}})
	w.done(again) // a repeat changes nothing
	w.wantRunning("web", "web.0.1@b")
}

func TestMoveThatFailsLeavesTheOld(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	old := fate["good"]
	defer func() { fate["good"] = old }()
	fate["good"] = messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageWrongArch, Reason: "the image is for another processor"}
	r := w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"b"}})
	w.pass(time.Minute)
	w.failed(r, messages.ImageWrongArch)
	w.wantRunning("web", "web.0.0@a")
	if last := w.last(r); !strings.Contains(last.Message, "another processor") {
		t.Errorf("message %q does not say why", last.Message)
	}
}

func TestReplicateIsAbsolute(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1)))
	five := 5
	cmd := messages.Command{Command: messages.Replicate, Job: messages.Job{Name: "web", Replicas: &five}}
	w.done(w.accepted(cmd))
	w.done(w.accepted(cmd))
	if n := w.running("web"); len(n) != 5 {
		t.Errorf("running %v", n)
	}
	one := 1
	cmd.Job.Replicas, cmd.RequestID = &one, ""
	w.done(w.accepted(cmd))
	w.wantRunning("web", "web.0.0@a")
	zero := 0
	cmd.Job.Replicas, cmd.RequestID = &zero, ""
	w.done(w.accepted(cmd))
	w.wantRunning("web")
}

func TestReplicateOnNodes(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.accepted(deploy(job("web", "good", 1), "a"))
	three := 3
	w.done(w.accepted(messages.Command{Command: messages.Replicate, Job: messages.Job{Name: "web", Replicas: &three}, Worker: []messages.NodeID{"c"}}))
	w.wantRunning("web", "web.0.0@a", "web.1.0@c", "web.2.0@c")
}

func TestDeleteOnNodes(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 4)))
	r := w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{"a"}})
	w.done(r)
	w.wantRunning("web", "web.1.0@b", "web.3.0@b")
	if s := w.jobs["web"]; s.Replicas != 2 || s.State != messages.JobRunning {
		t.Errorf("status %+v", s)
	}
}

// A node that is away for less than lost_after changes nothing; one that is away for longer is replaced, and on its return one copy
// is left, by on_return.
func TestLostNode(t *testing.T) {
	for _, on := range []messages.OnReturn{messages.KeepNewest, messages.KeepOriginal} {
		t.Run(string(on), func(t *testing.T) {
			w := newWorld(t, "a", "b")
			j := job("web", "good", 1)
			j.OnReturn = on
			w.accepted(deploy(j, "a", "b"))
			w.disconnect("a")
			w.pass(29 * time.Second)
			w.connect("a")
			w.settle()
			w.pass(time.Hour)
			w.wantRunning("web", "web.0.0@a")
			w.disconnect("a")
			w.pass(31 * time.Second)
			w.wantRunning("web", "web.0.0@a", "web.0.1@b") // a does not know
			w.pass(time.Minute)
			w.connect("a")
			w.pass(time.Minute)
			want := "web.0.1@b"
			if on == messages.KeepOriginal {
				want = "web.0.0@a"
			}
			w.wantRunning("web", want)
			if s := w.jobs["web"]; s.State != messages.JobRunning || len(s.Instances) != 1 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// Where nobody can stand in, the job waits and says why; the instance goes on when its node returns.
func TestLostNodeWithoutStandIn(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	w.disconnect("a")
	w.pass(time.Minute)
	s := w.jobs["web"]
	if s.State != messages.JobDegraded || len(s.Waiting) != 1 || s.Instances[0].State != messages.Lost {
		t.Fatalf("status %+v", s)
	}
	w.connect("a")
	w.settle()
	w.wantRunning("web", "web.0.0@a")
	if s := w.jobs["web"]; s.State != messages.JobRunning || len(s.Waiting) != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestDeleteWithLostNode(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	w.disconnect("a")
	r := w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.pass(31 * time.Second)
	w.done(r)
	w.connect("a")
	w.settle()
	w.wantRunning("web")
}

func TestManagerCrash(t *testing.T) {
	w := newWorld(t, "a", "b")
	r := w.accepted(deploy(job("web", "good", 2)))
	before := w.running("web")
	w.boot()
	for id := range w.nodes {
		w.connect(id)
	}
	w.pass(5 * time.Minute)
	if got := w.running("web"); !slices.Equal(got, before) || w.nodes["a"].started+w.nodes["b"].started != 2 {
		t.Errorf("after the crash: %v, before: %v", got, before)
	}
	if s := w.jobs["web"]; s.State != messages.JobRunning {
		t.Errorf("state %s", s.State)
	}
	// The request is still known: it is answered, and nothing is done again. Another command with its id is refused, not lost.
	w.accepted(deploy(job("web", "better", 2)))
	again := w.sendRaw(messages.Deploy, messages.Encode(withRequest(deploy(job("web", "good", 2)), r.RequestID)))
	if again.Phase != messages.Accepted || again.Rev != r.Rev || w.jobs["web"].Spec.Image != "better" {
		t.Errorf("repeated request: %+v", again)
	}
	other := w.sendRaw(messages.Deploy, messages.Encode(withRequest(deploy(job("web", "best", 2)), r.RequestID)))
	if other.Code != messages.BadPayload || !strings.Contains(other.Message, "another command's 5m0s ago") || w.jobs["web"].Spec.Image != "better" {
		t.Errorf("another command with a known id: %+v", other)
	}
	w.pass(6 * time.Minute)
	w.sendRaw(messages.Deploy, messages.Encode(withRequest(deploy(job("web", "best", 2)), r.RequestID)))
	if w.jobs["web"].Spec.Image != "best" {
		t.Error("request is still remembered after eleven minutes")
	}
}

// A manager that lost its disk is listened to by nodes that know a later rev than it.
func TestManagerLostItsMemory(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	a := w.nodes["a"]
	w.store = new(store.Memory)
	w.boot()
	welcome, err := w.core.Register(messages.NodeInfo{Name: "a", Key: "key of a", Epoch: a.epoch, CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}, false, w.now)
	if err != nil || welcome.Epoch <= a.epoch {
		t.Fatalf("epoch %d after %d: %v", welcome.Epoch, a.epoch, err)
	}
	w.connect("a")
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.0@a")
	if s := w.jobs["web"]; s.State != messages.JobHeld || s.Reason == "" || s.Running != 1 {
		t.Errorf("status: %+v", s)
	}
	w.done(w.accepted(deploy(job("new", "good", 1))))
	w.wantRunning("new", "new.0.0@a")
	if a.started != 2 {
		t.Errorf("%d starts, want 2: what was found is not started again", a.started)
	}
}

func TestLateStatusIsIgnored(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	now := w.nodes["a"].status["web.0.0"]
	late := now
	late.State, late.Healthy, late.Seq = messages.Starting, false, now.Seq-1
	w.core.Status("a", late, w.now)
	late.Seq = now.Seq
	w.core.Status("a", late, w.now)
	w.settle()
	if s := w.jobs["web"]; s.State != messages.JobRunning {
		t.Errorf("a late status took the state back to %s", s.State)
	}
}

// An instance that a node holds but is not to hold is stopped.
func TestStrayInstance(t *testing.T) {
	w := newWorld(t, "a", "b")
	last := w.accepted(deploy(job("web", "good", 1)))
	spec := job("ghost", "good", 1).WithDefaults().Spec
	for _, rev := range []uint64{last.Rev, w.core.State().Rev} {
		w.obey(w.nodes["a"], messages.Assignment{Instance: "ghost.0.0", Rev: rev, Epoch: 1, Run: true, Spec: &spec}, true)
		w.settle()
		w.wantRunning("ghost")
	}
}

func TestBatch(t *testing.T) {
	w := newWorld(t, "a", "b")
	j := job("once", "done", 1)
	j.Mode = messages.Batch
	w.done(w.accepted(deploy(j)))
	if s := w.jobs["once"]; s.State != messages.JobDone {
		t.Errorf("state %s", s.State)
	}
	w.disconnect("a")
	w.pass(time.Hour)
	if n := len(w.running("once")); n != 1 {
		t.Errorf("a finished instance was started again: %v", w.running("once"))
	}
}

// An equal deploy gives a copy that was given up another life.
func TestDeployAgainAfterFailure(t *testing.T) {
	w := newWorld(t, "a")
	r := w.accepted(deploy(job("web", "missing", 1)))
	w.failed(r, messages.ImageNotFound)
	old := fate["missing"]
	defer func() { fate["missing"] = old }()
	fate["missing"] = fate["good"]
	w.done(w.accepted(deploy(job("web", "missing", 1))))
	w.wantRunning("web", "web.0.1@a")
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, "a")
	w.join("pi", func(i *messages.NodeInfo) {
		i.Arch, i.Labels, i.Technologies = "arm-7", map[string]string{"site": "roof"}, nil
	})
	w.accepted(deploy(withPort(job("web", "good", 1), 8080), "a"))
	big := job("big", "good", 1)
	big.Resources.MemoryMB = 2000
	gpu := job("gpu", "good", 1)
	gpu.Resources.GPUs = 1
	uni := job("uni", "good", 1)
	uni.Technology = "unikernel"
	labels := job("labels", "good", 1)
	labels.Constraints.Labels = map[string]string{"site": "cellar"}
	three := 3
	for name, c := range map[string]struct {
		cmd  messages.Command
		code messages.Code
		says string // of the first node that has the code
	}{
		"memory":        {deploy(big), messages.NoCapacity, "1000 of 1000 MiB memory free, 2000 asked for"},
		"gpu":           {deploy(gpu), messages.NoCapacity, "0 of 0 gpus free"},
		"technology":    {deploy(uni), messages.NoTechnology, "does not run unikernel"},
		"labels":        {deploy(labels), messages.NoNodeMatches, "has no label site"},
		"port":          {deploy(withPort(job("other", "good", 1), 8080)), messages.PortInUse, "reserved for web.0.0"},
		"worker":        {deploy(job("x", "good", 1), "nobody"), messages.UnknownNode, "ever registered"},
		"job":           {messages.Command{Command: messages.Move, Job: messages.Job{Name: "nojob"}, From: []messages.NodeID{"a"}}, messages.UnknownJob, ""},
		"delete":        {messages.Command{Command: messages.Delete, Job: messages.Job{Name: "nojob"}}, messages.UnknownJob, ""},
		"move nowhere":  {messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}}, messages.NoNodeMatches, "is one of the nodes to leave"},
		"too many":      {messages.Command{Command: messages.Replicate, Job: messages.Job{Name: "web", Replicas: &three}}, messages.PortInUse, "reserved"},
		"other cluster": {messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Cluster: []string{"elsewhere"}}, messages.WrongCluster, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.send(c.cmd)
			if r.Phase != messages.Refused || r.Code != c.code || r.Message == "" {
				t.Fatalf("got %s %s %q, want refused %s", r.Phase, r.Code, r.Message, c.code)
			}
			at := slices.IndexFunc(r.Nodes, func(p messages.Passed) bool { return p.Code == c.code })
			if c.says != "" && (at < 0 || !strings.Contains(r.Nodes[at].Reason, c.says)) {
				t.Errorf("nodes %+v do not say %q", r.Nodes, c.says)
			}
		})
	}
	w.wantRunning("web", "web.0.0@a") // nothing was half done
}

func TestBadPayload(t *testing.T) {
	w := newWorld(t)
	for payload, request := range map[string]string{
		`{"command":"deploy","request_id":"r1","job":{"name":"web"}}`: "r1", // no image
		`{"command":"delete","request_id":"r2","job":{"name":"web"}}`: "r2", // on control/deploy
		`{"command":7,"request_id":"r3"}`:                             "r3",
	} {
		if r := w.sendRaw(messages.Deploy, []byte(payload)); r.Phase != messages.Refused || r.Code != messages.BadPayload || r.RequestID != request {
			t.Errorf("%s: got %+v", payload, r)
		}
	}
	before := len(w.results)
	for _, payload := range []string{"", "{", "[]", "null", "\xff", `{"request_id":"a/b"}`, strings.Repeat("[", 100_000)} {
		w.core.Command(incoming(messages.Deploy, []byte(payload)), w.now)
	}
	w.settle()
	if len(w.results) != before {
		t.Errorf("answered to nobody: %+v", w.results[before:])
	}
}

func TestNotAllowed(t *testing.T) {
	w := newWorld(t, "a")
	cmd := deploy(job("web", "good", 1))
	cmd.RequestID = "r1"
	if w.core.Command(Incoming{Command: cmd}, w.now) {
		t.Error("allowed")
	}
	w.settle()
	if len(w.results) != 1 || w.results[0].Code != messages.NotAllowed {
		t.Errorf("results %+v", w.results)
	}
	w.wantRunning("web")
}

func TestNames(t *testing.T) {
	w := newWorld(t, "a")
	other := messages.NodeInfo{Name: "a", Key: "another key"}
	_, err := w.core.Register(other, false, w.now)
	if r, ok := errors.AsType[*messages.Refusal](err); !ok || r.Code != messages.RefusedName || r.Hint == "" {
		t.Errorf("name of another: %v", err)
	}
	back, err := w.core.Register(messages.NodeInfo{Name: "renamed", Key: "key of a"}, true, w.now)
	if err != nil || back.ID != "a" {
		t.Errorf("known key under another name: %v %v, want its old name", back.ID, err)
	}
	_, err = w.core.Register(messages.NodeInfo{Name: "a", Key: "key of a"}, false, w.now)
	if r, ok := errors.AsType[*messages.Refusal](err); !ok || r.Code != messages.RefusedProof {
		t.Errorf("without the proof that it gave before: %v", err)
	}
	if !w.core.Admits("a", []byte(back.Password)) || w.core.Admits("a", []byte("x")) || w.core.Admits("nobody", nil) {
		t.Error("passwords are not checked")
	}
}

// The presence of an old connection says nothing about the new one.
func TestOldConnectionEndsLate(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	old := w.nodes["a"].link
	w.connect("a")
	w.core.Presence("a", old, messages.Presence{}, w.now) // its last will
	w.core.Disconnected("a", old, w.now)
	w.pass(time.Hour)
	if !w.core.State().Nodes["a"].Online {
		t.Error("the end of an old connection took the node offline")
	}
}

// A copy that was put there by a change and has become unhealthy since does not keep the next change from replacing it.
func TestChangeOfSickCopies(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 2)))
	w.accepted(deploy(job("web", "better", 2)))
	w.pass(time.Minute)
	for _, id := range []messages.InstanceID{"web.0.1", "web.1.1"} {
		w.change(id, func(s *messages.InstanceStatus) { s.Healthy, s.Reason = false, "http: 500" })
	}
	r := w.accepted(deploy(job("web", "good", 2)))
	w.pass(time.Minute)
	w.done(r)
	w.wantRunning("web", "web.0.2@a", "web.1.2@b")
}
