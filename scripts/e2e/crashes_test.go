package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/go-connections/nat"

	"skerry.internal/messages"
)

// What is killed in a round: each part alone and each two together, in an order that the seed decides.
var victims = [][]string{{"manager"}, {"engine"}, {"dockerd"}, {"app"}, {"manager", "engine"}, {"manager", "dockerd"}, {"manager", "app"},
	{"engine", "dockerd"}, {"engine", "app"}, {"dockerd", "app"}}

// converges is how long after the last restart every command shall be acknowledged, and how long after the last acknowledgement everything shall be
// as commanded. Most of the latter is Docker's own work for a dozen containers, so that a round that takes longer is told with what Docker takes by itself,
// just then, to start as many at once, and counted at the end; in make crash, which runs alone, it fails at more than docker times that. What is not there
// after drudges never comes.
const (
	converges = 5 * time.Second
	docker    = 2.0
	drudges   = 30 * time.Second
)

// crashes is a cluster whose parts are killed at random moments while commands go on.
type crashes struct {
	*lab
	world  string
	engine *exec.Cmd  // the Docker engine
	rng    *rand.Rand // the story: what is killed when; the kernel's scheduling is not in it
	took   []time.Duration
	alone  bool      // nothing else runs beside it
	slow   []float64 // of the rounds that took longer than converges: how often Docker's own time

	mu       sync.Mutex                   // guards what follows
	want     map[messages.JobName]desired // as acknowledged
	asked    map[messages.JobName][]taken // what was accepted, in its order
	life     int                          // of the manager: how often it was killed
	failures []string
}

func (c *crashes) errorf(format string, args ...any) {
	c.t.Helper()
	text := fmt.Sprintf(format, args...)
	c.t.Error(text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, text)
}

// desired is what a job shall be.
type desired struct {
	replicas int
	note     string // in the environment, so that a lost change is seen
	last     taken  // the command that made it so
}

// numberOf returns a number from the environment.
func numberOf(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// Whatever is killed, and when: what need not end goes on, the rest comes back, nothing runs twice, nothing is forgotten, and what was
// acknowledged is done. SKERRY_CRASH_SEED tells a story again, SKERRY_CRASH_ROUNDS how long it is.
func TestCrashRounds(t *testing.T) {
	dir, inside := world(t)
	if !inside {
		return
	}
	seed, rounds := numberOf("SKERRY_CRASH_SEED", int(rand.Uint32())), numberOf("SKERRY_CRASH_ROUNDS", 0)
	t.Logf("SKERRY_CRASH_SEED=%d", seed)
	c := &crashes{world: dir, rng: rand.New(rand.NewPCG(uint64(seed), 0)), want: map[messages.JobName]desired{}, asked: map[messages.JobName][]taken{}}
	c.alone = rounds > 0
	at := 0
	t.Cleanup(func() { // after the programs' logs, as the last that is read
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.Failed() {
			t.Logf("SKERRY_CRASH_SEED=%d failed in round %d of %v: %s", seed, at, c.took, cmp.Or(strings.Join(c.failures, "; "), "see above"))
		}
	})
	c.engine = dockerd(t, dir)
	t.Cleanup(func() { _ = c.engine.Process.Kill(); _ = c.engine.Wait() })
	c.lab = newLab(t)
	for _, name := range []string{"a", "b"} {
		c.node(name, networkOf(name)...)
	}
	c.logLine(c.nodes[c.id("a")], 0, "overlay up")
	c.settle()
	order := c.rng.Perm(len(victims))
	for round := range cmp.Or(rounds, 3) {
		at = round
		if round > 0 && round%len(victims) == 0 {
			order = c.rng.Perm(len(victims))
		}
		c.round(round, victims[order[round%len(victims)]])
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "dockerd.log"))
			t.Fatalf("seed %d, round %d; dockerd: %s", seed, round, text[max(0, len(text)-4000):])
		}
	}
	moves, held := c.moves()
	t.Logf("%d moves were accepted, %d of them of jobs that were settled and held to their target", moves, held)
	slices.Sort(c.took)
	t.Logf("%d rounds, converged after the last acknowledgement: median %s, longest %s; %d took longer than %s, %.2f times as long as Docker alone",
		len(c.took), c.took[len(c.took)/2], c.took[len(c.took)-1], len(c.slow), converges, c.slow)
}

// networkOf are an engine's flags: one node is in the overlay, with two containers an instance, the other one has Docker's own network.
func networkOf(name string) []string {
	if name == "a" {
		return []string{"--overlay", "auto"}
	}
	return nil
}

// settle deploys what is there all the time: a service that is started again only after a failure, and one that always is.
func (c *crashes) settle() {
	c.t.Helper()
	for _, policy := range []messages.RestartPolicy{messages.RestartOnFailure, messages.RestartAlways} {
		j := c.app(messages.JobName("steady-"+string(policy)), 2, "")
		j.Restart.Policy = policy
		c.do(deployCommand(j))
		c.want[j.Name] = desired{replicas: 2}
	}
}

// app is a job that comes back soon, however often it is killed.
func (c *crashes) app(name messages.JobName, replicas int, note string) messages.Job {
	j := app(name, replicas, map[string]string{"NOTE": note})
	j.Restart.Backoff, j.Restart.MaxBackoff = messages.Duration(100*time.Millisecond), messages.Duration(500*time.Millisecond)
	j.Update.Stable = messages.Duration(100 * time.Millisecond)
	return j
}

// round kills, starts again what was killed, and looks at what has become of it.
func (c *crashes) round(n int, what []string) {
	c.t.Helper()
	defer c.tellFailed(n)
	before := c.lives(c.ids()...)
	var clients [2]*commander
	for who := range clients {
		clients[who] = &commander{id: fmt.Sprintf("commander-%d-%d", n, who), addr: c.mqtt, follower: c.follower}
		defer clients[who].close() // not before their last Results are here
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(over); wg.Wait() }) // with the last commands, which wait for what was killed
	defer end()
	for who, client := range clients {
		story := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
		wg.Go(func() { c.command(client, n, who, story, over) })
	}
	killed := c.kill(what)
	restarted := time.Now()
	end()
	since := time.Now()
	if took := since.Sub(restarted); took > converges {
		c.errorf("round %d, killed %v: the last command was acknowledged %s after the last restart, %s at most", n, what, took, converges)
	}
	for id := range killed {
		c.awaitDeath(id, before[id])
	}
	c.converge(since)
	after := c.lives(c.ids()...)
	for id, life := range before {
		if strings.HasPrefix(string(id), "steady-") && (life == after[id]) == (killed[id] || killed["*"]) {
			c.errorf("round %d, killed %v: %s was %s and is %s", n, what, id, life, after[id])
		}
	}
	c.t.Logf("round %d: killed %v, all commands acknowledged %s after the last restart, converged %s after that, %d containers",
		n, what, since.Sub(restarted).Round(time.Millisecond), c.took[len(c.took)-1].Round(time.Millisecond), len(after))
}

// crashManager counts the lives of the manager. What was asked for at this moment counts as asked for in the earlier one.
func (c *crashes) crashManager() {
	c.t.Helper()
	c.lab.crashManager()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life++
}

// kill kills what is named, each at a random moment, and starts it again after another one. It returns which instances that takes along.
func (c *crashes) kill(what []string) map[messages.InstanceID]bool {
	c.t.Helper()
	type moment struct {
		at time.Duration
		do func()
	}
	within := func(from, to int) time.Duration { return time.Duration(from+c.rng.IntN(to-from)) * time.Millisecond }
	var story []moment
	gone := map[messages.InstanceID]bool{}
	for _, part := range what {
		at := within(200, 1500)
		back := at + within(1, 1000)
		switch part {
		case "manager":
			story = append(story, moment{at, c.crashManager}, moment{back, c.startManager})
		case "engine":
			name := []string{"a", "b"}[c.rng.IntN(2)]
			story = append(story, moment{at, func() { c.lab.kill(c.nodes[c.id(name)]) }}, moment{back, func() { c.startNode(name, networkOf(name)...) }})
		case "dockerd":
			gone["*"] = true
			story = append(story, moment{at, func() { _ = c.engine.Process.Kill(); _ = c.engine.Wait() }},
				moment{back, func() { c.engine = dockerd(c.t, c.world) }})
		case "app":
			pick := c.rng.Uint64()
			story = append(story, moment{at, func() { gone[c.killApp(pick)] = true }})
		}
	}
	slices.SortStableFunc(story, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	start := time.Now()
	for _, m := range story {
		time.Sleep(m.at - time.Since(start)) // the moments are the test
		m.do()
	}
	return gone
}

// awaitDeath waits until Docker has noticed that the container of an instance has ended, or has another one: all that follows looks at what Docker says.
func (c *crashes) awaitDeath(id messages.InstanceID, life string) {
	c.t.Helper()
	name, _, _ := strings.Cut(life, " ")
	if name == "" { // of all, or of none
		return
	}
	c.eventually(string(id)+" has ended", func() bool {
		found, err := dockerAPI(c.t).ContainerInspect(c.t.Context(), name)
		return cerrdefs.IsNotFound(err) || err == nil && (!found.State.Running || lifeOf(found) != life)
	})
}

// killApp kills the program of one of the steady containers, and returns its instance.
func (c *crashes) killApp(pick uint64) messages.InstanceID {
	pids := map[string]int{} // by instance; not by Docker, which may be away
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		env, _ := os.ReadFile(path)
		for v := range strings.SplitSeq(string(env), "\x00") {
			if id, ok := strings.CutPrefix(v, "SKERRY_INSTANCE=steady-"); ok {
				pids["steady-"+id], _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			}
		}
	}
	ids := slices.Sorted(maps.Keys(pids))
	if len(ids) == 0 {
		return "none"
	}
	id := ids[pick%uint64(len(ids))]
	_ = syscall.Kill(pids[id], syscall.SIGKILL)
	return messages.InstanceID(id)
}

func (c *crashes) ids() []messages.NodeID { return []messages.NodeID{c.id("a"), c.id("b")} }

// converge waits until everything is as it shall be, says what is not where that takes too long, and sees that it stays so.
func (c *crashes) converge(since time.Time) {
	c.t.Helper()
	var late []string // what was wrong when the time was up
	for wrong := c.wrong(); len(wrong) > 0; wrong = c.wrong() {
		if time.Since(since) > drudges {
			c.errorf("not converged after %s: %s", drudges, strings.Join(wrong, "; "))
			c.t.FailNow()
		}
		if late == nil && time.Since(since) > converges {
			late = wrong
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(since)
	c.took = append(c.took, took)
	time.Sleep(300 * time.Millisecond) // in which nothing may happen
	if again := c.wrong(); len(again) > 0 {
		c.errorf("converged, and then: %s", strings.Join(again, "; "))
	}
	if took > converges {
		n := c.started(since)
		floor := c.floor(n)
		times := took.Seconds() / floor.Seconds()
		if c.slow = append(c.slow, times); c.alone && times > docker {
			c.errorf("converged after %s only, %.1f times what Docker takes by itself", took, times)
		}
		c.t.Logf("converged after %s; Docker alone starts %d containers at once in %s; after %s there was: %s", took, n, floor, converges, strings.Join(late, "; "))
	}
}

// started counts the containers that were started since then, as far back as Docker remembers.
func (c *crashes) started(since time.Time) (n int) {
	c.t.Helper()
	at := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	all, errs := dockerAPI(c.t).Events(c.t.Context(), events.ListOptions{Since: at(since), Until: at(time.Now()),
		Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("event", "start"))})
	for {
		select {
		case <-all:
			n++
		case err := <-errs:
			if !errors.Is(err, io.EOF) {
				c.t.Fatal(err)
			}
			return n
		}
	}
}

// floor is how long Docker by itself takes to make and start so many containers like those of the jobs at once.
func (c *crashes) floor(n int) time.Duration {
	c.t.Helper()
	cli, ctx, init := dockerAPI(c.t), c.t.Context(), true
	ids, begin := make([]string, n), time.Now()
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			made, err := cli.ContainerCreate(ctx, &container.Config{Image: testImage, ExposedPorts: nat.PortSet{"8080/tcp": {}}},
				&container.HostConfig{Init: &init, PortBindings: nat.PortMap{"8080/tcp": {{}}}}, nil, nil, "")
			if ids[i] = made.ID; err == nil {
				err = cli.ContainerStart(ctx, made.ID, container.StartOptions{})
			}
			if err != nil {
				c.errorf("a container of the floor: %v", err)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	for _, id := range slices.DeleteFunc(ids, func(id string) bool { return id == "" }) {
		wg.Go(func() {
			if err := cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true}); err != nil {
				c.errorf("a container of the floor: %v", err)
			}
		})
	}
	wg.Wait()
	return took
}

// wrong compares what was acknowledged with what the manager says, and once that is right with what Docker has.
func (c *crashes) wrong() []string {
	running, wrong := c.said()
	if wrong = append(wrong, c.owed()...); len(wrong) > 0 {
		return wrong
	}
	found, err := labelled(c.t, "skerry.instance", true)
	if err != nil {
		return []string{"docker: " + err.Error()}
	}
	held := map[string]string{} // state by node and instance, without what only holds their networks
	for _, f := range found {
		if f.State == "removing" { // where its end was heard of after its removal, Docker lists for ever what it does not have
			if _, err := dockerAPI(c.t).ContainerInspect(c.t.Context(), f.ID); cerrdefs.IsNotFound(err) {
				continue
			}
		}
		if node := f.Labels["skerry.node"]; f.Labels["skerry.role"] == "" && strings.HasPrefix(node, c.prefix) {
			held[node+" "+f.Labels["skerry.instance"]] = f.State
		}
	}
	for _, key := range running {
		if held[key] != "running" {
			wrong = append(wrong, fmt.Sprintf("%s is said to run and is %q", key, held[key]))
		}
		delete(held, key)
	}
	for key, state := range held {
		wrong = append(wrong, fmt.Sprintf("%s is %s and nobody wants it", key, state))
	}
	return wrong
}

// said returns the node and instance of each copy that the manager says to run, and what it says that is not as acknowledged.
func (c *crashes) said() (running, wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !c.client.IsConnectionOpen() {
		say("the client is not connected")
	}
	c.mu.Lock()
	want := maps.Clone(c.want)
	c.mu.Unlock()
	for name, w := range want {
		s, ok := c.job(name)
		if !ok || !c.is(s, w) {
			say("%s is %s, %d of %d healthy, %d instances %q, rev %d, want %q of rev %d on %q %q", name, s.State, s.Healthy, w.replicas, len(s.Instances), s.Reason, s.Rev,
				w.note, w.last.rev, w.last.on, brief(s))
		}
		for _, i := range s.Instances {
			running = append(running, string(i.Node)+" "+string(i.Instance))
		}
	}
	c.follower.mu.Lock()
	defer c.follower.mu.Unlock()
	for name, s := range c.jobs {
		if _, ok := want[name]; !ok {
			say("%s is %s and was deleted", name, s.State)
		}
	}
	for _, id := range c.ids() {
		if c.boards[id].State != messages.NodeOnline {
			say("%s is %s", id, c.boards[id].State)
		}
	}
	return running, wrong
}

// done says whether the manager says of a job what was acknowledged last.
func (c *crashes) done(name messages.JobName) bool {
	c.mu.Lock()
	want, wanted := c.want[name]
	c.mu.Unlock()
	s, ok := c.job(name)
	return ok == wanted && (!ok || c.is(s, want))
}

// is says whether a job is what it shall be, and where, unless a Result has said why it is not there.
func (c *crashes) is(s messages.JobStatus, d desired) bool {
	if r := c.lastResult(d.last.request); elsewhere(s.Instances, d.last.on) && (r == nil || r.Phase != messages.Failed) {
		return false
	}
	return s.State == messages.JobRunning && s.Healthy == d.replicas && len(s.Instances) == d.replicas && s.Rev >= d.last.rev && s.Spec.Environment["NOTE"] == d.note
}

// brief is what an explanation needs of a job's instances.
func brief(s messages.JobStatus) (text []string) {
	for _, i := range s.Instances {
		text = append(text, fmt.Sprintf("%s on %s %s run %t attempt %d healthy %t %s", i.Instance, i.Node, i.State, i.Run, i.Attempt, i.Healthy, i.Reason))
	}
	return text
}
