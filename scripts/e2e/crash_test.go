package e2e

import (
	"fmt"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"skerry.internal/messages"
)

// lives returns, by instance, which container runs and since when: a container that was restarted or replaced has another life.
func (l *lab) lives(nodes ...messages.NodeID) map[messages.InstanceID]string {
	l.t.Helper()
	found := map[messages.InstanceID]string{}
	for instance, id := range l.containers(nodes...) {
		c, err := dockerAPI(l.t).ContainerInspect(l.t.Context(), id)
		switch {
		case err == nil:
			found[instance] = lifeOf(c)
		case !cerrdefs.IsNotFound(err): // it may have gone between the two calls
			l.t.Fatal(err)
		}
	}
	return found
}

func lifeOf(c container.InspectResponse) string {
	return fmt.Sprintf("%s %s %d", c.ID, c.State.StartedAt, c.RestartCount)
}

// crashNode ends an engine as a power cut does and waits until its manager has noticed.
func (l *lab) crashNode(id messages.NodeID) {
	l.t.Helper()
	l.kill(l.nodes[id])
	l.eventually(string(id)+" is away", func() bool { s, _ := l.nodeStatus(id); return s.State != messages.NodeOnline })
}

// crashManager ends the manager as a power cut does, and forgets what the lab's client has heard of it.
func (l *lab) crashManager() {
	l.t.Helper()
	l.kill(l.manager)
	l.eventually("the lab's client has noticed", func() bool { return !l.client.IsConnectionOpen() })
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.jobs)
	clear(l.boards)
	l.history = nil
}

// waitUp waits until every copy of the job runs and is healthy.
func (l *lab) waitUp(name messages.JobName) messages.JobStatus {
	l.t.Helper()
	return l.waitJob(name, "is up", func(s messages.JobStatus) bool {
		return s.State == messages.JobRunning && s.Healthy == s.Replicas && len(s.Instances) == s.Replicas
	})
}

// settle sends a command that changes nothing: once its last Result is here, all that was under way before has happened.
func (l *lab) settle(name messages.JobName, replicas int) {
	l.t.Helper()
	l.do(messages.Command{Command: messages.Replicate, Job: messages.Job{Name: name, Replicas: &replicas}})
}

// Engine and manager can each be killed while workloads run: these go on as they are, and are under control again afterwards.
func TestCrashTouchesNoWorkload(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	l.do(deployCommand(app("web", 2, nil)))
	before := l.lives(a)
	for _, crash := range []struct {
		of              string
		engine, manager bool
	}{{"engine", true, false}, {"manager", false, true}, {"both", true, true}} {
		if crash.manager {
			l.crashManager()
		}
		if crash.engine {
			l.kill(l.nodes[a])
		}
		if during := l.lives(a); !maps.Equal(before, during) {
			t.Fatalf("with %s down: %v, before %v", crash.of, during, before)
		}
		if crash.manager {
			l.startManager()
		} else {
			l.eventually("a is away", func() bool { s, _ := l.nodeStatus(a); return s.State != messages.NodeOnline })
		}
		if crash.engine {
			l.startNode("a")
		}
		l.eventually("a is back", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
		l.waitUp("web")
		l.settle("web", 2)
		if after := l.lives(a); !maps.Equal(before, after) {
			t.Fatalf("after the crash of %s: %v, before %v", crash.of, after, before)
		}
	}
	l.do(messages.Command{Command: messages.Replicate, Job: messages.Job{Name: "web", Replicas: new(1)}})
	if left := l.lives(a); len(left) != 1 || left["web.0.0"] != before["web.0.0"] {
		t.Errorf("after replicate: %v, before %v", left, before)
	}
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	if left := l.lives(a); len(left) != 0 {
		t.Errorf("after delete: %v", left)
	}
}

// An app that ends is started again, however it ended, and its status says how.
func TestAppComesBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	killed, crashing := app("killed", 1, nil), app("crashing", 1, map[string]string{"EXIT_AFTER_MS": "1500", "EXIT_CODE": "3"})
	for _, j := range []*messages.Job{&killed, &crashing} {
		j.Restart.Backoff = messages.Duration(200 * time.Millisecond)
	}
	l.do(deployCommand(killed))
	before := l.lives(a)["killed.0.0"]
	l.docker("kill", l.containers(a)["killed.0.0"])
	back := l.instance("killed", "runs again", func(i messages.InstanceReport) bool {
		return i.State == messages.Running && i.Healthy && i.Attempt == 1
	})
	if exitCode(back) != 137 || back.OOM {
		t.Errorf("after a kill: exit code %d, oom %t, want 137 and no oom", exitCode(back), back.OOM)
	}
	if after := l.lives(a)["killed.0.0"]; after == "" || after == before {
		t.Errorf("before %q, after %q: want another life", before, after)
	}
	l.send(deployCommand(crashing))
	again := l.instance("crashing", "runs for the third time", func(i messages.InstanceReport) bool { return i.State == messages.Running && i.Attempt == 2 })
	if exitCode(again) != 3 {
		t.Errorf("after a crash: exit code %d, want 3", exitCode(again))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.history, func(s messages.JobStatus) bool {
		return s.Job == "crashing" && s.Instances[0].State == messages.Pending && strings.Contains(s.Instances[0].Reason, "exited with code 3")
	}) {
		t.Error("no status between two attempts said why it waits")
	}
}

// A node that starts where no manager answers starts what it is to run.
func TestNodeStartsAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	for _, name := range []messages.JobName{"ended", "removed"} {
		l.do(deployCommand(app(name, 1, nil)))
	}
	before := l.lives(a)
	l.kill(l.nodes[a])
	l.crashManager()
	held := l.containers(a)
	l.docker("kill", held["ended.0.0"])
	l.docker("rm", "-f", held["removed.0.0"])
	if left := l.containers(a); len(left) != 0 {
		t.Fatalf("still running: %v", left)
	}
	l.startNode("a")
	l.eventually("both run again without a manager", func() bool { return len(l.containers(a)) == 2 })
	alone := l.lives(a)
	for id, life := range before {
		if alone[id] == "" || alone[id] == life {
			t.Errorf("%s: before %q, after %q: want another life", id, life, alone[id])
		}
	}
	l.startManager()
	l.waitUp("ended")
	l.waitUp("removed")
	if after := l.lives(a); !maps.Equal(alone, after) {
		t.Errorf("the manager's return touched something: %v, before %v", after, alone)
	}
}

// What a client has seen acknowledged is carried out, though the manager was killed at that moment.
func TestAcknowledgedCommandIsKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	for i := range 3 {
		name := messages.JobName(fmt.Sprintf("job-%d", i))
		l.send(deployCommand(app(name, 1, nil)))
		l.crashManager()
		l.startManager()
		l.waitUp(name)
	}
	l.send(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "job-1"}})
	l.crashManager()
	l.startManager()
	l.waitUp("job-0")
	l.eventually("job-1 is gone and the others run", func() bool {
		held := l.containers(a)
		return len(held) == 2 && held["job-1.0.0"] == ""
	})
}

// An instance whose node is lost runs elsewhere; when the node comes back, one copy remains, and which one is the job's choice.
func TestLostNodeComesBack(t *testing.T) {
	for _, keep := range []messages.OnReturn{messages.KeepNewest, messages.KeepOriginal} {
		t.Run(string(keep), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "--lost-after", "2s")
			l.comesBack(keep, func() { l.kill(l.nodes[l.id("a")]) }, func() { l.startNode("a") })
		})
		t.Run("cut off, "+string(keep), func(t *testing.T) { // its engine goes on, and nobody tells it or the manager that nothing gets through
			t.Parallel()
			l := emptyHosts(t, "a", "b")
			l.flags = append(l.flags, "--lost-after", "2s")
			l.startManager()
			l.follow()
			rules := func(change string) {
				l.hosts["a"].Run("iptables", change, "INPUT", "-i", "eth0", "-j", "DROP")
				l.hosts["a"].Run("iptables", change, "OUTPUT", "-o", "eth0", "-j", "DROP")
			}
			l.comesBack(keep, func() { rules("-A") }, func() { rules("-D") })
		})
	}
}

// comesBack deploys an instance on a node that goes away and comes back, and holds what is left to on_return.
func (l *lab) comesBack(keep messages.OnReturn, goes, returns func()) {
	l.t.Helper()
	a, b := l.node("a"), l.node("b")
	j := app("web", 1, nil)
	j.OnReturn = keep
	l.do(deployCommand(j))
	original := l.lives(a, b)
	if len(original) != 1 || len(l.lives(a)) != 1 {
		l.t.Fatalf("want it on %s: %v", a, original)
	}
	began := time.Now()
	goes()
	l.instance("web", "runs on the other node", func(i messages.InstanceReport) bool {
		return i.Node == b && i.Instance == "web.0.1" && i.State == messages.Running && i.Healthy
	})
	if took := time.Since(began); took < 2*time.Second {
		l.t.Errorf("replaced after %s, want no sooner than lost_after", took)
	}
	both := l.lives(a, b)
	if len(both) != 2 || both["web.0.0"] != original["web.0.0"] {
		l.t.Fatalf("while the node is away its container is to go on: %v, before %v", both, original)
	}
	returns()
	want := map[messages.InstanceID]string{"web.0.1": both["web.0.1"]}
	if keep == messages.KeepOriginal {
		want = original
	}
	l.eventually("one copy remains", func() bool { return maps.Equal(l.lives(a, b), want) })
	l.waitUp("web")
	l.settle("web", 1)
	if after := l.lives(a, b); !maps.Equal(after, want) {
		l.t.Errorf("got %v, want %v", after, want)
	}
}

// A link that is back before lost_after is over changes nothing: neither one that broke, nor one whose node began anew.
func TestLinkFlap(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := newLab(t, "--lost-after", "30s")
	a, b := l.node("a"), l.node("b")
	l.do(deployCommand(app("web", 2, nil)))
	before, rev := l.lives(a, b), l.waitUp("web").Rev
	_, port, err := net.SplitHostPort(l.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		sessions := fileSize(l.nodes[a].log)
		// Not the lab's own client: the kernel ends the connections of engine a's process alone.
		l.cutLinks(a, port)
		l.logLine(l.nodes[a], sessions, "in session")
	}
	l.crashNode(b)
	l.startNode("b")
	for _, id := range []messages.NodeID{a, b} {
		l.eventually(string(id)+" is back", func() bool { s, _ := l.nodeStatus(id); return s.State == messages.NodeOnline })
	}
	l.settle("web", 2)
	if s := l.waitUp("web"); s.Rev != rev || !maps.Equal(before, l.lives(a, b)) {
		t.Errorf("rev %d and %v, before %d and %v", s.Rev, l.lives(a, b), rev, before)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.history {
		for _, i := range s.Instances {
			if i.State == messages.Lost || i.Generation != 0 || i.Attempt != 0 {
				t.Errorf("a status said %+v", i)
			}
		}
	}
}

// cutLinks makes the kernel end the connections of a node's engine to the broker.
func (l *lab) cutLinks(id messages.NodeID, port string) {
	l.t.Helper()
	out, err := exec.Command("ss", "-Htnp", "dport", "=", ":"+port).CombinedOutput()
	if err != nil {
		l.t.Fatalf("ss: %v: %s", err, out)
	}
	cut := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.Contains(line, fmt.Sprintf("pid=%d,", l.nodes[id].cmd.Process.Pid)) {
			continue
		}
		_, from, _ := net.SplitHostPort(fields[3])
		if out, err := exec.Command("ss", "-K", "-tn", "sport", "=", ":"+from, "dport", "=", ":"+port).CombinedOutput(); err != nil {
			l.t.Fatalf("ss -K: %v: %s", err, out)
		}
		cut++
	}
	if cut == 0 {
		l.t.Fatalf("no connection of %s found among %q", id, out)
	}
}
