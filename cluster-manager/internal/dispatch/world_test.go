package dispatch

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// world is a Core with its store, nodes that obey it, and a clock of its own. Nothing in it runs by itself: settle delivers messages
// until none is left, pass lets time go by.
type world struct {
	t       *testing.T
	core    *Core
	store   *store.Memory
	now     time.Time
	nodes   map[messages.NodeID]*board
	results []messages.Result
	jobs    map[messages.JobName]*messages.JobStatus // retained
	kept    map[string][]byte                        // what is retained of nodes, by topic
	events  []messages.Event
	silent  bool // nodes do not say what they hold
	// watch is called after every single delivery.
	watch func()
	next  int
	cfg   Config
	net   *netWatch // nil: nobody has an overlay
}

// board is a node that does what it is told at once, unless fate says otherwise.
type board struct {
	id      messages.NodeID
	link    *int
	online  bool
	epoch   uint64
	rev     uint64
	holds   map[messages.InstanceID]messages.Assignment
	status  map[messages.InstanceID]messages.InstanceStatus
	done    map[messages.InstanceID]messages.Assignment // ended, and remembered against late repeats
	started int
}

// fate says what becomes of an instance by its image.
var fate = map[string]messages.InstanceStatus{
	"good":    {State: messages.Running, Healthy: true},
	"better":  {State: messages.Running, Healthy: true},
	"sick":    {State: messages.Running, Reason: "http: 500"},
	"missing": {State: messages.FailedState, Code: messages.ImageNotFound, Reason: "no such image"},
	"armed":   {State: messages.FailedState, Code: messages.ImageWrongArch, Reason: "the image is for arm"},
	"crashes": {State: messages.Pending, Attempt: 3, Code: messages.Exited, Reason: "exited with code 1"},
	"done":    {State: messages.ExitedState, ExitCode: new(int)},
	"slow":    {State: messages.Preparing},
}

func newWorld(t *testing.T, nodes ...messages.NodeID) *world {
	w := &world{t: t, cfg: Config{Cluster: "lab", LostAfter: 30 * time.Second}, store: new(store.Memory), now: time.Unix(1_800_000_000, 0), nodes: map[messages.NodeID]*board{}, jobs: map[messages.JobName]*messages.JobStatus{},
		kept: map[string][]byte{}}
	w.boot()
	for _, id := range nodes {
		w.join(id, nil)
	}
	return w
}

// boot makes the core anew from what is on disk, as after a crash of the manager: every node has lost its connection.
func (w *world) boot() {
	w.t.Helper()
	st, damaged, err := cluster.Load(w.t.Context(), w.store)
	if err != nil || len(damaged) > 0 {
		w.t.Fatal(err, damaged)
	}
	w.core = NewCore(w.cfg, st, w.now, slog.New(slog.DiscardHandler))
	err = w.store.Load(w.t.Context(), func(b store.Bucket, k string, v []byte) error {
		if b == store.Requests {
			return w.core.RestoreRequest(k, v)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.core.Advance(w.now)
	w.flush()
	for _, n := range w.nodes {
		n.online = false
	}
}

// join registers a node of four cores and 1000 MiB and connects it.
func (w *world) join(id messages.NodeID, change func(*messages.NodeInfo)) {
	w.t.Helper()
	info := messages.NodeInfo{Name: id, Key: "key of " + string(id), Arch: "amd64", CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}
	if change != nil {
		change(&info)
	}
	welcome, err := w.core.Register(info, false, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[id] = &board{id: id, epoch: welcome.Epoch, holds: map[messages.InstanceID]messages.Assignment{}, status: map[messages.InstanceID]messages.InstanceStatus{},
		done: map[messages.InstanceID]messages.Assignment{}}
	w.connect(id)
	w.settle()
}

// connect brings a node online as an engine does: presence, then the status of everything it holds.
func (w *world) connect(id messages.NodeID) {
	n := w.nodes[id]
	n.online, n.link = true, new(int)
	w.core.Presence(id, n.link, messages.Presence{Online: true, Epoch: n.epoch, Rev: n.rev, Digest: messages.Digest(slices.Collect(maps.Values(n.holds)))}, w.now)
	w.report(n)
	w.connectNet(n)
}

func (w *world) disconnect(id messages.NodeID) {
	n := w.nodes[id]
	n.online = false
	w.core.Disconnected(id, n.link, w.now)
}

// settle delivers messages until nothing happens any more at this moment.
func (w *world) settle() {
	w.t.Helper()
	for range 10_000 {
		w.core.Advance(w.now)
		if !w.flush() {
			return
		}
	}
	w.t.Fatal("never comes to rest")
}

// flush commits, then delivers what is to be sent. It reports whether a node heard something.
func (w *world) flush() bool {
	w.core.Publish(w.now)
	if err := w.store.Commit(w.t.Context(), w.core.State().TakeChanges()); err != nil {
		w.t.Fatal(err)
	}
	heard := false
	for _, m := range w.core.TakeMessages() {
		heard = w.deliver(m) || heard
		if w.watch != nil {
			w.watch()
		}
	}
	return heard
}

func (w *world) deliver(m Message) bool {
	w.t.Helper()
	if m.EndRelay != "" {
		return false
	}
	if m.Disconnect != "" {
		if n := w.nodes[m.Disconnect]; n != nil && n.online {
			w.disconnect(m.Disconnect)
		}
		return true
	}
	t, err := messages.ParseTopic(m.Topic)
	if err != nil {
		w.t.Fatal(err)
	}
	w.deliverNet(t, m)
	switch t.Kind {
	case messages.ResultTopic:
		w.results = append(w.results, decode[messages.Result](w.t, m.Payload))
	case messages.JobStatusTopic:
		w.jobs[t.Job] = nil
		if len(m.Payload) > 0 {
			s := decode[messages.JobStatus](w.t, m.Payload)
			w.jobs[t.Job] = &s
		}
	case messages.NodeStatusTopic, messages.PresenceTopic:
		w.kept[m.Topic] = m.Payload
		if len(m.Payload) == 0 {
			delete(w.kept, m.Topic)
		}
	case messages.EventTopic:
		w.events = append(w.events, decode[messages.Event](w.t, m.Payload))
	case messages.NodeControlTopic:
		if n := w.nodes[t.Node]; n.online {
			w.obey(n, decode[messages.Assignment](w.t, m.Payload), false)
			return true
		}
	case messages.InventoryRequestTopic:
		if n := w.nodes[t.Node]; n.online && !w.silent {
			held := slices.SortedFunc(maps.Values(n.holds), func(a, b messages.Assignment) int { return strings.Compare(string(a.Instance), string(b.Instance)) })
			for _, piece := range messages.Inventories(held) {
				w.core.Inventory(n.id, piece, w.now)
			}
			return true
		}
	case messages.SyncTopic:
		if n := w.nodes[t.Node]; n.online {
			w.obeyAll(n, decode[messages.Sync](w.t, m.Payload))
			return true
		}
	}
	return false
}

func decode[T any](t *testing.T, payload []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(payload, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// obey does what an assignment says, once.
func (w *world) obey(n *board, a messages.Assignment, force bool) {
	if err := a.Validate(); err != nil {
		w.t.Fatal(err)
	}
	if held, ok := n.holds[a.Instance]; ok && !a.Newer(&held) && !force {
		return
	}
	if over, ok := n.done[a.Instance]; ok && a.Run && !a.Newer(&over) && !force {
		return
	}
	if a.Epoch < n.epoch {
		return
	}
	n.epoch, n.rev = a.Epoch, max(n.rev, a.Rev)
	s := n.status[a.Instance]
	job, _, generation, _ := a.Instance.Split()
	next := messages.InstanceStatus{State: messages.Stopped}
	switch held, ok := n.holds[a.Instance]; {
	case ok && a.Run && string(messages.Encode(held.Spec)) == string(messages.Encode(a.Spec)):
		next = s // it runs on
	case a.Run:
		next = fate[a.Spec.Image]
		next.Address = w.addressOn(n, a.Instance)
		n.started++
	}
	next.Instance, next.Job, next.Generation, next.Rev, next.Seq = a.Instance, job, generation, a.Rev, s.Seq+1
	n.holds[a.Instance], n.status[a.Instance] = a, next
	if !a.Run { // the engine forgets it once the status is acknowledged
		n.done[a.Instance] = a
		delete(n.holds, a.Instance)
		delete(n.status, a.Instance)
	}
	w.core.Status(n.id, next, w.now)
}

func (w *world) obeyAll(n *board, s messages.Sync) {
	if s.Epoch < n.epoch {
		return
	}
	named := map[messages.InstanceID]bool{}
	for _, a := range s.Assignments {
		named[a.Instance] = true
		w.obey(n, a, false)
	}
	defer w.report(n) // as an engine does after a sync
	for _, id := range slices.Sorted(maps.Keys(n.holds)) {
		if held := n.holds[id]; !named[id] && (held.Epoch != s.Epoch || held.Rev <= s.Rev) {
			w.obey(n, messages.Assignment{Instance: id, Rev: s.Rev, Epoch: s.Epoch}, true)
		}
	}
}

// report says again how everything stands that a node holds.
func (w *world) report(n *board) {
	for _, instance := range slices.Sorted(maps.Keys(n.status)) {
		w.core.Status(n.id, n.status[instance], w.now)
	}
}

// change sets the status of an instance on its node and reports it.
func (w *world) change(id messages.InstanceID, f func(*messages.InstanceStatus)) {
	for _, n := range w.nodes {
		if s, ok := n.status[id]; ok {
			f(&s)
			s.Seq++
			n.status[id] = s
			if n.online {
				w.core.Status(n.id, s, w.now)
			}
		}
	}
	w.settle()
}

// pass lets time go by in steps, so that everything that waits for a moment gets it.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		wake := w.core.Advance(w.now)
		w.settle()
		if wake.IsZero() || wake.After(end) {
			wake = end
		}
		w.now = wake
		w.settle()
	}
}

// send gives a command and returns its first Result.
func (w *world) send(cmd messages.Command) messages.Result {
	w.t.Helper()
	if cmd.RequestID == "" {
		w.next++
		cmd.RequestID = fmt.Sprintf("r%d", w.next)
	}
	return w.sendRaw(cmd.Command, messages.Encode(cmd))
}

func (w *world) sendRaw(verb messages.Verb, payload []byte) messages.Result {
	w.t.Helper()
	in := incoming(verb, payload)
	return w.first(in.Command.RequestID, func() { w.core.Command(in, w.now) })
}

// first gives a command and returns the first Result of its request from then on.
func (w *world) first(request string, command func()) messages.Result {
	w.t.Helper()
	before := len(w.results)
	command()
	w.settle()
	for _, r := range w.results[before:] {
		if r.RequestID == request {
			return r
		}
	}
	w.t.Fatalf("no Result for %s", request)
	return messages.Result{}
}

// incoming is a command of an operator.
func incoming(verb messages.Verb, payload []byte) Incoming {
	in := Incoming{MayCommand: true}
	in.Command, in.Bad = messages.DecodeCommand(payload, verb)
	return in
}

// last returns the last Result of a request, and fails where there is not exactly one first and at most one last.
func (w *world) last(first messages.Result) *messages.Result {
	w.t.Helper()
	var last *messages.Result
	for i := range w.results {
		if r := &w.results[i]; r.RequestID == first.RequestID && r.Last() {
			if last != nil {
				w.t.Errorf("two last Results for %s: %+v %+v", first.RequestID, last, r)
			}
			last = r
		}
	}
	return last
}

func (w *world) accepted(cmd messages.Command) messages.Result {
	w.t.Helper()
	r := w.send(cmd)
	if r.Phase != messages.Accepted {
		w.t.Fatalf("%s: got %s %s %s, want accepted", cmd.Command, r.Phase, r.Code, r.Message)
	}
	return r
}

func (w *world) done(r messages.Result) {
	w.t.Helper()
	if last := w.last(r); last == nil || last.Phase != messages.Done {
		w.t.Fatalf("%s %s: got last Result %+v, want done", r.Command, r.RequestID, last)
	}
}

func (w *world) failed(r messages.Result, code messages.Code) {
	w.t.Helper()
	if last := w.last(r); last == nil || last.Phase != messages.Failed || last.Code != code || last.Message == "" {
		w.t.Fatalf("%s %s: got last Result %+v, want failed with %s and a reason", r.Command, r.RequestID, last, code)
	}
}

// running returns where the job's instances really run, as instance@node.
func (w *world) running(job messages.JobName) []string {
	var all []string
	for _, n := range w.nodes {
		for id, a := range n.holds {
			if j, _, _, _ := id.Split(); j == job && a.Run {
				all = append(all, string(id)+"@"+string(n.id))
			}
		}
	}
	slices.Sort(all)
	return all
}

func (w *world) wantRunning(job messages.JobName, want ...string) {
	w.t.Helper()
	if got := w.running(job); !slices.Equal(got, want) {
		w.t.Fatalf("running: got %v, want %v", got, want)
	}
}

// healthy counts the instances of a job that serve, wherever they are.
func (w *world) healthy(job messages.JobName) int {
	count := 0
	for _, n := range w.nodes {
		for id, s := range n.status {
			if j, _, _, _ := id.Split(); j == job && s.Healthy && n.holds[id].Run {
				count++
			}
		}
	}
	return count
}

func job(name messages.JobName, image string, replicas int) messages.Job {
	return messages.Job{Name: name, Replicas: &replicas, Spec: messages.Spec{Image: image, Health: &messages.Health{Exec: []string{"check"}}}}
}

func deploy(j messages.Job, worker ...messages.NodeID) messages.Command {
	return messages.Command{Command: messages.Deploy, Job: j, Worker: worker}
}
