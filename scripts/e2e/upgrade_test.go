package e2e

import (
	"strings"
	"syscall"
	"testing"

	"skerry.internal/messages"
)

// A Docker engine that is stopped in good order, as for an upgrade, tells every program to end, and a server then ends with 0. That is not its own
// end: once the engine is back everything runs again, whatever its restart policy is, and though the node engine was restarted meanwhile. What is
// deployed meanwhile is taken and waits for it.
func TestDockerIsUpgraded(t *testing.T) {
	dir, inside := world(t)
	if !inside {
		return
	}
	engine := dockerd(t, dir)
	t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
	l := newLab(t)
	a := l.node("a")
	jobs := []messages.JobName{"always", "on-failure", "never"}
	for _, name := range jobs {
		j := app(name, 1, nil)
		j.Restart.Policy = messages.RestartPolicy(name)
		l.do(deployCommand(j))
	}
	for attempt, how := range []string{"", "the engine is killed before", "the engine is killed in between"} {
		before := l.lives(a)
		if attempt == 1 {
			l.kill(l.nodes[a])
		}
		if err := engine.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = engine.Wait()
		if attempt == 2 {
			l.kill(l.nodes[a])
		}
		engine = dockerd(t, dir)
		if attempt > 0 {
			l.startNode("a")
		}
		for _, name := range jobs {
			l.instance(name, "runs again: "+how, func(i messages.InstanceReport) bool {
				return i.State == messages.Running && i.Healthy && i.Attempt == attempt+1
			})
		}
		after := l.lives(a)
		for id, life := range before {
			if after[id] == "" || after[id] == life {
				t.Errorf("%s %s: was %s and is %s", id, how, life, after[id])
			}
		}
	}

	l.crashNode(a)
	if err := engine.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = engine.Wait()
	l.startNode("a")
	l.eventually("a is back without Docker", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	if r := l.first(l.send(deployCommand(app("meanwhile", 1, nil)))); r.Phase != messages.Accepted {
		t.Fatalf("a job for an engine that began without Docker: got %s %s %q, want accepted", r.Phase, r.Code, r.Message)
	}
	l.instance("meanwhile", "says what it waits for", func(i messages.InstanceReport) bool { return strings.Contains(i.Reason, "docker does not answer") })
	engine = dockerd(t, dir)
	l.waitUp("meanwhile")
}
