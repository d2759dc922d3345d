package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
)

// instances is an instance set without instances: it remembers what it was told.
type instances struct {
	mu       sync.Mutex
	assigned []messages.Assignment
	syncs    []messages.Sync
	current  []messages.InstanceStatus
	acks     map[messages.InstanceID]uint64
	fail     error
}

func newInstances() *instances { return &instances{acks: map[messages.InstanceID]uint64{}} }

func (i *instances) Assign(a messages.Assignment) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fail != nil {
		return i.fail
	}
	i.assigned = append(i.assigned, a)
	return nil
}

func (i *instances) Sync(s messages.Sync) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.syncs = append(i.syncs, s)
	return i.fail
}

func (i *instances) Statuses() []messages.InstanceStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.current)
}

func (i *instances) Acked(id messages.InstanceID, seq uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.acks[id] = max(i.acks[id], seq)
}

func (i *instances) Assignments() []messages.Assignment {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.assigned)
}

func (i *instances) Digest() (string, uint64, uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return messages.Digest(i.assigned), 7, uint64(len(i.assigned))
}

func (i *instances) got() (assigned, syncs int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.assigned), len(i.syncs)
}

func (i *instances) acked(id messages.InstanceID) uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.acks[id]
}

// node is a session under test.
type node struct {
	*Session
	instances *instances
	outbox    *Outbox
	log       *buffer
	end       func()
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) has(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.b.String(), s)
}

// newNode makes a session that has not started, with times short enough for a test.
func newNode(t *testing.T, manager string, change func(*Config)) *node {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Manager: manager, Key: key, Token: "t0", BootID: "boot-1", Info: func(context.Context) messages.NodeInfo {
		return messages.NodeInfo{Name: "n1", Arch: "amd64", CPU: messages.CPUInfo{Cores: 2}, MemoryMB: 512}
	}}
	if change != nil {
		change(&cfg)
	}
	n := &node{instances: newInstances(), outbox: NewOutbox(), log: new(buffer)}
	n.Session, err = New(cfg, n.instances, n.outbox, slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	n.pace.backoffMin, n.pace.backoffMax, n.pace.refused = 5*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond
	n.pace.again = 20 * time.Millisecond
	return n
}

// start runs the session until end is called or the test ends.
func (n *node) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: got %v, want nil after its context has ended", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("run has not ended")
		}
	})
	t.Cleanup(func() {
		n.end()
		if t.Failed() {
			t.Logf("log of the node:\n%s", n.log.b.String())
		}
	})
}

// link is a TCP connection to a broker that can be cut without a word.
type link struct {
	net.Listener
	to   string
	mu   sync.Mutex
	cons []net.Conn
	down bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{Listener: l, to: to}
	go k.serve()
	t.Cleanup(func() { l.Close(); k.cut() })
	return k
}

func (k *link) serve() {
	for {
		in, err := k.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", k.to)
		if err != nil || k.isDown() {
			in.Close()
			continue
		}
		k.mu.Lock()
		k.cons = append(k.cons, in, out)
		k.mu.Unlock()
		go pipe(in, out)
		go pipe(out, in)
	}
}

func pipe(from, to net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			from.Close()
			to.Close()
			return
		}
	}
}

func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.cons {
		c.Close()
	}
	k.cons = nil
}

func (k *link) isDown() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.down
}

func (k *link) set(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
}

func (k *link) url() string { return "tcp://" + k.Addr().String() }
