package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// A Result fits a message, however many nodes and words it could name.
func TestResultsFit(t *testing.T) {
	w := newWorld(t, "a")
	cmd := deploy(job("web", "good", 1))
	for i := range 9_000 {
		cmd.Worker = append(cmd.Worker, messages.NodeID(fmt.Sprintf("no-such-node-%s-%d", strings.Repeat("x", 40), i)))
	}
	w.core.Command(Incoming{MayCommand: true, Command: withRequest(cmd, "many")}, w.now)
	w.wantFits(t)
	w.accepted(deploy(job("web", "good", 300)))
	for id := range w.nodes["a"].holds {
		s := w.nodes["a"].status[id]
		s.Seq++
		s.Reason = strings.Repeat("why ", 1000)
		w.core.Status("a", s, w.now)
	}
	w.core.Advance(w.now)
	w.wantFits(t)
	w.core.Command(Incoming{MayCommand: true, Command: withRequest(replicate("web", 300), "words")}, w.now)
	w.core.Advance(w.now)
	w.wantFits(t)
}

func withRequest(cmd messages.Command, id string) messages.Command {
	cmd.RequestID = id
	return cmd
}

// wantFits checks what is to be sent, and that something is.
func (w *world) wantFits(t *testing.T) {
	t.Helper()
	w.core.Publish(w.now)
	out := w.core.TakeMessages()
	for _, m := range out {
		if len(m.Payload) > messages.MaxFromManager {
			t.Errorf("%s: %d bytes", m.Topic, len(m.Payload))
		}
	}
	if len(out) == 0 {
		t.Error("nothing is sent")
	}
}

// A manager whose disk was restored from a backup is listened to: its nodes know later revs.
func TestManagerRestoredFromBackup(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	backup := w.store.Clone()
	w.accepted(deploy(job("later", "good", 1)))
	w.accepted(deploy(job("web", "better", 1)))
	w.pass(time.Minute)
	w.store = backup
	w.boot()
	w.connect("a")
	w.pass(time.Minute)
	w.wantRunning("later", "later.0.0@a")
	if s := w.jobs["later"]; s.State != messages.JobHeld {
		t.Errorf("what was deployed after the backup is %s, want it held", s.State)
	}
	w.wantRunning("web", "web.0.0@a")
	if got := w.nodes["a"].holds["web.0.0"].Spec.Image; got != "good" {
		t.Errorf("runs %s", got)
	}
	w.accepted(deploy(job("web", "better", 1)))
	w.pass(time.Minute)
	w.wantRunning("web", "web.0.1@a") // of that name the node has ended one with a later rev
}

// A status that tells of an earlier job of the same name says nothing about the new one, whose instances bear names of their own.
func TestLateStatusOfEarlierJob(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 1)))
	old := w.nodes["a"].status["web.0.0"]
	w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.mute("a")
	w.accepted(deploy(job("web", "good", 1)))
	old.State, old.Healthy, old.Seq = messages.Stopped, false, old.Seq+1
	w.core.Status("a", old, w.now)
	w.settle()
	if p := w.core.State().Placement("web.0.1"); p == nil || p.Observed != nil {
		t.Errorf("got %+v, want web.0.1 with nothing reported", p)
	}
}

// What is refused for the moment may be asked again with the same request id.
func TestUnavailableIsNotRemembered(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.accepted(deploy(job("web", "good", 1), "a", "b"))
	w.accepted(deploy(job("web", "slow", 1), "a", "b"))
	cmd := withRequest(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{"a"}}, "again")
	if r := w.send(cmd); r.Code != messages.Unavailable {
		t.Fatalf("got %+v", r)
	}
	w.pass(6 * time.Minute) // the change is taken back
	before := len(w.results)
	w.core.Command(Incoming{MayCommand: true, Command: cmd}, w.now)
	w.settle()
	if r := w.results[before]; r.Phase != messages.Accepted {
		t.Errorf("got %+v", r)
	}
}

// Requests are remembered in a bounded number.
func TestRequestMemoryIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxRequests + 100 {
		w.core.Command(Incoming{MayCommand: true, Command: withRequest(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "x"}}, fmt.Sprint("r", i))}, w.now)
		w.core.TakeMessages()
	}
	w.core.Advance(w.now)
	if n := len(w.core.requests); n > maxRequests {
		t.Errorf("%d requests are remembered", n)
	}
	if _, known := w.core.requests[fmt.Sprint("r", maxRequests+99)]; !known {
		t.Error("the newest is forgotten")
	}
}

// Request ids are each user's own, also after a restart. What was never written is not deleted from the disk either.
func TestRequestsAreEachUsers(t *testing.T) {
	w := newWorld(t, "a")
	give := func(user string, cmd messages.Command) messages.Result {
		in := incoming(cmd.Command, messages.Encode(withRequest(cmd, "same")))
		in.User = user
		return w.first("same", func() { w.core.Command(in, w.now) })
	}
	first := give("alice", deploy(job("web", "good", 1)))
	w.boot()
	w.connect("a")
	w.settle()
	if r := give("bob", messages.Command{Command: messages.Delete, Job: messages.Job{Name: "none"}}); r.Code != messages.UnknownJob {
		t.Errorf("bob is answered %+v", r)
	}
	if r := give("alice", deploy(job("web", "good", 1))); r.Phase != messages.Accepted || r.Rev != first.Rev {
		t.Errorf("alice's repeat is answered %+v, was %+v", r, first)
	}
	if r := give("alice", messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}}); r.Code != messages.BadPayload {
		t.Errorf("alice's other command is answered %+v", r)
	}
	w.settle()
	w.core.Advance(w.now.Add(requestMemory))
	var deleted []string
	for _, ch := range w.core.State().TakeChanges() {
		if ch.Bucket == store.Requests {
			deleted = append(deleted, ch.Key)
		}
	}
	if len(w.core.requests) != 0 || !slices.Equal(deleted, []string{"same alice"}) {
		t.Errorf("left: %v, deleted from the disk: %q, want what was written", w.core.requests, deleted)
	}
}

// A request of the future, as a clock that went back leaves it, is forgotten in time.
func TestRequestOfTheFuture(t *testing.T) {
	w := newWorld(t)
	for i, at := range []time.Time{w.now.Add(time.Hour), w.now.Add(-time.Minute), w.now} {
		if err := w.core.RestoreRequest(fmt.Sprint(i), messages.Encode(request{At: at})); err != nil {
			t.Fatal(err)
		}
	}
	w.core.Advance(w.now.Add(9*time.Minute + time.Second))
	if _, there := w.core.requests["1"]; there || len(w.core.requests) != 2 {
		t.Errorf("left: %v", w.core.requests)
	}
	w.core.Advance(w.now.Add(requestMemory))
	if len(w.core.requests) != 0 {
		t.Errorf("left: %v", w.core.requests)
	}
}

// Two boards that bear one key are told apart by their boots: the one that comes back while the other is there is refused.
func TestTwoBoardsWithOneKey(t *testing.T) {
	w := newWorld(t)
	come := func(boot string) error {
		_, err := w.core.Register(messages.NodeInfo{Name: "a", Key: "key of a", BootID: boot}, true, w.now)
		if err == nil {
			w.core.Presence("a", new(int), messages.Presence{Online: true, BootID: boot}, w.now)
		}
		return err
	}
	for i, boot := range []string{"one", "two", "two"} { // a board that is started again
		if err := come(boot); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	err := come("one")
	if r, ok := err.(*messages.Refusal); !ok || r.Code != messages.RefusedName || r.Hint == "" { //nolint:errorlint // as it is
		t.Errorf("the first board again: %v", err)
	}
	w.core.Disconnected("a", w.core.links["a"], w.now)
	if err := come("one"); err != nil {
		t.Errorf("once the other one has gone: %v", err)
	}
}

// A node that claims the last epoch there is harms nobody, itself included.
func TestLastEpoch(t *testing.T) {
	w := newWorld(t, "a")
	w.core.Presence("a", w.nodes["a"].link, messages.Presence{Online: true, Epoch: ^uint64(0)}, w.now)
	if e := w.core.State().Nodes["a"].Epoch; e == 0 {
		t.Error("the epoch has run over")
	}
	info := w.core.State().Nodes["a"].Info
	info.Epoch = ^uint64(0)
	if welcome, err := w.core.Register(info, true, w.now); err != nil || welcome.Epoch == 0 {
		t.Errorf("epoch %d, %v", welcome.Epoch, err)
	}
}

// While nothing happens the core asks to be called a bounded number of times.
func TestIdleIsQuiet(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.accepted(deploy(job("web", "good", 6)))
	w.accepted(deploy(keepOriginal(job("db", "good", 2))))
	w.accepted(deploy(job("bad", "sick", 2)))
	w.accepted(deploy(job("slow", "slow", 1)))
	w.disconnect("c")
	end := w.now.Add(24 * time.Hour)
	turns := 0
	for w.now.Before(end) {
		w.settle()
		next := w.core.Advance(w.now)
		if next.IsZero() {
			break
		}
		if !next.After(w.now) {
			t.Fatal("asks to be called at once, again and again")
		}
		w.now = next
		turns++
	}
	if turns > 100 {
		t.Errorf("%d turns", turns)
	}
	w.settle()
	if changes := w.core.State().TakeChanges(); len(changes) > 0 {
		t.Errorf("writes while idle: %v", changes)
	}
}

// A delete and a deploy in one batch, before a plan is made between them, end in what was deployed.
func TestDeleteAndDeployInOneBatch(t *testing.T) {
	w := newWorld(t, "a")
	j := withPort(job("web", "good", 1), 8080)
	w.accepted(deploy(j))
	w.core.Command(Incoming{MayCommand: true, Command: withRequest(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}}, "del")}, w.now)
	w.core.Command(Incoming{MayCommand: true, Command: withRequest(deploy(j), "dep")}, w.now)
	w.settle()
	w.pass(time.Minute)
	w.done(messages.Result{RequestID: "dep"})
	w.failed(messages.Result{RequestID: "del"}, messages.Superseded)
	if n := w.running("web"); len(n) != 1 {
		t.Errorf("running %v", n)
	}
}

// The log line of a membership change stays short in a large cluster.
func TestParticipantsAreBounded(t *testing.T) {
	w := newWorld(t)
	for i := range 2000 {
		id := messages.NodeID(fmt.Sprintf("n%d", i))
		w.core.State().PutNode(&cluster.Node{ID: id, Kind: messages.Spare, Online: true})
		w.core.links[id] = new(int)
	}
	if s := w.core.participants(""); len(s) > 4096 {
		t.Errorf("%d bytes: %s…", len(s), s[:80])
	}
	if s := newWorld(t, "b", "a").core.participants(""); s != "spare:a spare:b" {
		t.Errorf("got %q", s)
	}
	// Where all are away, a line for each that is lost must not look at all of them.
	clear(w.core.links)
	if n := testing.AllocsPerRun(10, func() { w.core.participants("n1") }); n > 20 {
		t.Errorf("%v allocations for one participant of 2,000 nodes", n)
	}
}

// A status names each change once: a job that waits for a node is not published again where nothing has changed.
func TestWaitingIsPublishedOnce(t *testing.T) {
	w := newWorld(t, "a")
	w.accepted(deploy(job("web", "good", 3)))
	w.disconnect("a")
	w.pass(time.Minute)
	w.settle()
	w.core.touchWaiting()
	w.core.Advance(w.now)
	if w.core.changed["web"] {
		t.Error("published again")
	}
	if waiting := w.jobs["web"].Waiting; len(waiting) != 3 || !slices.IsSortedFunc(waiting, func(a, b messages.WaitingCopy) int { return a.Ordinal - b.Ordinal }) {
		t.Errorf("waiting: %+v", waiting)
	}
}
