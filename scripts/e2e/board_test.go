package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"skerry.internal/messages"
)

// A person starts an engine by the script, logs out, and forgets about it.
func TestStartUpAndLogOut(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	id := l.id("roof")
	l.nodes[id] = nil // not ours to end, but its containers are ours to remove
	host, port, err := net.SplitHostPort(l.http)
	if err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("bash", "--norc", "--noprofile", "-i")
	shell.Dir = ".."
	shell.Env = append(os.Environ(), "CLUSTER_MANAGER_IP="+host, "CLUSTER_MANAGER_PORT="+port, "SKERRY_ENGINE="+program("node-engine"), "TERM=dumb")
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	term := newTerminal(t)
	term.start(shell)
	term.write(fmt.Sprintf("nohup ./start-up.sh %s --name %s --data %s >/dev/null 2>&1 &\n", runtime.GOARCH, id, filepath.Join(l.dir, "roof")))
	term.write("echo sta''rted=$!.\n") // what the terminal shows of the typing must not look like the answer
	term.expect("started=")
	l.eventually("the node is online", func() bool { s, _ := l.nodeStatus(id); return s.State == messages.NodeOnline })
	pid := startedPID(t, term.text())
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	term.hangUp()
	_ = shell.Wait() // ended by the hang-up
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatalf("the engine went with the terminal: %v", err)
	}
	l.do(deployCommand(app("web", 2, nil)))
	before := l.lives(id)
	if s, _ := l.nodeStatus(id); s.State != messages.NodeOnline || len(before) != 2 {
		t.Errorf("after logging out the node is %s with %v", s.State, before)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the engine to end on SIGTERM", func() bool { return !alive(pid) })
	l.eventually("the manager knows", func() bool { s, _ := l.nodeStatus(id); return s.State == messages.NodeAway })
	if after := l.lives(id); !maps.Equal(before, after) {
		t.Errorf("after the engine's end: %v, before %v", after, before)
	}
}

// startedPID reads what the shell said that it had started.
func startedPID(t *testing.T, shown string) int {
	t.Helper()
	for line := range strings.Lines(shown) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "started="); ok {
			if pid, err := strconv.Atoi(strings.TrimSuffix(text, ".")); err == nil && strings.HasSuffix(text, ".") {
				return pid
			}
		}
	}
	t.Fatalf("no pid in %q", shown)
	return 0
}

// emulator runs programs of 32-bit ARM boards.
const emulator = "qemu-arm-static"

// armPrograms builds the programs and the workload for arm-7, once.
var armPrograms = sync.OnceValues(func() (map[string]string, error) {
	root, err := programs()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, "arm-7")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	for _, c := range []struct{ in, out, pkg string }{{"../..", dir + "/", "./cluster-manager"}, {"../..", dir + "/", "./node-engine"}, {".", dir + "/app", "testdata/app/main.go"}} {
		build := exec.Command("go", "build", "-o", c.out, c.pkg)
		build.Dir = c.in
		build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm", "GOARM=7", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s for arm-7: %w: %s", c.pkg, err, out)
		}
	}
	found := map[string]string{}
	for _, name := range []string{"cluster-manager", "node-engine", "app"} {
		found[name] = filepath.Join(dir, name)
	}
	return found, nil
})

// needARM returns the programs for arm-7, or ends a test that runs alone where there is no emulator.
func needARM(t *testing.T) map[string]string {
	t.Helper()
	if _, err := exec.LookPath(emulator); err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	needDocker(t)
	arm, err := armPrograms()
	if err != nil {
		t.Fatal(err)
	}
	return arm
}

// An arm-7 board joins a cluster whose manager is of another kind, and runs what is for its kind.
func TestBoardOfAnotherKind(t *testing.T) {
	t.Parallel()
	arm := needARM(t)
	l := newLab(t)
	a := l.node("a")
	l.other = map[string]string{"node-engine": arm["node-engine"]}
	board := l.node("board")
	if s, _ := l.nodeStatus(board); s.Arch != "arm-7" {
		t.Errorf("the board says it is %q, want arm-7", s.Arch)
	}
	j := app("web", 2, nil)
	j.Image = newGallery(l).pushProgram("app", arm["app"], "arm", "v7")
	j.Constraints.Arch = []string{"arm-7"}
	// No kernel here runs ARM programs by itself; the emulator comes along as a volume.
	qemu, err := exec.LookPath(emulator)
	if err != nil {
		t.Fatal(err)
	}
	j.Volumes = []messages.Volume{{Source: qemu, Target: "/qemu", ReadOnly: true}}
	j.Entrypoint = []string{"/qemu", "/app"}
	l.do(deployCommand(j))
	if on := l.containers(board); len(on) != 2 || len(l.containers(a)) != 0 {
		t.Errorf("want both on %s: %v, elsewhere %v", board, on, l.containers(a))
	}
	wrong := app("wrong", 1, nil) // its image is for the other kind
	wrong.Constraints.Arch = j.Constraints.Arch
	if r := l.last(l.send(deployCommand(wrong))); r.Code != messages.ImageWrongArch || !strings.Contains(r.Message, "linux/arm/v7") {
		t.Errorf("an image of another kind: got %s %s %q", r.Phase, r.Code, r.Message)
	}
	before := l.lives(board)
	l.crashNode(board)
	l.startNode("board")
	l.eventually("the board is back", func() bool { s, _ := l.nodeStatus(board); return s.State == messages.NodeOnline })
	l.settle("web", 2)
	if after := l.lives(board); !maps.Equal(before, after) {
		t.Errorf("after a crash of its engine: %v, before %v", after, before)
	}
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
}

// A manager on an arm-7 board takes engines of other kinds, and finds its state again after a crash.
func TestManagerOfAnotherKind(t *testing.T) {
	t.Parallel()
	arm := needARM(t)
	l := emptyLab(t)
	l.other = map[string]string{"cluster-manager": arm["cluster-manager"]}
	l.startManager()
	l.follow()
	a := l.node("a")
	l.do(deployCommand(app("web", 2, nil)))
	before := l.lives(a)
	l.crashManager()
	l.startManager()
	l.waitUp("web")
	l.settle("web", 2)
	if after := l.lives(a); !maps.Equal(before, after) {
		t.Errorf("after a crash of the manager: %v, before %v", after, before)
	}
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	if left := l.containers(a); len(left) != 0 {
		t.Errorf("after delete: %v", left)
	}
}

// stray starts a container that looks as if a node had started it long ago.
func (l *lab) stray(node messages.NodeID) string {
	l.t.Helper()
	if _, known := l.nodes[node]; !known {
		l.nodes[node] = nil // no engine, but its containers are to be removed at the end
	}
	return l.docker("run", "-d", "--name", "skerry-"+string(node)+".stray.0.0", "--label", "skerry.node="+string(node), "--label", "skerry.job=stray",
		"--label", "skerry.instance=stray.0.0", testImage)
}

// Nodes that share one Docker engine leave each other's containers alone, and everybody else's.
func TestNodesShareOneDocker(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.node("a"), l.node("b")
	l.do(deployCommand(app("web", 2, nil)))
	before := l.lives(a, b)
	l.crashNode(a)
	l.crashNode(b)
	ofA, ofB, ofLonger := l.stray(a), l.stray(b), l.stray(a+"2")
	foreign := l.docker("run", "-d", "--name", l.prefix+"foreign", testImage)
	t.Cleanup(func() { l.docker("rm", "-f", foreign) })
	there := func(container string) bool { return exec.Command("docker", "inspect", container).Run() == nil }
	l.startNode("a")
	l.eventually("a's stray is gone", func() bool { return !there(ofA) })
	l.eventually("a is back", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	for what, container := range map[string]string{"b's": ofB, "that of a node whose name begins like a's": ofLonger, "somebody's": foreign} {
		if !there(container) {
			t.Errorf("%s container is gone", what)
		}
	}
	l.startNode("b")
	l.eventually("b's stray is gone", func() bool { return !there(ofB) })
	l.eventually("b is back", func() bool { s, _ := l.nodeStatus(b); return s.State == messages.NodeOnline })
	l.settle("web", 2)
	if after := l.lives(a, b); !maps.Equal(before, after) {
		t.Errorf("%v, before %v", after, before)
	}
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, Worker: []messages.NodeID{a}})
	if left := l.lives(b); len(l.lives(a)) != 0 || len(left) != 1 {
		t.Errorf("after a delete on %s: %v there, %v on %s", a, l.lives(a), left, b)
	}
	if !there(ofLonger) || !there(foreign) {
		t.Error("a container of nobody here is gone")
	}
}
