package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

var errDisk = errors.New("input/output error")

// running is a Loop on a store in memory, in a bubble.
type running struct {
	*Loop
	t       *testing.T
	store   *store.Memory
	commits atomic.Int64
	broken  atomic.Bool
	mu      sync.Mutex // guards sent
	sent    []Message
	end     context.CancelFunc
	ended   chan error
}

func startLoop(t *testing.T) *running {
	t.Helper()
	r := &running{t: t, store: new(store.Memory), ended: make(chan error, 1)}
	r.store.Fail = func([]store.Change) error {
		r.commits.Add(1)
		if r.broken.Load() {
			return errDisk
		}
		return nil
	}
	var err error
	r.Loop, err = NewLoop(t.Context(), Config{Cluster: "lab", LostAfter: 30 * time.Second}, r.store, r.keep, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	r.end = end
	go func() { r.ended <- r.Run(ctx) }()
	return r
}

func (r *running) keep(m Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, m)
}

// take returns what was sent to topics of a kind since the last call, and forgets all.
func (r *running) take(kind messages.Kind) []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	var some []Message
	for _, m := range r.sent {
		if t, err := messages.ParseTopic(m.Topic); err == nil && t.Kind == kind {
			some = append(some, m)
		}
	}
	r.sent = nil
	return some
}

func (r *running) stop() {
	r.t.Helper()
	r.end()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// join registers a node and connects it.
func (r *running) join(id messages.NodeID) messages.Welcome {
	r.t.Helper()
	w, err := r.Register(r.t.Context(), boardInfo(id), false)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Presence(r.t.Context(), id, new(int), messages.Presence{Online: true, Epoch: w.Epoch, Digest: messages.Digest(nil)})
	return w
}

func boardInfo(id messages.NodeID) messages.NodeInfo {
	return messages.NodeInfo{Name: id, Key: "key of " + string(id), CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000, Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}
}

func order(cmd messages.Command, request string) Incoming {
	return Incoming{MayCommand: true, Command: withRequest(cmd, request)}
}

func TestLoopCommitsBeforeItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		r.join("a")
		synctest.Wait()
		r.take(messages.UnknownTopic)
		proceed := make(chan struct{})
		r.store.Fail = func([]store.Change) error { <-proceed; return nil }
		var answered atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Command(t.Context(), order(deploy(job("web", "good", 1)), "r1")); err != nil {
				t.Error(err)
			}
			answered.Store(true)
		})
		synctest.Wait()
		if answered.Load() || len(r.take(messages.ResultTopic)) > 0 {
			t.Error("answered before the commit")
		}
		close(proceed)
		wg.Wait()
		synctest.Wait()
		if len(r.take(messages.ResultTopic)) != 1 {
			t.Error("not answered after the commit")
		}
		r.stop()
	})
}

// Many commands at once share commits.
func TestLoopBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		r.join("a")
		synctest.Wait()
		proceed := make(chan struct{})
		var commits atomic.Int64
		r.store.Fail = func([]store.Change) error { commits.Add(1); <-proceed; return nil }
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				name := messages.JobName(fmt.Sprintf("j%d", i))
				if _, err := r.Command(t.Context(), order(deploy(job(name, "good", 1)), string(name))); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // the first is being committed, the others wait
		close(proceed)
		wg.Wait()
		if n := commits.Load(); n > 3 {
			t.Errorf("%d commits for 200 commands", n)
		}
		r.stop()
	})
}

// A store that fails refuses the command, keeps nothing of it, is left alone for a while, and is used again when it works.
func TestLoopStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		w := r.join("a")
		synctest.Wait()
		r.take(messages.UnknownTopic)
		r.broken.Store(true)
		before := r.commits.Load()
		for i := range 50 {
			if _, err := r.Command(t.Context(), order(deploy(job("web", "good", 1)), fmt.Sprint("r", i))); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("got %v, want ErrUnavailable", err)
			}
			if _, err := r.Register(t.Context(), boardInfo("b"), false); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("register: got %v, want ErrUnavailable", err)
			}
			if !r.Admits(t.Context(), "a", []byte(w.Password)) {
				t.Fatal("a node is not admitted while the disk is full")
			}
		}
		time.Sleep(10 * time.Second)
		if n := r.commits.Load() - before; n > 15 {
			t.Errorf("%d commits were tried in ten seconds", n)
		}
		if sent := r.take(messages.ResultTopic); len(sent) > 0 {
			t.Errorf("said of what is not on disk: %s", sent[0].Payload)
		}
		r.broken.Store(false)
		time.Sleep(2 * retryStore)
		if _, err := r.Command(t.Context(), order(deploy(job("web", "good", 1)), "r1")); err != nil {
			t.Errorf("after the store works again: %v", err)
		}
		synctest.Wait()
		if got := r.take(messages.NodeControlTopic); len(got) != 1 {
			t.Errorf("%d assignments, want 1", len(got))
		}
		r.stop()
	})
}

// What nodes report while the store fails is not lost: what they lack is sent, and what has finished stays so.
func TestLoopKeepsReportsWhileStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		r.join("a")
		if _, err := r.Command(t.Context(), order(deploy(job("once", "done", 1)), "r1")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.take(messages.UnknownTopic)
		r.broken.Store(true)
		s := fate["done"]
		s.Instance, s.Job, s.Seq, s.Rev = "once.0.0", "once", 5, 99
		r.Status(t.Context(), "a", s)                                                             // Finished must be durable
		r.Presence(t.Context(), "a", new(int), messages.Presence{Online: true, Epoch: 7, Rev: 3}) // and so must the epoch
		synctest.Wait()
		if sent := r.take(messages.SyncTopic); len(sent) > 0 {
			t.Errorf("sent before the epoch was durable: %s", sent[0].Payload)
		}
		r.broken.Store(false)
		time.Sleep(2 * retryStore)
		synctest.Wait()
		if asked := r.take(messages.InventoryRequestTopic); len(asked) == 0 {
			t.Fatal("the node was never asked what it holds")
		}
		r.Inventory(t.Context(), "a", messages.Inventory{Last: true})
		synctest.Wait()
		sent := r.take(messages.SyncTopic)
		if len(sent) == 0 {
			t.Fatal("the node was never sent its set")
		}
		if got := decode[messages.Sync](t, sent[len(sent)-1].Payload); got.Epoch != 8 || len(got.Assignments) != 1 {
			t.Errorf("sync %+v, want epoch 8 with one assignment", got)
		}
		r.stop()
		again, err := NewLoop(t.Context(), Config{Cluster: "lab", LostAfter: 30 * time.Second}, r.store, func(Message) {}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if p := again.core.State().Placement("once.0.0"); !p.Finished {
			t.Error("forgot that it has finished")
		}
	})
}

// While nothing happens the loop neither turns nor writes.
func TestLoopIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		r.join("a")
		if _, err := r.Command(t.Context(), order(deploy(job("web", "good", 1)), "r1")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		before := r.commits.Load()
		r.take(messages.UnknownTopic)
		time.Sleep(24 * time.Hour)
		if n := r.commits.Load() - before; n > 0 {
			t.Errorf("%d commits while idle", n)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.sent) > 0 {
			t.Errorf("%d messages while idle, the first to %s", len(r.sent), r.sent[0].Topic)
		}
		r.end()
	})
}

// The cluster's status follows at most once a second, and none is lost.
func TestLoopClusterStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		r.join("a")
		time.Sleep(5 * time.Second)
		r.take(messages.UnknownTopic)
		for i := range 100 {
			if _, err := r.Command(t.Context(), order(deploy(job(messages.JobName(fmt.Sprintf("j%d", i)), "good", 1)), fmt.Sprint("r", i))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		sent := r.take(messages.ClusterTopic)
		if len(sent) == 0 || len(sent) > 4 {
			t.Fatalf("%d cluster statuses in two seconds of change", len(sent))
		}
		if s := decode[messages.ClusterStatus](t, sent[len(sent)-1].Payload); s.Instances[string(messages.Pending)] != 100 {
			t.Errorf("the last one says %v", s.Instances)
		}
		r.stop()
	})
}

// Who still waits when the loop ends is told so.
func TestLoopEndsWhileCallersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startLoop(t)
		synctest.Wait()
		proceed := make(chan struct{})
		r.store.Fail = func([]store.Change) error { <-proceed; return nil }
		errs := make(chan error, 20)
		for i := range 20 {
			go func() {
				_, err := r.Register(t.Context(), boardInfo(messages.NodeID(fmt.Sprintf("n%d", i))), false)
				errs <- err
			}()
		}
		synctest.Wait()
		r.end()
		close(proceed)
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
		var done, refused int
		for range 20 {
			switch err := <-errs; {
			case err == nil:
				done++
			case errors.Is(err, errEnded):
				refused++
			default:
				t.Error(err)
			}
		}
		if done+refused != 20 || done == 0 {
			t.Errorf("%d done, %d refused", done, refused)
		}
	})
}

// A store that cannot be read any more ends the loop, and nobody waits for it.
type unreadable struct {
	store.Memory
	broken atomic.Bool
}

func (u *unreadable) Load(ctx context.Context, each func(store.Bucket, string, []byte) error) error {
	if u.broken.Load() {
		return errDisk
	}
	return u.Memory.Load(ctx, each)
}

func TestLoopEndsWithStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &unreadable{}
		l, err := NewLoop(t.Context(), Config{Cluster: "lab", LostAfter: time.Second}, s, func(Message) {}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(t.Context()) }()
		synctest.Wait()
		s.broken.Store(true)
		s.Fail = func([]store.Change) error { return errDisk }
		var answers []error
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range 2000 { // more than one batch
			wg.Go(func() {
				_, err := l.Register(t.Context(), boardInfo(messages.NodeID(fmt.Sprintf("n%d", i))), false)
				mu.Lock()
				defer mu.Unlock()
				answers = append(answers, err)
			})
		}
		if err := <-ended; !errors.Is(err, errDisk) {
			t.Errorf("Run: %v", err)
		}
		wg.Wait()
		if slices.Contains(answers, nil) {
			t.Error("said that what is not on disk is done")
		}
	})
}
