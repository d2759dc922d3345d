package sim

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/engine/enginesim"
)

// node is a board: its disk and its workloads outlive its engine.
type node struct {
	sim      *Sim
	id       messages.NodeID
	dir      string
	driver   *enginesim.Driver
	down     bool // the technology does not answer
	boots    int
	disks    int // how often its disk was new
	lives    int
	life     *life // nil: the engine does not run
	gone     bool  // it does not come back
	cutUntil time.Time
	conn     *conn // the newest

	flaky   atomic.Bool
	current atomic.Pointer[life]

	mu     sync.Mutex // guards what follows
	calls  map[string]int
	starts map[messages.InstanceID]int
	acted  map[messages.InstanceID]time.Time // the last call to the technology
}

// life is one process of a node engine.
type life struct {
	node   *node
	number int
	disk   int
	first  map[messages.InstanceID]uint64 // where the bug is that seq is forgotten; guarded by the node's mu
	engine *enginesim.Engine
	dead   atomic.Bool // nothing of what it still does counts
	points atomic.Int64
	cancel context.CancelFunc
	done   chan struct{}
}

func newNode(s *Sim, id messages.NodeID, dir string) *node {
	n := &node{sim: s, id: id, dir: dir, calls: map[string]int{}, starts: map[messages.InstanceID]int{}, acted: map[messages.InstanceID]time.Time{}}
	n.newDriver()
	return n
}

// newDriver is a technology that holds nothing.
func (n *node) newDriver() {
	n.down = false
	n.driver = &enginesim.Driver{
		PrepareFunc: func(ctx context.Context, spec enginesim.Spec, _ func(messages.Progress)) error {
			return n.prepare(ctx, spec)
		},
		StartFunc: n.start,
		RunFunc:   n.run,
		StopFunc: func(ctx context.Context, id messages.InstanceID, _ messages.Stop) error {
			return n.call(ctx, "stop", id, 3*time.Second)
		},
		ExecFunc: func(_ context.Context, id messages.InstanceID, _ []string) (int, error) {
			if n.serves(id) {
				return 0, nil
			}
			return 1, nil
		},
	}
}

// count returns how often this has happened before.
func (n *node) count(words ...any) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := fmt.Sprint(words...)
	n.calls[key]++
	return n.calls[key]
}

// call lets a call to the technology take its time, a different one each; the engine may crash before it has an effect.
func (n *node) call(ctx context.Context, what string, id messages.InstanceID, most time.Duration) error {
	l := n.current.Load()
	if l.dead.Load() {
		runtime.Goexit()
	}
	tries := n.count(what, id)
	select {
	case <-time.After(n.sim.fixed(5*time.Millisecond, most, n.id, what, id, tries)):
	case <-ctx.Done():
		return ctx.Err()
	}
	n.mu.Lock()
	n.acted[id] = time.Now()
	n.mu.Unlock()
	l.point(what + " " + string(id))
	if n.flaky.Load() && n.sim.fixed(0, 3, "flaky", n.id, what, id, tries) == 0 {
		return errors.New("the technology fails")
	}
	return nil
}

func (n *node) prepare(ctx context.Context, spec enginesim.Spec) error {
	most := 2 * time.Second
	switch kind(spec.Image) {
	case "slow":
		most = 25 * time.Second
	case "missing":
		return enginesim.ErrImageNotFound
	}
	return n.call(ctx, "prepare", spec.Instance, most)
}

func (n *node) start(ctx context.Context, spec enginesim.Spec) error {
	return n.call(ctx, "start", spec.Instance, 500*time.Millisecond)
}

func (n *node) run(spec enginesim.Spec) *enginesim.Exit {
	n.mu.Lock()
	n.starts[spec.Instance]++
	n.mu.Unlock()
	switch kind(spec.Image) {
	case "crash":
		return &enginesim.Exit{Code: 1}
	case "batch":
		return &enginesim.Exit{Code: 0}
	}
	return nil
}

// kind says by its name what an image does.
func kind(image string) string {
	k, _, _ := strings.Cut(image, ":")
	return k
}

// serves reports whether a workload does its work: not at once after its start, and never where its image is sick.
func (n *node) serves(id messages.InstanceID) bool {
	for _, w := range n.driver.Held() {
		if w.Instance == id {
			return w.Running && n.working(&w)
		}
	}
	return false
}

// warmUp is how long a workload takes from its start until it serves.
func (n *node) warmUp(id messages.InstanceID) time.Duration {
	return n.sim.fixed(100*time.Millisecond, 3*time.Second, "warm", id)
}

// boot starts an engine.
func (n *node) boot() {
	if n.gone || n.life != nil {
		return
	}
	s := n.sim
	n.lives++
	l := &life{node: n, number: n.lives, disk: n.disks, done: make(chan struct{})}
	var err error
	l.engine, err = enginesim.New(enginesim.Config{Name: n.id, Data: n.dir, BootID: fmt.Sprintf("boot-%d", n.boots), Driver: n.driver,
		Transport: transport{l}, Info: n.info(), Report: l.report, Between: s.bug.between,
		Jitter: func(d time.Duration) time.Duration {
			return d/2 + s.fixed(0, d/2+1, "jitter", n.id, n.count("jitter"))
		}}, s.log.With("node_id", n.id))
	if err != nil {
		s.violation("the engine of %s does not start: %v", n.id, err)
		return
	}
	s.tell("the engine of %s starts (life %d, boot %d)", n.id, n.lives, n.boots)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	n.life = l
	n.current.Store(l)
	go func() {
		defer close(l.done)
		_ = l.engine.Run(ctx) // its end is always asked for
	}()
}

func (n *node) info() messages.NodeInfo {
	return messages.NodeInfo{Name: n.id, Arch: "amd64", CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}, Overlay: &messages.OverlayInfo{PublicKey: tunnelKey(n.id)}}
}

// tunnelKey stands for the public key of the tunnel that a board has.
func tunnelKey(id messages.NodeID) string {
	sum := sha256.Sum256([]byte(id))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// say passes on what a life says while it lives.
func (l *life) say(what string, do func()) {
	if l.dead.Load() {
		return
	}
	l.node.sim.say(string(l.node.id)+" "+what, func() {
		if !l.dead.Load() || strings.HasPrefix(what, "0 ") {
			do()
		}
	})
}

// point is a moment at which the engine may crash: its goroutine ends right there.
func (l *life) point(what string) {
	if l.points.Load() > 0 && l.points.Add(-1) == 0 {
		l.say("0 crash", func() {
			l.node.sim.tell("the engine of %s crashes at %s", l.node.id, what)
			l.node.killed(l)
			l.node.sim.after(l.node.sim.between(500*time.Millisecond, l.node.sim.most(3*time.Second, 20*time.Second)), l.node.boot)
		})
		l.dead.Store(true)
		l.cancel()
	}
	if l.dead.Load() {
		runtime.Goexit()
	}
}

// report takes a status from the set to the outbox, one by one in a fixed order.
func (l *life) report(i messages.InstanceStatus) {
	l.node.mu.Lock()
	acted := l.node.acted[i.Instance].Equal(time.Now())
	l.node.mu.Unlock()
	if acted { // what else is said, several instances may say at the same moment, and which is first is not the seed's
		l.point(fmt.Sprintf("%s says %s", i.Instance, i.State))
	}
	l.say("5 report "+string(i.Instance), func() {
		l.engine.Send(i)
		l.node.sim.rules.reported(l, &i)
		synctestWait()
	})
}

// kill ends the engine as kill -9 does.
func (n *node) kill() {
	if l := n.life; l != nil {
		l.dead.Store(true)
		l.cancel()
		n.killed(l)
	}
}

// killed cleans up after the process: the kernel closes its connections, and the engine's goroutines end.
func (n *node) killed(l *life) {
	if n.life != l {
		return
	}
	c := n.conn
	if c != nil && c.life == l {
		c.end(errReset)
	}
	select {
	case <-l.done:
	case <-time.After(time.Millisecond):
		n.sim.violation("the engine of %s has not ended with its context", n.id)
		<-l.done
	}
	n.life = nil
	if c != nil && c.life == l {
		c.sendUp("", c.offline)
	}
}

// crash kills the engine and starts it again later.
func (n *node) crash() {
	if n.life == nil {
		return
	}
	n.sim.tell("the engine of %s is killed", n.id)
	n.kill()
	n.sim.after(n.sim.between(500*time.Millisecond, n.sim.most(3*time.Second, 20*time.Second)), n.boot)
}

// arm has the engine crash at one of its next steps.
func (n *node) arm() {
	if n.life != nil {
		n.life.points.Store(1 + n.sim.rng.Int64N(8))
	}
}

// restart ends the engine as SIGTERM does and starts it again.
func (n *node) restart() {
	l := n.life
	if l == nil {
		return
	}
	n.sim.tell("the engine of %s is restarted", n.id)
	l.cancel()
	n.sim.after(3*time.Second, func() {
		if n.life == l {
			n.kill()
			n.boot()
		}
	})
}

// loss is how much of a node a power cut leaves.
type loss int

const (
	keepsAll loss = iota
	losesData
	losesAll
)

// powerCut ends everything on the board at once; nobody closes a connection.
func (n *node) powerCut(what loss) {
	s := n.sim
	if c := n.conn; c != nil {
		c.up.gone, c.down.gone = true, true
		s.after(s.between(0, brokerWaits), c.offline)
	}
	n.kill()
	n.boots++
	s.tell("%s loses its power%s", n.id, [...]string{"", " and its data", " and everything on its disk but its key"}[what])
	for _, w := range n.driver.Held() {
		n.driver.Crash(w.Instance, 255, false)
	}
	if what != keepsAll {
		n.disks++
		if err := wipe(n.dir); err != nil {
			s.violation("%v", err)
		}
	}
	if what == losesAll {
		n.newDriver()
	}
	n.down = false
	n.driver.Down(false)
	s.after(s.between(2*time.Second, 50*time.Second), n.boot)
}

// damage spoils one record while the engine is down.
func (n *node) damage() {
	if n.life == nil {
		return
	}
	n.sim.tell("a record on the disk of %s is damaged", n.id)
	n.kill()
	files, err := filepath.Glob(filepath.Join(n.dir, "instances", "*"))
	if err == nil && len(files) > 0 {
		n.disks++
		if err := os.WriteFile(files[n.sim.rng.IntN(len(files))], []byte("?"), 0o600); err != nil {
			n.sim.violation("%v", err)
		}
	}
	n.sim.after(n.sim.between(500*time.Millisecond, 3*time.Second), n.boot)
}

// cut holds up everything that crosses the node's link. Where that takes long both sides give the connection up.
func (n *node) cut(d time.Duration) {
	s := n.sim
	if until := time.Now().Add(d); until.After(n.cutUntil) { // what is held up keeps its order
		n.cutUntil = until
	}
	s.tell("%s is cut off for %s", n.id, d.Round(time.Millisecond))
	c := n.conn
	if c == nil {
		return
	}
	s.after(s.between(keepAlive, keepAlive+5*time.Second), func() {
		if n.cutUntil.After(time.Now()) {
			c.end(errTimeout)
		}
	})
	s.after(brokerWaits, func() {
		if n.cutUntil.After(time.Now()) {
			c.up.gone = true
			c.offline()
		}
	})
}

// outage takes the technology away for a while.
func (n *node) outage(d time.Duration) {
	s := n.sim
	drv := n.driver
	s.tell("the technology of %s does not answer for %s", n.id, d.Round(time.Millisecond))
	n.down = true
	drv.Down(true)
	s.after(d, func() {
		if n.driver == drv && n.down {
			s.tell("the technology of %s answers again", n.id)
			n.down = false
			drv.Down(false)
		}
	})
}

// accident ends a workload by itself.
func (n *node) accident() {
	for _, w := range n.driver.Held() {
		if w.Running {
			code := n.sim.rng.IntN(3)
			n.sim.tell("%s on %s exits with %d", w.Instance, n.id, code)
			n.driver.Crash(w.Instance, code, false)
			return
		}
	}
}
