package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
	"skerry.internal/netmanager/link/linktest"
)

// kernel is everything of a host's network that the engine could have changed.
func (l *lab) kernel(host string) (text string) {
	l.t.Helper()
	l.hosts[host].Do(func() { text = linktest.Dump(l.t) })
	return text
}

// An engine that is killed ten times has the same in the kernel afterwards, its instances the same addresses, and the manager as many of them leased.
// Once it has ended, --clean-up makes the host what it was before, and leaves nothing below /run.
func TestKillsLeaveNothing(t *testing.T) {
	t.Parallel()
	l := newHosts(t, "a")
	var leased atomic.Pointer[messages.NetworkStatus]
	topic := messages.Topic{Kind: messages.NetworkTopic}.String()
	if token := l.client.Subscribe(topic, 1, func(_ mqtt.Client, m mqtt.Message) {
		var s messages.NetworkStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			leased.Store(&s)
		}
	}); !token.WaitTimeout(soon) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	before := l.kernel("a")
	a := l.networkNode("a")
	l.serve("web", 2, a)
	l.serve("client", 1, a)
	var first messages.NetworkStatus
	l.eventually("seven addresses to be leased", func() bool { // two of each job, one of each copy
		s := leased.Load()
		if s == nil || s.Addresses != 7 {
			return false
		}
		first = *s
		return true
	})
	addresses := func() string {
		var all []string
		for _, name := range []messages.JobName{"client", "web"} {
			s, _ := l.job(name)
			for _, i := range s.Instances {
				all = append(all, fmt.Sprintf("%s %s %s %v", i.Instance, i.State, i.Address, i.Ports))
			}
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	set, had, containers := l.kernel("a"), addresses(), l.containers(a)
	for range 10 {
		l.kill(l.nodes[a])
		from := fileSize(l.nodes[a].log)
		l.startNode("a")
		l.logLine(l.nodes[a], from, "overlay up")
		l.logLine(l.nodes[a], from, "in session")
	}
	if diff := cmp.Diff(set, l.kernel("a")); diff != "" {
		t.Errorf("the kernel after ten kills (-before +after):\n%s", diff)
	}
	l.eventually("the instances to be as before", func() bool { return addresses() == had })
	if diff := cmp.Diff(containers, l.containers(a)); diff != "" {
		t.Errorf("containers (-before +after):\n%s", diff)
	}
	l.serve("late", 1, a) // so that the manager has said its count since
	l.eventually("three more addresses to be leased, and no block", func() bool { s := leased.Load(); return s.Addresses == first.Addresses+3 && s.Blocks == first.Blocks })
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "late"}})
	l.eventually("as many addresses to be leased as before", func() bool {
		s := leased.Load()
		return s.Addresses == first.Addresses && s.Blocks == first.Blocks && s.Free == first.Free
	})
	if got := l.ask("client", "http://web.skerry.internal:8080/", 4); got.Failed > 0 || len(got.Seen) != 2 {
		t.Errorf("by name: got %+v", got)
	}
	l.end(l.nodes[a])
	if after := l.kernel("a"); after != set {
		t.Error("an engine that ends takes its network away")
	}
	cleaned := l.start("a", l.command("node-engine", "--clean-up", "--data", filepath.Join(l.dir, "a")))
	<-cleaned.ended
	if code := cleaned.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("--clean-up ended with %d", code)
	}
	if diff := cmp.Diff(before, l.kernel("a")); diff != "" {
		t.Errorf("the kernel after --clean-up (-before +after):\n%s", diff)
	}
	name := regexp.MustCompile(`sk[0-9a-f]{6}`).FindString(set)
	var space unix.Stat_t
	if err := unix.Stat(l.hosts["a"].Path(), &space); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{name + "*", fmt.Sprintf("link-%d", space.Ino)} {
		if left, err := filepath.Glob("/run/skerry/" + pattern); err != nil || name == "" || len(left) > 0 {
			t.Errorf("left of %q below /run: %v, %v", name, left, err)
		}
	}
}
