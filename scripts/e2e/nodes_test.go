package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

// buildSkerry builds the operator's command into the lab and returns a function that runs it and returns what it printed.
func (l *lab) buildSkerry() func(args ...string) (string, error) {
	l.t.Helper()
	path := filepath.Join(l.dir, "skerry")
	build := exec.Command("go", "build", "-o", path, "./cluster-manager/cmd/skerry")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		l.t.Fatalf("build skerry: %v: %s", err, out)
	}
	return func(args ...string) (string, error) {
		out, err := exec.Command(path, append([]string{"--broker", "tcp://" + l.mqtt}, args...)...).CombinedOutput()
		return string(out), err
	}
}

// A board whose disk is made anew comes with a new key. It is refused with a hint, and what the hint says helps: it gets its name and what
// is placed there, which has run on meanwhile. A board that is gone for good can be removed, and what it ran runs elsewhere.
func TestNodeReplacedAndRemoved(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	skerry := l.buildSkerry()
	a, b := l.node("a"), l.node("b")
	web := app("web", 1, nil)
	web.LostAfter = messages.Duration(time.Hour) // what follows shall not happen because the board is lost
	l.do(deployCommand(web, a))
	before := l.lives(a)
	data := filepath.Join(l.dir, "a")
	kept := l.nodes[a]
	l.crashNode(a)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	from := fileSize(kept.log)
	l.startNode("a")
	refused := l.logLine(l.nodes[a], from, "not in session")
	said, _ := refused["err"].(string)
	if !strings.Contains(said, string(messages.RefusedName)) || !strings.Contains(said, "run `skerry node replace "+string(a)+"`") {
		t.Fatalf("refused with %v", refused)
	}
	if out, err := skerry("node", "replace", string(a)); err != nil || !strings.Contains(out, "replace of "+string(a)+" done") {
		t.Fatalf("replace: %v: %s", err, out)
	}
	l.eventually("a is admitted by its own retry", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	l.settle("web", 1)
	after := l.lives(a)
	if len(after) != 1 || after["web.0.0"] == "" || after["web.0.0"] != before["web.0.0"] || len(l.lives(b)) != 0 {
		t.Errorf("%v on a and %v on b, want web.0.0 on a with the life of %v", after, l.lives(b), before)
	}

	if out, err := skerry("node", "remove", string(b)); err == nil || !strings.Contains(out, "end its engine first") {
		t.Errorf("remove of a node that is online: %v: %s", err, out)
	}
	l.do(deployCommand(web, a, b))
	l.crashNode(a)
	l.eventually("a is away", func() bool { s, _ := l.nodeStatus(a); return s.State != messages.NodeOnline })
	if out, err := skerry("node", "remove", string(a)); err != nil || !strings.Contains(out, "remove of "+string(a)+" done") {
		t.Fatalf("remove: %v: %s", err, out)
	}
	l.eventually("web runs on b", func() bool { return len(l.lives(b)) == 1 })
	l.settle("web", 1)
	if out, err := skerry("node", "list"); err != nil || strings.Contains(out, string(a)) || !strings.Contains(out, string(b)) {
		t.Errorf("node list: %v: %s", err, out)
	}

	// The removed board comes back: as a new node, which stops what it still runs.
	l.startNode("a")
	l.eventually("a is back", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	l.eventually("what it ran is stopped", func() bool { return len(l.lives(a)) == 0 })
	l.settle("web", 1)
	if left := l.lives(b); len(left) != 1 {
		t.Errorf("%v on b", left)
	}
}
