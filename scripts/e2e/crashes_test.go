package e2e

import (
	"cmp"
	"encoding/json"
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
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

// What is killed in a round: each part alone and each two together, in an order that the seed decides.
var victims = [][]string{{"manager"}, {"engine"}, {"dockerd"}, {"app"}, {"manager", "engine"}, {"manager", "dockerd"}, {"manager", "app"},
	{"engine", "dockerd"}, {"engine", "app"}, {"dockerd", "app"}}

// converges is how long after the last restart every command shall be acknowledged, and how long after the last acknowledgement everything shall be
// as commanded. Most of the latter is Docker's own work for a dozen containers, so that a round that takes longer does not fail by that: it is told
// with what Docker takes by itself, just then, to start as many at once, and counted at the end. What is not there after drudges never comes.
const (
	converges = 5 * time.Second
	drudges   = 30 * time.Second
)

// crashes is a cluster whose parts are killed at random moments while commands go on.
type crashes struct {
	*lab
	world  string
	engine *exec.Cmd  // the Docker engine
	rng    *rand.Rand // the story: what is killed when; the kernel's scheduling is not in it
	took   []time.Duration
	slow   []float64 // of the rounds that took longer than converges: how often Docker's own time

	mu       sync.Mutex                   // guards what follows
	want     map[messages.JobName]desired // as acknowledged
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
	c := &crashes{world: dir, rng: rand.New(rand.NewPCG(uint64(seed), 0)), want: map[messages.JobName]desired{}}
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
	before := c.lives(c.ids()...)
	over := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(over); wg.Wait() }) // with the last commands, which wait for what was killed
	defer end()
	for who := range 2 {
		story := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
		wg.Go(func() { c.command(n, who, story, over) })
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

// command is a client that lets jobs come, change, move and go, each command a little after the one before was acknowledged, as often as not once its
// job is as commanded besides: a slow machine shall not have more and more to do.
func (c *crashes) command(round, who int, story *rand.Rand, over <-chan struct{}) {
	client := &commander{id: fmt.Sprintf("commander-%d-%d", round, who), addr: c.mqtt}
	defer client.close()
	for _, old := range c.left(fmt.Sprintf("job-%d-%d-", round-1, who)) {
		if !c.publish(client, messages.Command{Command: messages.Delete, Job: messages.Job{Name: old}, RequestID: "old-" + string(old)}) {
			continue
		}
		c.acknowledged(old, desired{}, messages.Delete)
	}
	for n := 0; ; n++ {
		name := messages.JobName(fmt.Sprintf("job-%d-%d-%d", round, who, n))
		var w desired // as accepted
		for i, verb := range []messages.Verb{messages.Deploy, messages.Replicate, messages.Deploy, messages.Move, messages.Delete} {
			next, cmd := w, messages.Command{Command: verb, Job: messages.Job{Name: name}, RequestID: fmt.Sprintf("%d-%d", n, i)}
			switch verb {
			case messages.Deploy:
				next.replicas, next.note = 1+story.IntN(2), fmt.Sprintf("%d.%d", n, i)
				cmd.Job = c.app(name, next.replicas, next.note)
			case messages.Replicate:
				next.replicas = 1 + story.IntN(2)
				cmd.Job.Replicas = &next.replicas
			case messages.Move: // of the copies that are elsewhere now; what is being replaced at this moment may go anywhere
				cmd.Worker = []messages.NodeID{c.ids()[story.IntN(2)]}
			}
			if c.publish(client, cmd) {
				w = next
				c.acknowledged(name, w, verb)
			}
			for patient := story.IntN(2) == 0; patient && !c.done(name); {
				select {
				case <-over:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(story.IntN(1500)) * time.Millisecond):
			}
		}
	}
}

// left are the jobs whose names begin so.
func (c *crashes) left(prefix string) (names []messages.JobName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.want {
		if strings.HasPrefix(string(name), prefix) {
			names = append(names, name)
		}
	}
	return names
}

func (c *crashes) acknowledged(name messages.JobName, w desired, verb messages.Verb) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if verb == messages.Delete {
		delete(c.want, name)
		return
	}
	c.want[name] = w
}

// commander is a client whose acknowledgements can be trusted. Not paho's own reconnecting: when it sends a message again it calls the token of
// the first time complete, without an acknowledgement and without an error.
type commander struct {
	id, addr string
	client   mqtt.Client // nil until there is a connection
	results  chan messages.Result
}

func (c *commander) close() {
	if c.client != nil {
		c.client.Disconnect(0)
		c.client = nil
	}
}

// connect makes a connection where there is none.
func (c *commander) connect() bool {
	if c.client != nil {
		return true
	}
	c.results = make(chan messages.Result, 64)
	results := c.results
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + c.addr).SetClientID(c.id).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second))
	done := func(t mqtt.Token) bool { return t.WaitTimeout(5*time.Second) && t.Error() == nil }
	if done(client.Connect()) && done(client.Subscribe("control/results/+", 1, func(_ mqtt.Client, m mqtt.Message) {
		var r messages.Result
		if json.Unmarshal(m.Payload(), &r) == nil && strings.HasPrefix(r.RequestID, c.id) {
			select {
			case results <- r:
			default: // repeats that nobody waits for
			}
		}
	})) {
		c.client = client
		return true
	}
	client.Disconnect(0)
	return false
}

// publish sends a command and returns its first Result. It reports whether it got that far: then the command has been acknowledged.
func (c *commander) publish(cmd messages.Command) (messages.Result, bool) {
	if !c.connect() {
		return messages.Result{}, false
	}
	token := c.client.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(), 1, false, messages.Encode(cmd))
	late := time.After(5 * time.Second)
	for token.WaitTimeout(5*time.Second) && token.Error() == nil {
		select {
		case r := <-c.results:
			if r.RequestID == cmd.RequestID {
				return r, true
			}
			continue
		case <-time.After(100 * time.Millisecond):
			if c.client.IsConnectionOpen() {
				continue
			}
		case <-late:
		}
		break
	}
	c.close()
	return messages.Result{}, false
}

// publish repeats a command until it is answered, and reports whether it was accepted. One that nobody has answered is repeated as it was, which
// does nothing where it had come through. One that was refused because a node was just away is asked again as another.
func (c *crashes) publish(client *commander, cmd messages.Command) bool {
	name := cmd.RequestID
	for n, end := 0, time.Now().Add(soon); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		cmd.RequestID = fmt.Sprintf("%s-%s.%d", client.id, name, n)
		r, answered := client.publish(cmd)
		switch {
		case !answered:
		case r.Phase != messages.Refused:
			return true
		case r.Code == messages.NoNodeMatches, r.Code == messages.NoTechnology: // of an engine that began while its dockerd was killed
			n++
			time.Sleep(100 * time.Millisecond) // until it is back
		case r.Code == messages.Unavailable: // a move while copies are replaced
			return false
		default:
			c.errorf("%s %s: %s %s %s", cmd.Command, cmd.Job.Name, r.Phase, r.Code, r.Message)
			return false
		}
	}
	c.errorf("never accepted: %s %s", cmd.Command, cmd.Job.Name)
	return false
}

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
		c.slow = append(c.slow, took.Seconds()/floor.Seconds())
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
	if len(wrong) > 0 {
		return wrong
	}
	found, err := labelled(c.t, "skerry.instance", true)
	if err != nil {
		return []string{"docker: " + err.Error()}
	}
	held := map[string]string{} // state by node and instance, without what only holds their networks
	for _, f := range found {
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
	c.follower.mu.Lock()
	defer c.follower.mu.Unlock()
	for name, w := range want {
		s, ok := c.jobs[name]
		if !ok || !w.is(s) {
			say("%s is %s, %d of %d healthy, %d instances %q, want %q %q", name, s.State, s.Healthy, w.replicas, len(s.Instances), s.Reason, w.note, brief(s))
		}
		for _, i := range s.Instances {
			running = append(running, string(i.Node)+" "+string(i.Instance))
		}
	}
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
	c.follower.mu.Lock()
	defer c.follower.mu.Unlock()
	s, ok := c.jobs[name]
	return ok == wanted && (!ok || want.is(s))
}

// is says whether a job is what it shall be.
func (d desired) is(s messages.JobStatus) bool {
	return s.State == messages.JobRunning && s.Healthy == d.replicas && len(s.Instances) == d.replicas && s.Spec.Environment["NOTE"] == d.note
}

// brief is what an explanation needs of a job's instances.
func brief(s messages.JobStatus) (text []string) {
	for _, i := range s.Instances {
		text = append(text, fmt.Sprintf("%s on %s %s run %t attempt %d healthy %t %s", i.Instance, i.Node, i.State, i.Run, i.Attempt, i.Healthy, i.Reason))
	}
	return text
}
