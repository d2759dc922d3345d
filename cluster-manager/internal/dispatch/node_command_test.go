package dispatch

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// sendNode gives a command about a node and returns its first Result.
func (w *world) sendNode(verb messages.Verb, id messages.NodeID) messages.Result {
	w.t.Helper()
	w.next++
	return w.sendNodeRaw(verb, messages.Encode(messages.NodeCommand{Command: verb, Node: id, RequestID: fmt.Sprintf("n%d", w.next)}))
}

func (w *world) sendNodeRaw(verb messages.Verb, payload []byte) messages.Result {
	w.t.Helper()
	in := incomingNode(verb, payload)
	return w.first(in.Command.RequestID, func() { w.core.NodeCommand(in, w.now) })
}

// incomingNode is a command of an operator.
func incomingNode(verb messages.Verb, payload []byte) IncomingNode {
	in := IncomingNode{MayCommand: true}
	in.Command, in.Bad = messages.DecodeNodeCommand(payload, verb)
	return in
}

// rejoin registers and connects a board under a name: the one that had it, or another one that holds nothing.
func (w *world) rejoin(id messages.NodeID, another bool) {
	w.t.Helper()
	old := w.nodes[id]
	w.join(id, func(i *messages.NodeInfo) {
		if another {
			w.next++
			i.Key = fmt.Sprintf("key %d of %s", w.next, id)
			return
		}
		i.Epoch = old.epoch
	})
	if another {
		return
	}
	w.disconnect(id)
	w.nodes[id] = old
	w.connect(id)
	w.settle()
}

// nodeStatus returns the retained status of a node, nil for none.
func (w *world) nodeStatus(id messages.NodeID) *messages.NodeStatus {
	w.t.Helper()
	payload, ok := w.kept[messages.Topic{Kind: messages.NodeStatusTopic, Node: id}.String()]
	if !ok {
		return nil
	}
	s := decode[messages.NodeStatus](w.t, payload)
	return &s
}

func (w *world) wantNode(id messages.NodeID, want messages.NodeState) {
	w.t.Helper()
	if s := w.nodeStatus(id); s == nil || s.State != want {
		w.t.Fatalf("%s: got %+v, want %s", id, s, want)
	}
}

// register tries to register a board with a key.
func (w *world) register(id messages.NodeID, key string) (messages.Welcome, error) {
	return w.core.Register(messages.NodeInfo{Name: id, Key: key, Arch: "amd64", CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}, false, w.now)
}

func TestReplace(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 2)))
	w.wantRunning("web", "web.0.0@a", "web.1.0@b")
	welcome, err := w.register("a", "key of a")
	if err != nil || !w.core.Admits("a", []byte(welcome.Password)) {
		t.Fatal("the old board is not admitted before", err)
	}
	if _, err := w.register("a", "another key"); err == nil || !strings.Contains(err.Error(), "skerry node replace a") {
		t.Fatalf("got %v, want a hint", err)
	}
	old := w.nodes["a"]

	first := w.sendNode(messages.Replace, "a")
	if first.Phase != messages.Accepted || first.Node != "a" || first.Command != messages.Replace || first.Rev == 0 || first.Job != "" {
		t.Fatalf("got %+v", first)
	}
	w.done(first)
	w.wantNode("a", messages.NodeExpected)
	if w.core.Admits("a", []byte(welcome.Password)) || old.online {
		t.Error("the old board may still connect, or still is")
	}
	// What was under way from the old board changes nothing.
	w.core.Presence("a", old.link, messages.Presence{Online: true, Epoch: old.epoch}, w.now)
	w.core.Status("a", messages.InstanceStatus{Instance: "web.0.0", Job: "web", Seq: 99, Rev: 99, State: messages.FailedState}, w.now)
	w.settle()
	w.wantNode("a", messages.NodeExpected)
	w.pass(10 * time.Second)
	w.wantRunning("web", "web.0.0@a", "web.1.0@b") // on a board that nobody hears

	w.rejoin("a", true)
	w.wantNode("a", messages.NodeOnline)
	w.wantRunning("web", "web.0.0@a", "web.1.0@b")
	if n := w.nodes["a"]; n == old || n.started != 1 || n.epoch != welcome.Epoch+1 {
		t.Errorf("got %+v, want the instance started on the new board and an epoch above %d", n, welcome.Epoch)
	}
	w.pass(time.Hour)
	w.wantRunning("web", "web.0.0@a", "web.1.0@b")
	if s := w.jobs["web"]; s.State != messages.JobRunning || s.Healthy != 2 {
		t.Errorf("got %+v", s)
	}
	if _, err := w.register("a", "key of a"); err == nil {
		t.Error("the old board takes the name back")
	}
}

// Whoever registers first gets the name: also the old board, which then runs what it ran, without a restart of it.
func TestReplaceThenTheSameBoard(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a"))
	old := w.nodes["a"]
	w.done(w.sendNode(messages.Replace, "a"))
	w.rejoin("a", false)
	w.wantNode("a", messages.NodeOnline)
	w.wantRunning("web", "web.0.0@a")
	if w.nodes["a"] != old || old.epoch != w.core.State().Nodes["a"].Epoch {
		t.Errorf("the board has not heard of the epoch %d: %d", w.core.State().Nodes["a"].Epoch, old.epoch)
	}
	if _, err := w.register("a", "another key"); err == nil {
		t.Error("another board gets the name all the same")
	}
}

// Until a board comes, the node counts as away; its instances find other nodes in time, and the new board is not told to run them.
func TestReplaceWaitsAsForAnyNode(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a", "b"))
	w.wantRunning("web", "web.0.0@a")
	w.done(w.sendNode(messages.Replace, "a"))
	delete(w.nodes["a"].holds, "web.0.0") // the old board is switched off
	w.boot()
	w.connect("b")
	w.wantNode("a", messages.NodeExpected)
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@b")
	w.wantNode("a", messages.NodeExpected)
	again := w.sendNode(messages.Replace, "a")
	w.done(again)
	if again.Phase != messages.Accepted {
		t.Errorf("a repeat: got %+v", again)
	}
	w.rejoin("a", true)
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@b")
	if w.nodes["a"].started != 0 {
		t.Error("the new board was told to run what is elsewhere")
	}
}

// What has finished is not run again on the new board, and what was to be stopped on the old one is gone with it.
func TestReplaceLeavesBehind(t *testing.T) {
	w := newWorld(t, "a")
	batch := job("once", "done", 1)
	batch.Mode = messages.Batch
	w.done(w.accepted(deploy(batch)))
	w.accepted(deploy(job("web", "good", 1)))
	w.disconnect("a")
	deleted := w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.done(w.sendNode(messages.Replace, "a"))
	w.done(deleted)
	if w.jobs["once"].State != messages.JobDone {
		t.Errorf("got %+v", w.jobs["once"])
	}
	w.boot()
	w.rejoin("a", true)
	w.pass(time.Hour)
	if w.nodes["a"].started != 0 || w.jobs["once"].State != messages.JobDone {
		t.Errorf("started %d, got %+v", w.nodes["a"].started, w.jobs["once"])
	}
	w.done(w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "once"}}))
}

func TestRemove(t *testing.T) {
	w := newWorld(t, "a", "b")
	j := withPort(job("web", "good", 1), 8080)
	j.Resources.MemoryMB = 900
	w.accepted(deploy(j, "a"))
	first := w.sendNode(messages.Remove, "a")
	if first.Phase != messages.Refused || first.Code != messages.NotAllowed || first.Node != "a" || !strings.Contains(first.Message, "end its engine first") {
		t.Fatalf("got %+v, want a refusal while it is online", first)
	}
	w.done(w.accepted(deploy(j, "a", "b")))
	w.disconnect("a")
	w.kept["nodes/a/presence"] = []byte(`{"online":false}`)
	first = w.sendNode(messages.Remove, "a") // long before lost_after
	w.done(first)
	if _, ok := w.kept["nodes/a/presence"]; ok || w.nodeStatus("a") != nil || w.core.State().Nodes["a"] != nil {
		t.Error("something of the node is left")
	}
	w.pass(2 * time.Second)
	if got := w.running("web"); !slices.Contains(got, "web.0.1@b") {
		t.Fatalf("got %v, want a stand-in on b", got)
	}
	lost := slices.ContainsFunc(w.events, func(e messages.Event) bool { return e.Kind == messages.InstanceLost && e.Instance == "web.0.0" })
	removed := slices.ContainsFunc(w.events, func(e messages.Event) bool { return e.Kind == messages.NodeRemovedEv && e.Node == "a" })
	if !lost || !removed {
		t.Error("no event of the instance, or none of the node")
	}
	if s := w.jobs["web"]; s.State != messages.JobRunning || len(s.Instances) != 1 {
		t.Errorf("got %+v", s)
	}
	w.boot()
	w.connect("b")
	w.settle()
	if w.core.State().Nodes["a"] != nil || w.nodeStatus("a") != nil {
		t.Error("the removed node is back with the manager's memory")
	}

	// The board comes back as a new one and is told to stop what it still runs.
	w.rejoin("a", false)
	w.wantNode("a", messages.NodeOnline)
	w.pass(time.Hour)
	w.wantRunning("web", "web.0.1@b")
	if held := w.core.table.Reserved("a"); held.MemoryMB != 0 {
		t.Errorf("reserved on the new node: %v", held)
	}
}

// A copy that no node can take waits, also through a crash of the manager, and takes the name's next board.
func TestRemoveWithoutStandIn(t *testing.T) {
	w := newWorld(t, "a")
	j := job("web", "good", 1)
	j.OnReturn = messages.KeepOriginal // there is none to keep
	w.accepted(deploy(j))
	w.disconnect("a")
	w.done(w.sendNode(messages.Remove, "a"))
	if s := w.jobs["web"]; len(s.Waiting) != 1 || len(s.Instances) != 1 || s.Instances[0].State != messages.Lost {
		t.Errorf("got %+v", s)
	}
	w.boot()
	if len(w.core.State().Nodes) != 0 {
		t.Errorf("got %v, want no node", w.core.State().Nodes)
	}
	w.rejoin("a", true)
	w.pass(time.Hour)
	w.wantRunning("web", "web.0.1@a")
}

func TestRemoveFinished(t *testing.T) {
	w := newWorld(t, "a", "b")
	batch := job("once", "done", 1)
	batch.Mode = messages.Batch
	w.done(w.accepted(deploy(batch, "a")))
	w.disconnect("a")
	w.done(w.sendNode(messages.Remove, "a"))
	w.boot()
	w.rejoin("a", true)
	w.connect("b")
	w.pass(time.Hour)
	if s := w.jobs["once"]; s.State != messages.JobDone || w.nodes["a"].started+w.nodes["b"].started != 0 {
		t.Errorf("run again: %+v", s)
	}
	w.done(w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "once"}}))
	if len(w.core.State().Jobs) != 0 {
		t.Error("the job is left")
	}
}

func TestRemoveTargetOfMove(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.done(w.accepted(deploy(job("web", "good", 1), "a")))
	w.watch = func() {
		if n := w.nodes["b"]; n.online {
			w.disconnect("b") // before it hears of the instance
		}
	}
	move := w.send(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}, Worker: []messages.NodeID{"b"}})
	w.watch = nil
	w.done(w.sendNode(messages.Remove, "b"))
	w.pass(time.Minute)
	if last := w.last(move); last == nil || last.Phase != messages.Failed {
		t.Errorf("got %+v, want the move failed", last)
	}
	w.wantRunning("web", "web.0.0@a")
}

func TestRemoveCoreNode(t *testing.T) {
	w := newWorld(t)
	w.core.cfg.Core = []messages.NodeID{"a"}
	w.core.Reload(w.core.State(), w.now)
	w.settle()
	w.wantNode("a", messages.NodeExpected)
	w.join("a", nil)
	w.accepted(deploy(job("web", "good", 1)))
	w.disconnect("a")
	r := w.sendNode(messages.Remove, "a")
	w.done(r)
	if last := w.last(r); !strings.Contains(last.Message, "expected") {
		t.Errorf("got %+v", last)
	}
	w.wantNode("a", messages.NodeExpected)
	if s := w.nodeStatus("a"); s.Kind != messages.Core || s.Key != "" || len(s.Instances) != 0 {
		t.Errorf("got %+v", s)
	}
	w.rejoin("a", true)
	w.wantNode("a", messages.NodeOnline)
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@a")
}

func TestNodeCommandRefusals(t *testing.T) {
	w := newWorld(t, "a")
	for payload, want := range map[string]messages.Code{
		`{"command":"replace","node":"z","request_id":"q1"}`:                     messages.UnknownNode,
		`{"command":"replace","node":"a","cluster":["other"],"request_id":"q2"}`: messages.WrongCluster,
		`{"command":"remove","node":"a","request_id":"q3"}`:                      messages.BadPayload,
		`{"command":"replace","node":"A","request_id":"q4"}`:                     messages.BadPayload,
		`{"command":"replace","node":7,"request_id":"q5"}`:                       messages.BadPayload,
	} {
		if r := w.sendNodeRaw(messages.Replace, []byte(payload)); r.Phase != messages.Refused || r.Code != want || r.Message == "" || r.Command != messages.Replace {
			t.Errorf("%s: got %+v, want %s", payload, r, want)
		}
	}
	viewer := incomingNode(messages.Replace, []byte(`{"command":"replace","node":"a","request_id":"v"}`))
	viewer.MayCommand = false
	if w.core.NodeCommand(viewer, w.now) {
		t.Error("a viewer may command")
	}
	w.settle()
	if r := w.results[len(w.results)-1]; r.RequestID != "v" || r.Code != messages.NotAllowed || r.Node != "a" {
		t.Errorf("got %+v", r)
	}
	w.wantNode("a", messages.NodeOnline)
}

// The same request again repeats both Results, also after a crash of the manager, and does nothing.
func TestNodeCommandRepeated(t *testing.T) {
	w := newWorld(t, "a")
	payload := []byte(`{"command":"replace","node":"a","cluster":["lab"],"request_id":"q"}`)
	first := w.sendNodeRaw(messages.Replace, payload)
	w.boot()
	w.rejoin("a", true)
	w.results = nil
	if again := w.sendNodeRaw(messages.Replace, payload); again.Phase != messages.Accepted || again.Rev != first.Rev {
		t.Errorf("got %+v, want %+v", again, first)
	}
	w.done(first)
	w.wantNode("a", messages.NodeOnline)
	w.pass(requestMemory)
	w.sendNodeRaw(messages.Replace, payload)
	w.wantNode("a", messages.NodeExpected)
}

// Where the disk refuses, nothing has happened: the old board keeps its name, its password and its connection.
func TestNodeCommandIsNotWritten(t *testing.T) {
	s, broken := new(store.Memory), false
	s.Fail = func([]store.Change) error {
		if broken {
			return errors.New("no space left on device")
		}
		return nil
	}
	var sent []Message
	l, err := NewLoop(t.Context(), Config{Cluster: "lab", LostAfter: time.Minute}, s, func(m Message) { sent = append(sent, m) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	turn := func(call func(*Core, time.Time)) {
		l.retryAt = time.Time{}
		if _, err := l.turn(t.Context(), []event{{call: call}}); err != nil {
			t.Fatal(err)
		}
	}
	var welcome messages.Welcome
	turn(func(c *Core, now time.Time) {
		w, err := c.Register(messages.NodeInfo{Name: "a", Key: "k", Arch: "amd64"}, false, now)
		if err != nil {
			t.Fatal(err)
		}
		welcome = w
		c.Presence("a", 1, messages.Presence{Online: true, Epoch: w.Epoch}, now)
	})
	broken, sent = true, nil
	in := incomingNode(messages.Replace, []byte(`{"command":"replace","node":"a","request_id":"q"}`))
	turn(func(c *Core, now time.Time) { c.NodeCommand(in, now) })
	if len(sent) != 0 {
		t.Errorf("sent: %+v", sent)
	}
	if !l.core.Admits("a", []byte(welcome.Password)) || !l.core.State().Nodes["a"].Online {
		t.Error("the board has lost its name though nothing was written")
	}
	broken = false
	turn(func(c *Core, now time.Time) { c.NodeCommand(in, now) })
	if l.core.Admits("a", []byte(welcome.Password)) {
		t.Error("the board has kept its password")
	}
	ended := slices.IndexFunc(sent, func(m Message) bool { return m.Disconnect == "a" })
	last := slices.IndexFunc(sent, func(m Message) bool { return strings.Contains(string(m.Payload), `"phase":"done"`) })
	if ended < 0 || last < ended {
		t.Errorf("the connection is ended at %d, done said at %d", ended, last)
	}
	unavailable := UnavailableNode(in)
	if len(unavailable) != 1 || decode[messages.Result](t, unavailable[0].Payload).Code != messages.Unavailable {
		t.Errorf("got %+v", unavailable)
	}
}
