package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

func TestStopInEveryState(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	states := map[messages.InstanceID]func(id messages.InstanceID){
		"created.0.0": func(id messages.InstanceID) {
			p, err := l.plan(ctx, l.cli, l.spec(id, "sleep"))
			if err == nil {
				_, err = l.create(ctx, l.cli, l.spec(id), p)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"dead.0.0": func(id messages.InstanceID) {
			l.start(l.spec(id, "exit=1"))
			l.ended(id)
		},
		"paused.0.0": func(id messages.InstanceID) {
			w := l.start(l.spec(id, "sleep"))
			if err := l.cli.ContainerPause(ctx, w.ID); err != nil {
				t.Fatal(err)
			}
		},
		"othersignal.0.0": func(id messages.InstanceID) { // paused, and told to end by another signal than its own
			w := l.start(l.spec(id, "until=10"))
			if err := l.cli.ContainerPause(ctx, w.ID); err != nil {
				t.Fatal(err)
			}
		},
	}
	for id, reach := range states {
		t.Run(string(id), func(t *testing.T) {
			reach(id)
			stop := messages.Stop{Grace: messages.Duration(time.Hour)}
			if id == "othersignal.0.0" {
				stop.Signal = "SIGUSR1"
			}
			patient, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := l.Stop(patient, id, stop); err != nil {
				t.Fatal(err)
			}
			if _, err := l.inspect(ctx, l.cli, id); !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("after stop: got %v", err)
			}
		})
	}
}

func TestStopSignal(t *testing.T) {
	l := newLab(t)
	spec := l.spec("web.0.0", "until=12")
	spec.Stop = messages.Stop{Signal: "SIGUSR2", Grace: messages.Duration(20500 * time.Millisecond)}
	l.start(spec)
	if c := l.raw("web.0.0").Config; c.StopSignal != "SIGUSR2" || c.StopTimeout == nil || *c.StopTimeout != 21 {
		t.Errorf("got stop signal %q and grace %v, want Docker to use ours", c.StopSignal, c.StopTimeout)
	}
	eventually(t, "the helper waits", func() bool { return strings.Contains(l.snapshot("web.0.0"), "ready") })
	begun := time.Now()
	if err := l.Stop(t.Context(), "web.0.0", messages.Stop{Grace: messages.Duration(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("took %v: the signal of its creation was not used", took)
	}
}

// A container is stopped the moment it has started, or was frozen on the way to its program: its first process, which does not hear the signal for a
// while yet, gets it all the same and is not killed after an hour.
func TestStopRightAfterTheStart(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen %t", frozen), func(t *testing.T) {
			l := newLab(t)
			l.Driver = newDriver(t, Config{Node: l.cfg.Node, NoInit: true})
			spec := l.spec("web.0.0", "late=300")
			spec.Stop.Signal = "SIGCONT"
			w := l.start(spec)
			if frozen {
				if err := l.cli.ContainerPause(t.Context(), w.ID); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := l.Stop(ctx, "web.0.0", messages.Stop{Signal: "SIGCONT", Grace: messages.Duration(time.Hour)}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Docker's init hears: a stop does not wait until it is no longer young. Once a second it is awake for a moment.
func TestInitHears(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "sleep"))
	pid := l.raw("web.0.0").State.Pid
	eventually(t, "init waits for signals", func() bool { return hearing(pid, int(unix.SIGTERM)) })
	heard := 0
	for range 100 {
		if hearing(pid, int(unix.SIGTERM)) {
			heard++
		}
	}
	if heard < 50 {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		t.Errorf("heard in %d of 100 looks: %s", heard, status)
	}
}

func TestHears(t *testing.T) {
	inState := func(state, name, blocked, ignored, caught string) string {
		return "Name:\t" + name + "\nState:\t" + state + "\nPid:\t7\nSigPnd:\t0000000000004000\nSigBlk:\t" + blocked + "\nSigIgn:\t" + ignored + "\nSigCgt:\t" + caught + "\n"
	}
	status := func(name, blocked, ignored, caught string) string {
		return inState("S (sleeping)", name, blocked, ignored, caught)
	}
	const none, term, most = "0000000000000000", "0000000000004000", "fffffffe7ffbfeff"
	for _, test := range []struct {
		name, status string
		signal       string
		want         bool
	}{
		{"neither", status("app", none, none, "0000000000000002"), "SIGTERM", false},
		{"blocked", status("docker-init", most, none, none), "SIGTERM", true},
		{"docker's init, which waits", status("docker-init", none, none, none), "SIGTERM", true},
		{"docker's init, on its way", inState("R (running)", "docker-init", none, none, none), "SIGTERM", false},
		{"blocked for a moment", inState("R (running)", "app", most, none, none), "SIGTERM", false},
		{"ignored", status("app", none, term, none), "15", true},
		{"handled", status("app", none, none, term), "term", true},
		{"another one", status("app", none, none, term), "SIGINT", false},
		{"not yet the program", status("runc:[2:INIT]", none, none, most), "SIGTERM", false},
		{"the last one", status("app", none, none, "8000000000000000"), "64", true},
		{"no status", "", "SIGTERM", false},
		{"damaged", status("app", "xyz", none, none), "SIGTERM", true},
	} {
		if got := hears(test.status, signalNumber(test.signal)); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
	if n := signalNumber("SIGNOTHING"); n != 0 {
		t.Errorf("got %d for a signal that is none", n)
	}
}

// snapshot is the output so far.
func (l *lab) snapshot(id messages.InstanceID) string {
	l.t.Helper()
	var all strings.Builder
	err := l.Logs(l.t.Context(), messages.LogsRequest{Instance: id}, func(_, text string) error { all.WriteString(text); return nil })
	if err != nil {
		l.t.Fatal(err)
	}
	return all.String()
}

// Several that stop one instance at once, and somebody who removes it by hand, all end well.
func TestStopAtOnce(t *testing.T) {
	l := newLab(t)
	w := l.start(l.spec("web.0.0", "sleep"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := l.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil && !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Go(func() {
		l.cli.ContainerRemove(t.Context(), w.ID, container.RemoveOptions{Force: true}) //nolint:errcheck // one of them wins
	})
	wg.Wait()
	if _, err := l.cli.ContainerInspect(t.Context(), w.ID); err == nil {
		t.Error("still there")
	}
}

func TestRemovalInProgress(t *testing.T) {
	l := newLab(t)
	w := l.start(l.spec("web.0.0", "exit=0"))
	l.ended("web.0.0")
	c, host := newCounter(t)
	d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
	var once sync.Once
	c.set(func(rw http.ResponseWriter, r *http.Request) bool {
		refused := false
		if r.Method == http.MethodDelete {
			once.Do(func() {
				refused = true
				rw.WriteHeader(http.StatusConflict)
				rw.Write([]byte(`{"message":"removal of container is already in progress"}`))
				l.cli.ContainerRemove(context.Background(), w.ID, container.RemoveOptions{})
			})
		}
		return refused
	})
	if err := d.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestOOM(t *testing.T) {
	l := newLab(t)
	seen := make(chan driver.Workload, 20)
	ready := make(chan struct{})
	go l.Watch(t.Context(), func() { close(ready) }, func(w driver.Workload) { seen <- w })
	<-ready
	said := false
	for n := 0; n < 5 && !said; n++ { // Docker hears of it from another process than of the end, and forgets it where the end is heard of first
		id := messages.NewInstanceID("hungry", n, 0)
		spec := l.spec(id, "eat=200")
		spec.Resources.MemoryMB = 20
		l.start(spec)
		exit := endOf(t, seen, id)
		said = l.raw(id).State.OOMKilled
		if exit.OOM != said || exit.Code != 137 {
			t.Errorf("got exit %+v, want 137 for want of memory: %t", exit, said)
		}
		all, err := l.List(t.Context())
		at := slices.IndexFunc(all, func(w driver.Workload) bool { return w.Instance == id })
		if err != nil || at < 0 || all[at].Exit == nil || all[at].Exit.OOM != said {
			t.Errorf("list: got %+v, %v", all, err)
		}
	}
	if !said {
		t.Error("no end for want of memory was seen")
	}
	// A child that dies of it is not the end of its parent.
	feed := l.spec("web.1.0", "feed=200", "exit=0")
	feed.Resources.MemoryMB = 30
	l.start(feed)
	if w := l.ended("web.1.0"); w.Exit.OOM || w.Exit.Code != 0 {
		t.Errorf("parent: got exit %+v, want code 0 and no OOM", w.Exit)
	}
	if out := l.output("web.1.0"); !strings.Contains(out, "child: signal: killed") {
		t.Errorf("the child was not killed: %q", out)
	}
}

// endOf waits until the end of an instance is seen.
func endOf(t *testing.T, seen <-chan driver.Workload, id messages.InstanceID) *driver.Exit {
	t.Helper()
	for late := time.After(patience); ; {
		select {
		case w := <-seen:
			if w.Instance == id && w.Exit != nil {
				return w.Exit
			}
		case <-late:
			t.Fatalf("no end of %s seen", id)
		}
	}
}

// An event whose container is gone by the time it is looked at still tells of its end.
func TestEndOfARemovedContainer(t *testing.T) {
	l := newLab(t)
	c, host := newCounter(t)
	d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
	w := l.start(l.spec("web.0.0", "sleep"))
	eventually(t, "the helper waits for its signal", func() bool { return strings.Contains(l.snapshot("web.0.0"), "ready") })
	c.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/containers/"+w.ID+"/json") {
			return false
		}
		rw.WriteHeader(http.StatusNotFound)
		rw.Write([]byte(`{"message":"no such container"}`))
		return true
	})
	seen := make(chan driver.Workload, 10)
	ready := make(chan struct{})
	go d.Watch(t.Context(), func() { close(ready) }, func(w driver.Workload) { seen <- w })
	<-ready
	if err := l.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-seen:
		if got.Instance != "web.0.0" || got.ID != w.ID || got.Running || got.Exit == nil || got.Exit.Code != 0 || got.Exit.At.IsZero() {
			t.Errorf("got %+v with exit %+v", got, got.Exit)
		}
	case <-time.After(patience):
		t.Error("nothing seen")
	}
}

// A check that hangs leaves no process behind in the container.
func TestExecLeavesNoProcess(t *testing.T) {
	l := newLab(t)
	w := l.start(l.spec("web.0.0", "sleep"))
	mark := ""
	for wait := 500 * time.Millisecond; ; wait *= 2 { // until Docker has begun it in time
		mark = fmt.Sprintf("exit=%d", wait.Milliseconds())
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		code, err := l.Exec(ctx, "web.0.0", []string{"/helper", "stubborn", "sleep", mark})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || wait > patience {
			t.Fatalf("within %s: got %d, %v", wait, code, err)
		}
		if !errors.Is(err, driver.ErrUnavailable) {
			break
		}
	}
	eventually(t, "the program of the exec is gone", func() bool {
		top, err := l.cli.ContainerTop(t.Context(), w.ID, nil)
		return err == nil && !strings.Contains(strings.Join(flat(top.Processes), " "), mark)
	})
	if !l.raw("web.0.0").State.Running {
		t.Error("the container ended too")
	}
}

// An engine that stands still says nothing about the program, whichever call it is that it does not answer, and holds up nobody.
func TestExecThatDockerDoesNotAnswer(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "sleep"))
	for _, call := range []string{`/_ping$`, `/containers/[^/]+/json$`, `/containers/[^/]+/exec$`, `/exec/[^/]+/start$`, `/exec/[^/]+/json$`} {
		c, host := newCounter(t)
		d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
		ended := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		c.set(func(_ http.ResponseWriter, r *http.Request) bool {
			stalls := regexp.MustCompile(call).MatchString(r.URL.Path)
			if stalls {
				<-ended
			}
			return stalls
		})
		_, err := d.Exec(ctx, "web.0.0", []string{"/helper", "sleep"})
		cancel()
		close(ended)
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("%s: got %v, want %v", call, err, driver.ErrUnavailable)
		}
	}
}

// An engine that keeps its socket and its streams, and does nothing, is noticed.
func TestWatchOfADockerThatStandsStill(t *testing.T) {
	l := newLab(t)
	c, host := newCounter(t)
	d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
	if _, err := d.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.limits.pulse = 500 * time.Millisecond
	c.set(func(_ http.ResponseWriter, r *http.Request) bool {
		stalls := !strings.HasSuffix(r.URL.Path, "/events")
		if stalls {
			<-r.Context().Done()
		}
		return stalls
	})
	for range 2 { // the second one begins while it stands still
		if err := d.Watch(t.Context(), func() {}, func(driver.Workload) {}); !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, driver.ErrUnavailable)
		}
	}
}

// A stop whose end does not come says why, and is for its caller to repeat.
func TestStopThatHasNoEnd(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "stubborn", "sleep"))
	c, host := newCounter(t)
	d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
	d.limits.kill = 50 * time.Millisecond
	c.set(func(_ http.ResponseWriter, r *http.Request) bool {
		stalls := strings.HasSuffix(r.URL.Path, "/wait")
		if stalls {
			<-r.Context().Done()
		}
		return stalls
	})
	if err := d.Stop(t.Context(), "web.0.0", messages.Stop{Grace: messages.Duration(50 * time.Millisecond)}); err == nil || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("got %v, want what it waits for", err)
	}
	c.set(nil)
	l.ended("web.0.0")
	if err := d.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Errorf("again: %v", err)
	}
}

func flat(rows [][]string) []string {
	var all []string
	for _, r := range rows {
		all = append(all, r...)
	}
	return all
}

func TestExecOutputIsDropped(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "sleep"))
	if code, err := l.Exec(t.Context(), "web.0.0", []string{"/helper", "flood=500000", "exit=5"}); err != nil || code != 5 {
		t.Errorf("got %d, %v, want 5", code, err)
	}
	if code, err := l.Exec(t.Context(), "web.0.0", []string{"/no/such"}); err == nil && code == 0 {
		t.Error("a program that is not there ended well")
	}
	l.start(l.spec("web.1.0", "exit=0"))
	l.ended("web.1.0")
	if _, err := l.Exec(t.Context(), "web.1.0", []string{"/helper"}); err == nil || errors.Is(err, driver.ErrNotFound) {
		t.Errorf("exec in one that has ended: got %v", err)
	}
}

func TestUsage(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("busy.0.0", "eat=64", "burn"))
	l.start(l.spec("idle.0.0", "listen=80", "sleep"))
	// Pages of a file that was read once are not what the workload needs.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 64<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	cached := l.spec("cached.0.0", "zeros=/x/big", "sleep")
	cached.Volumes = []messages.Volume{{Source: dir, Target: "/x"}}
	l.start(cached)
	eventually(t, "figures of all three", func() bool {
		all, err := l.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		by := map[messages.InstanceID]driver.Usage{}
		for _, u := range all {
			by[u.Instance] = u
		}
		busy, idle := by["busy.0.0"], by["idle.0.0"]
		return len(by) == 3 && busy.CPU > 300*time.Millisecond && busy.MemoryBytes > 60<<20 && busy.MemoryBytes < 120<<20 &&
			idle.MemoryBytes > 0 && idle.MemoryBytes < 32<<20 && by["cached.0.0"].MemoryBytes < 32<<20 && idle.CPU < busy.CPU
	})
}

// Docker answers with nothing, or with an error that looks like an answer, for a container that ends while it is asked; the others keep their figures.
func TestUsageOfOneThatEnds(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "sleep"))
	l.start(l.spec("web.1.0", "sleep"))
	ending := l.raw("web.0.0").ID
	for _, answer := range []string{"", `{"message":"no such container"}`} {
		counter, host := newCounter(t)
		counter.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ending+"/stats") {
				return false
			}
			fmt.Fprint(w, answer)
			return true
		})
		all, err := newDriver(t, Config{Node: l.cfg.Node, Host: host}).Usage(t.Context())
		if err != nil || len(all) != 1 || all[0].Instance != "web.1.0" {
			t.Errorf("after %q: got %v %v, want the figures of web.1.0", answer, all, err)
		}
	}
}

func TestLogs(t *testing.T) {
	l := newLab(t)
	l.start(l.spec("web.0.0", "print=one", "complain=two", "print=three", "exit=0"))
	l.ended("web.0.0")
	read := func(req messages.LogsRequest) map[string]string {
		got := map[string]string{}
		req.Instance = "web.0.0"
		if err := l.Logs(t.Context(), req, func(stream, text string) error { got[stream] += text; return nil }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := read(messages.LogsRequest{}); got["stdout"] != "one\nthree\n" || got["stderr"] != "two\n" {
		t.Errorf("got %q", got)
	}
	if got := read(messages.LogsRequest{Tail: 1}); got["stdout"]+got["stderr"] != "three\n" && got["stderr"] != "two\n" {
		t.Errorf("tail: got %q", got)
	}
	if got := read(messages.LogsRequest{Since: messages.At(time.Now().Add(time.Hour))}); len(got) != 0 {
		t.Errorf("since: got %q", got)
	}
	full := errors.New("full")
	if err := l.Logs(t.Context(), messages.LogsRequest{Instance: "web.0.0"}, func(string, string) error { return full }); !errors.Is(err, full) {
		t.Errorf("an error of write: got %v", err)
	}
}

func TestLogsFollow(t *testing.T) {
	l := newLab(t)
	// In lines, because Docker itself cuts through characters where a line is over 16 KiB.
	l.start(l.spec("web.0.0", "flood=30000", "sleep"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all strings.Builder
	err := l.Logs(ctx, messages.LogsRequest{Instance: "web.0.0", Follow: true}, func(_, text string) error {
		if len(text) > maxPiece {
			t.Errorf("a piece of %d bytes", len(text))
		}
		all.WriteString(text)
		if strings.HasSuffix(all.String(), "ready\n") {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Errorf("a follower that its ctx ends: got %v, want nil", err)
	}
	if want := strings.Repeat(strings.Repeat("äöü€", 1000)+"\n", 30) + "ready\n"; all.String() != want {
		t.Errorf("got %d bytes, want %d, cut between characters", all.Len(), len(want))
	}
}

// The engine may come back as another version: what was agreed with the old one counts no more.
func TestVersionIsAgreedAnew(t *testing.T) {
	l := newLab(t)
	c, host := newCounter(t)
	d := newDriver(t, Config{Node: l.cfg.Node, Host: host})
	if _, err := d.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/events") {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if err := d.Watch(t.Context(), func() {}, func(driver.Workload) {}); !errors.Is(err, driver.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	c.take()
	if _, err := d.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if calls := c.take(); len(calls) == 0 || !strings.HasSuffix(calls[0], "/_ping") {
		t.Errorf("got calls %q, want a ping first", calls)
	}
}

func TestInfo(t *testing.T) {
	l := newLab(t)
	info, err := l.Info(t.Context())
	if err != nil || info.Name != messages.Docker || info.Version == "" {
		t.Errorf("got %+v, %v", info, err)
	}
	for _, r := range info.Runtimes {
		if r == "runc" || strings.HasPrefix(r, "io.containerd") {
			t.Errorf("%s is nothing beyond the default", r)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{{}, {Node: "Bad Node"}, {Node: "a", Arch: "vax"}, {Node: "a", LogMaxFiles: -1}} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%+v passes", cfg)
		}
	}
	if _, err := New(Config{Node: "a", Host: "no-url"}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a host that is none passes")
	}
	d := newDriver(t, Config{Node: "a", Host: "unix:///no/such/socket"})
	if _, err := d.List(t.Context()); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("no engine: got %v", err)
	}
}
