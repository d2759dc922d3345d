package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/messages"
)

// startsAtOnce is how many instances the engine brings up at a time.
const startsAtOnce = 8

// A board that comes back from a power cut with no link starts all that it had, what has the higher priority first, and waits for nobody on the way: the
// manager and all else that is not on the board are asked in vain here, without any answer. Every other instance is on the overlay, the rest on Docker's network.
func TestRebootWithNoLink(t *testing.T) {
	t.Parallel()
	dir, inside := world(t)
	if !inside {
		return
	}
	const count = 2*startsAtOnce + 4
	engine := dockerd(t, dir)
	t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
	l := newLab(t)
	a := l.node("a", "--overlay", "auto")
	l.logLine(l.nodes[a], 0, "overlay up")
	priorities := map[messages.InstanceID]int{}
	for i := range count {
		j := app(messages.JobName(fmt.Sprintf("p%02d", i)), 1, nil)
		j.Network.Mode = []messages.NetworkMode{messages.Overlay, messages.BridgeNetwork}[i%2]
		j.Priority = 7*i%count - 10 // neither in the order of names nor in the reverse one
		// Were it not for the boot id, which tells that nobody is to blame, each would wait for that long.
		j.Restart = messages.Restart{Policy: messages.RestartOnFailure, Backoff: messages.Duration(10 * time.Minute), MaxBackoff: messages.Duration(10 * time.Minute)}
		priorities[messages.NewInstanceID(j.Name, 0, 0)] = j.Priority
		l.send(deployCommand(j))
	}
	l.eventually("all to run", func() bool { return len(l.containers(a)) == count })
	for id := range priorities {
		name, _, _, err := id.Split()
		if err != nil {
			t.Fatal(err)
		}
		l.waitUp(name)
	}
	before := l.lives(a)

	l.client.Disconnect(0)
	powerCut(t)
	<-l.nodes[a].ended
	<-l.manager.ended
	_ = engine.Wait()
	unmount(t, dir)
	for _, gone := range []string{"exec", "dockerd.pid", "docker.sock"} { // what a boot finds empty
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	boot := filepath.Join(dir, "boot_id")
	if err := os.WriteFile(boot, []byte("11111111-2222-4333-8444-555555555555\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(boot, "/proc/sys/kernel/random/boot_id", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unplug(t, l)

	engine = dockerd(t, dir)
	began := time.Now()
	l.startNode("a", "--overlay", "auto")
	l.eventually("all to run again", func() bool { return len(l.containers(a)) == count })
	t.Logf("%d instances run %s after the engine's start", count, time.Since(began).Round(time.Millisecond))
	after := l.lives(a)
	for id, life := range before {
		if after[id] == "" || after[id] == life {
			t.Errorf("%s: before %q, after %q: want another life", id, life, after[id])
		}
	}
	byPriority(t, l, a, priorities)
	for _, c := range counters(t) {
		t.Logf("packets to %s: %d", c.what, c.packets)
		if c.what == "elsewhere" && c.packets > 0 {
			t.Errorf("%d packets were sent to hosts that nobody needs for a start", c.packets)
		}
	}

	plugIn(t)
	l.startManager()
	l.follow()
	for id := range priorities {
		name, _, _, _ := id.Split()
		l.waitUp(name)
	}
	if again := l.lives(a); fmt.Sprint(again) != fmt.Sprint(after) {
		t.Errorf("the link's return touched something: %v, before %v", again, after)
	}
}

// byPriority looks at when the containers were started: when one comes up, no more than the engine brings up at a time of those before it are not there yet.
func byPriority(t *testing.T, l *lab, node messages.NodeID, priorities map[messages.InstanceID]int) {
	t.Helper()
	type started struct {
		id messages.InstanceID
		at time.Time
	}
	var order []started
	for id, container := range l.containers(node) {
		c, err := dockerAPI(t).ContainerInspect(t.Context(), container)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339Nano, c.State.StartedAt)
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, started{id, at})
	}
	slices.SortFunc(order, func(a, b started) int { return a.at.Compare(b.at) })
	var seen []string
	for i, s := range order {
		late := 0
		for _, later := range order[i+1:] {
			if priorities[later.id] > priorities[s.id] {
				late++
			}
		}
		if late >= startsAtOnce {
			t.Errorf("%s of priority %d was started before %d of higher priority", s.id, priorities[s.id], late)
		}
		seen = append(seen, strconv.Itoa(priorities[s.id]))
	}
	t.Logf("started by priority: %s", strings.Join(seen, " "))
}

// powerCut ends all processes of this world at once, but for this one and those that it runs in.
func powerCut(t *testing.T) {
	t.Helper()
	spared := map[int]bool{1: true, os.Getpid(): true, os.Getppid(): true}
	for again := true; again; { // until nobody is left who could start another
		again = false
		all, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			stat, err := os.ReadFile(path)
			if err != nil || spared[pid] {
				continue
			}
			if _, rest, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(rest, "Z") {
				continue
			}
			again = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
}

// unmount takes away the mounts below dir, none of which is there after a boot.
func unmount(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var below []string
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			below = append(below, at)
		}
	}
	for _, at := range slices.Backward(below) { // the innermost first
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Fatalf("unmount %s: %v", at, err)
		}
	}
}

// unplug makes the manager, and whatever is not on the board, unreachable so that nobody says so: what is sent there is counted and lost.
func unplug(t *testing.T, l *lab) {
	t.Helper()
	manager, http, _ := strings.Cut(l.http, ":")
	_, mqtt, _ := strings.Cut(l.mqtt, ":")
	for _, line := range []string{
		"ip link add wan type veth peer name far", "ip link set wan up", "ip link set far up", "ip address add 198.51.100.2/24 dev wan",
		"ip neighbor add 198.51.100.1 lladdr 02:00:00:00:00:01 dev wan nud permanent", "ip route replace default via 198.51.100.1",
		"iptables -I OUTPUT -o wan -p tcp -j DROP", "iptables -I OUTPUT -o wan -p udp -j DROP",
		"iptables -I OUTPUT -d " + manager + " -p udp -j DROP", "iptables -I OUTPUT -p tcp -m multiport --dports " + http + "," + mqtt + " -j DROP",
	} {
		run(t, line)
	}
}

// plugIn takes back what unplug has done to the manager.
func plugIn(t *testing.T) {
	t.Helper()
	run(t, "iptables -D OUTPUT 1")
	run(t, "iptables -D OUTPUT 1")
}

// counter is what was lost on its way.
type counter struct {
	what    string
	packets int
}

func counters(t *testing.T) (found []counter) {
	t.Helper()
	for line := range strings.Lines(run(t, "iptables -L OUTPUT -v -x -n")) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[2] != "DROP" {
			continue
		}
		packets, err := strconv.Atoi(fields[0])
		if err != nil {
			t.Fatal(err)
		}
		what := "elsewhere"
		if !strings.Contains(line, "wan") {
			what = "the manager"
		}
		found = append(found, counter{what, packets})
	}
	if len(found) != 4 {
		t.Fatalf("got %v, want four counters", found)
	}
	return found
}

// run runs a command line of words without spaces in them.
func run(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}
