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
}

// life is one process of a node engine.
type life struct {
	node   *node
	number int
	disk   int
	first  map[messages.InstanceID]uint64 // where the bug is that seq is forgotten; guarded by the node's mu
	engine *enginesim.Engine
	dead   atomic.Bool // nothing of what it still does counts
	armed  atomic.Bool // it crashes at one of its next points
	cancel context.CancelFunc
	done   chan struct{}
}

func newNode(s *Sim, id messages.NodeID, dir string) *node {
	n := &node{sim: s, id: id, dir: dir, calls: map[string]int{}, starts: map[messages.InstanceID]int{}}
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
	l.point("before the " + what + " of " + string(id))
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
	l.engine, err = enginesim.New(enginesim.Config{Name: n.id, Data: n.dir, BootID: fmt.Sprintf("boot-%d", n.boots), Driver: workloads{n.driver, l}, Write: l.write,
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
		if !l.dead.Load() {
			do()
		}
	})
}

// crashOneIn is how many points an engine that is armed passes, in the mean, until it crashes: about those of one instance that comes up.
const crashOneIn = 12

// point is a place at which the engine may crash: its goroutine ends right there. Which point that is its words and the seed decide, not how many
// came before it, for of two at the same moment the seed does not say which is first. What others do at that moment was before the crash.
func (l *life) point(what string) {
	n := l.node
	if l.dead.Load() {
		runtime.Goexit()
	}
	if !l.armed.Load() {
		return
	}
	count := n.count("crash", what)
	if n.sim.fixed(0, crashOneIn, "crash", n.id, what, count) != 0 {
		return
	}
	l.say("0 crash "+what, func() {
		if !l.armed.CompareAndSwap(true, false) {
			return
		}
		n.sim.tell("the engine of %s crashes %s", n.id, what)
		if n.sim.chance(2) {
			n.dies(l)
			return
		}
		n.sim.after(crashDelay, func() { n.dies(l) })
	})
	runtime.Goexit()
}

// crashDelay is how long a write or a call that does not return is ahead of the end of the process: what has been said before is on its way then. It
// is shorter than any call to the technology.
const crashDelay = 200 * time.Microsecond

// dies ends the engine at a point, and starts it again later.
func (n *node) dies(l *life) {
	if n.life == l {
		n.kill()
		n.sim.after(n.sim.between(500*time.Millisecond, n.sim.most(3*time.Second, 20*time.Second)), n.boot)
	}
}

// write makes something durable; the engine may crash before that and after it.
func (l *life) write(what string, do func() error) error {
	l.point("before it writes " + what)
	if err := l.node.sim.bug.late(l, do); err != nil {
		return err
	}
	l.point("once it has written " + what)
	return nil
}

// workloads is the technology as one life of an engine has it, which may crash once a call has had its effect.
type workloads struct {
	*enginesim.Driver
	life *life
}

// Start makes a workload run.
func (w workloads) Start(ctx context.Context, spec enginesim.Spec) (enginesim.Workload, error) {
	made, err := w.Driver.Start(ctx, spec)
	if err == nil {
		w.life.point("after the start of " + string(spec.Instance))
	}
	return made, err
}

// Stop ends a workload.
func (w workloads) Stop(ctx context.Context, id messages.InstanceID, stop messages.Stop) error {
	err := w.Driver.Stop(ctx, id, stop)
	if err == nil {
		w.life.point("after the stop of " + string(id))
	}
	return err
}

// report takes a status from the set to the outbox, one by one in a fixed order.
func (l *life) report(i messages.InstanceStatus) {
	l.point(fmt.Sprintf("before %s says %s", i.Instance, i.State))
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

// arm has the engine crash at one of its next points.
func (n *node) arm() {
	if n.life != nil {
		n.life.armed.Store(true)
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
