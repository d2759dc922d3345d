// Package drivertest is the suite that every implementation of driver.Driver passes. It knows no technology: what it needs run is described
// by a Program, which the implementation's Harness turns into a spec.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Program says what a workload of the suite does. The zero Program runs until it is told to end by SIGTERM, then ends at once.
type Program struct {
	Exit     bool   // end at once, with Code
	Code     int    //
	Stubborn bool   // ignore SIGTERM
	Print    string // a line on stdout, before anything else
	Listen   int    // serve TCP on this port: whoever connects reads "hello\n"
}

// Harness is one implementation, made ready for one test; everything of it is gone when the test has ended.
type Harness struct {
	// Driver is under test.
	Driver driver.Driver
	// Again returns a further driver over the same workloads, as an engine holds after its restart.
	Again func() driver.Driver
	// Spec returns a spec whose image is present and whose workload does what the Program says.
	Spec func(id messages.InstanceID, p Program) driver.Spec
	// Absent returns a spec whose image nobody has.
	Absent func(id messages.InstanceID) driver.Spec
	// Kill ends the workload by the technology's own means, as its end or a person's hand would: code 137.
	Kill func(id messages.InstanceID)
	// Succeed and Fail are programs for Exec that end with code 0 and 7, Hang is one that does not end.
	Succeed, Fail, Hang []string
	// Down takes the technology away from Driver for the rest of the test.
	Down func()
	// Dials says that a Program's Listen can be dialled by the address and ports of its Workload.
	Dials bool
}

// Run runs the suite. Each test gets a Harness of its own.
func Run(t *testing.T, harness func(t *testing.T) Harness) {
	t.Helper()
	tests := []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"StartListStop", startListStop},
		{"StopWithoutWorkload", stopWithoutWorkload},
		{"PrepareRepeated", prepareRepeated},
		{"ImageAbsent", imageAbsent},
		{"ExitCode", exitCode},
		{"Interrupted", interrupted},
		{"StartedAgain", startedAgain},
		{"OtherSpecReplaces", otherSpecReplaces},
		{"OtherOwnerFieldsDoNotReplace", otherOwnerFieldsDoNotReplace},
		{"StubbornIsKilled", stubbornIsKilled},
		{"GraceIsNotWaitedOut", graceIsNotWaitedOut},
		{"CrashIsWatched", crashIsWatched},
		{"WatchSeesStarts", watchSeesStarts},
		{"WatchEndsWithContext", watchEndsWithContext},
		{"Exec", execCodes},
		{"ExecEndsWithContext", execEndsWithContext},
		{"Ports", ports},
		{"PortInUse", portInUse},
		{"BadSignal", badSignal},
		{"StartsAtOnce", startsAtOnce},
		{"SameStartAtOnce", sameStartAtOnce},
		{"CancelledContext", cancelledContext},
		{"TakenUpAgain", takenUpAgain},
		{"Usage", usage},
		{"Logs", logs},
		{"Down", down},
		{"Dial", dial},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := harness(t)
			test.run(t, &suite{Harness: h, t: t})
		})
	}
}

// patience bounds every wait for something that must happen; it is long because the machine may be busy.
const patience = 30 * time.Second

// suite holds what the tests share.
type suite struct {
	Harness
	t *testing.T
}

// stop is short because a test that waits for a grace waits for it in real time.
var stop = messages.Stop{Signal: "SIGTERM", Grace: messages.Duration(10 * time.Second)}

func (s *suite) start(spec driver.Spec) driver.Workload {
	s.t.Helper()
	if err := s.Driver.Prepare(s.t.Context(), spec, nil); err != nil {
		s.t.Fatalf("prepare %s: %v", spec.Instance, err)
	}
	w, err := s.Driver.Start(s.t.Context(), spec)
	if err != nil {
		s.t.Fatalf("start %s: %v", spec.Instance, err)
	}
	return w
}

func (s *suite) list(d driver.Driver) map[messages.InstanceID]driver.Workload {
	s.t.Helper()
	all, err := d.List(s.t.Context())
	if err != nil {
		s.t.Fatalf("list: %v", err)
	}
	byID := map[messages.InstanceID]driver.Workload{}
	for _, w := range all {
		byID[w.Instance] = w
	}
	if len(byID) != len(all) {
		s.t.Fatalf("list: an instance is listed twice: %+v", all)
	}
	return byID
}

// ended waits until the workload does not run.
func (s *suite) ended(id messages.InstanceID) driver.Workload {
	s.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // a driver need not offer more than List
		if w, ok := s.list(s.Driver)[id]; ok && !w.Running {
			return w
		}
	}
	s.t.Fatalf("%s still runs", id)
	return driver.Workload{}
}

// watch runs Watch for the rest of the test and returns what it reports, once it is ready.
func (s *suite) watch() <-chan driver.Workload {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan driver.Workload, 100)
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Driver.Watch(ctx, func() { close(ready) }, func(w driver.Workload) { seen <- w }); err != nil {
			s.t.Errorf("watch: %v", err)
		}
	})
	s.t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-ready:
	case <-time.After(patience):
		s.t.Fatal("watch never became ready")
	}
	return seen
}

// next waits for a report that the condition holds for.
func (s *suite) next(seen <-chan driver.Workload, what string, is func(driver.Workload) bool) driver.Workload {
	s.t.Helper()
	late := time.After(patience)
	for {
		select {
		case w := <-seen:
			if is(w) {
				return w
			}
		case <-late:
			s.t.Fatalf("no report of %s", what)
		}
	}
}

func (s *suite) wantErr(err, want error, words ...string) {
	s.t.Helper()
	if !errors.Is(err, want) {
		s.t.Fatalf("got error %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.t.Errorf("error %q does not name %q", err, w)
		}
	}
}

func startListStop(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	before := time.Now().Add(-time.Minute)
	w := s.start(spec)
	if w.Instance != spec.Instance || !w.Running || w.ID == "" || w.ImageID == "" || w.Exit != nil {
		t.Errorf("started: got %+v", w)
	}
	if w.StartedAt.Before(before) || w.StartedAt.After(time.Now().Add(time.Minute)) {
		t.Errorf("started at %v", w.StartedAt)
	}
	if !w.Address.IsValid() {
		t.Error("no address")
	}
	again, err := s.Driver.Start(t.Context(), spec)
	if err != nil || again.ID != w.ID || !again.StartedAt.Equal(w.StartedAt) {
		t.Errorf("a second start: got %+v, %v, want the first one's %+v", again, err, w)
	}
	if l := s.list(s.Driver); len(l) != 1 || l[spec.Instance].ID != w.ID || !l[spec.Instance].Running {
		t.Errorf("list: got %+v", l)
	}
	if err := s.Driver.Stop(t.Context(), spec.Instance, stop); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("after stop: got %+v", l)
	}
	s.wantErr(s.Driver.Stop(t.Context(), spec.Instance, stop), driver.ErrNotFound)
}

func stopWithoutWorkload(t *testing.T, s *suite) {
	s.wantErr(s.Driver.Stop(t.Context(), "never.0.0", stop), driver.ErrNotFound)
	_, err := s.Driver.Exec(t.Context(), "never.0.0", s.Succeed)
	s.wantErr(err, driver.ErrNotFound)
}

func prepareRepeated(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	for range 3 {
		if err := s.Driver.Prepare(t.Context(), spec, func(messages.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("prepare made workloads: %+v", l)
	}
}

func imageAbsent(t *testing.T, s *suite) {
	s.wantErr(s.Driver.Prepare(t.Context(), s.Absent("web.0.0"), nil), driver.ErrImageNotFound)
}

func exitCode(t *testing.T, s *suite) {
	s.start(s.Spec("job.0.0", Program{Exit: true, Code: 3}))
	w := s.ended("job.0.0")
	if w.Exit == nil || w.Exit.Code != 3 || w.Exit.OOM || w.Exit.Interrupted || w.Exit.At.IsZero() {
		t.Errorf("got exit %+v, want code 3, by itself", w.Exit)
	}
	if err := s.Driver.Stop(t.Context(), "job.0.0", stop); err != nil {
		t.Errorf("stop of an ended one: %v", err)
	}
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("after stop: got %+v", l)
	}
}

// An end that was not the workload's own is told as such: who looks on hears it, and so does who lists later.
func interrupted(t *testing.T, s *suite) {
	seen := s.watch()
	s.start(s.Spec("web.0.0", Program{}))
	s.Kill("web.0.0")
	if w := s.next(seen, "the end", func(w driver.Workload) bool { return w.Exit != nil }); !w.Exit.Interrupted {
		t.Errorf("watched: got exit %+v, want it interrupted", w.Exit)
	}
	if w := s.list(s.Again())["web.0.0"]; w.Exit == nil || !w.Exit.Interrupted {
		t.Errorf("listed: got exit %+v, want it interrupted", w.Exit)
	}
	s.start(s.Spec("job.0.0", Program{Exit: true}))
	if w := s.next(seen, "the exit", func(w driver.Workload) bool { return w.Instance == "job.0.0" && w.Exit != nil }); w.Exit.Interrupted {
		t.Errorf("watched: got exit %+v, want its own", w.Exit)
	}
	if w := s.list(s.Again())["job.0.0"]; w.Exit == nil || w.Exit.Interrupted {
		t.Errorf("listed: got exit %+v, want its own", w.Exit)
	}
}

func startedAgain(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	first := s.start(spec)
	s.Kill(spec.Instance)
	s.ended(spec.Instance)
	second := s.start(spec)
	if second.ID != first.ID || !second.Running || second.Exit != nil {
		t.Errorf("started again: got %+v, want the id %s, running", second, first.ID)
	}
	if !second.StartedAt.After(first.StartedAt) {
		t.Errorf("started again at %v, first at %v", second.StartedAt, first.StartedAt)
	}
}

func otherSpecReplaces(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	first := s.start(spec)
	spec.Environment = map[string]string{"CHANGED": "1"}
	second := s.start(spec)
	if second.ID == first.ID || !second.Running {
		t.Errorf("another spec on a running one: got %+v, want a new id", second)
	}
	s.Kill(spec.Instance)
	s.ended(spec.Instance)
	spec.Environment = map[string]string{"CHANGED": "2"}
	third := s.start(spec)
	if third.ID == second.ID || !third.Running {
		t.Errorf("another spec on an ended one: got %+v, want a new id", third)
	}
	if l := s.list(s.Driver); len(l) != 1 || l[spec.Instance].ID != third.ID {
		t.Errorf("list: got %+v", l)
	}
}

func otherOwnerFieldsDoNotReplace(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	first := s.start(spec)
	spec.Restart.MaxAttempts, spec.Priority, spec.Stop.Grace = 7, 5, messages.Duration(time.Minute)
	spec.Health = &messages.Health{TCP: &messages.TCPCheck{Port: 80}}
	if second := s.start(spec); second.ID != first.ID || !second.StartedAt.Equal(first.StartedAt) {
		t.Errorf("got %+v, want %+v left alone", second, first)
	}
}

func stubbornIsKilled(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{Stubborn: true, Print: "ready"})
	s.start(spec)
	s.printed(spec.Instance, "ready") // before that it may not have begun to ignore the signal
	seen := s.watch()
	begun := time.Now()
	short := messages.Stop{Signal: "SIGTERM", Grace: messages.Duration(1500 * time.Millisecond)}
	if err := s.Driver.Stop(t.Context(), spec.Instance, short); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 1450*time.Millisecond || took > patience {
		t.Errorf("stop took %v, want the grace of 1.5s and little more", took)
	}
	w := s.next(seen, "the end", func(w driver.Workload) bool { return w.Exit != nil })
	if w.Exit.Code != 137 {
		t.Errorf("got exit code %d, want 137: it was to be killed", w.Exit.Code)
	}
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("after stop: got %+v", l)
	}
}

func graceIsNotWaitedOut(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{Print: "ready"})
	s.start(spec)
	s.printed(spec.Instance, "ready")
	begun := time.Now()
	long := messages.Stop{Grace: messages.Duration(time.Hour)}
	if err := s.Driver.Stop(t.Context(), spec.Instance, long); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("stop took %v though the program ends at once", took)
	}
}

func crashIsWatched(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	seen := s.watch()
	w := s.start(spec)
	s.Kill(spec.Instance)
	got := s.next(seen, "the crash", func(w driver.Workload) bool { return w.Exit != nil })
	if got.Instance != spec.Instance || got.ID != w.ID || got.Running || got.Exit.Code != 137 || got.Exit.At.IsZero() {
		t.Errorf("crash: got %+v with exit %+v", got, got.Exit)
	}
}

func watchSeesStarts(t *testing.T, s *suite) {
	seen := s.watch()
	w := s.start(s.Spec("web.0.0", Program{}))
	got := s.next(seen, "the start", func(w driver.Workload) bool { return w.Running })
	if got.ID != w.ID || got.Instance != w.Instance {
		t.Errorf("got %+v, want %+v", got, w)
	}
	if err := s.Driver.Stop(t.Context(), w.Instance, stop); err != nil {
		t.Fatal(err)
	}
	s.next(seen, "the end", func(g driver.Workload) bool { return g.ID == w.ID && !g.Running })
}

func watchEndsWithContext(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Driver.Watch(ctx, cancel, func(driver.Workload) {}) }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("got %v, want nil", err)
		}
	case <-time.After(patience):
		t.Error("watch did not end with its context")
	}
}

func execCodes(t *testing.T, s *suite) {
	s.start(s.Spec("web.0.0", Program{}))
	for want, argv := range map[int][]string{0: s.Succeed, 7: s.Fail} {
		if got, err := s.Driver.Exec(t.Context(), "web.0.0", argv); err != nil || got != want {
			t.Errorf("exec %q: got %d, %v, want %d", argv, got, err, want)
		}
	}
}

func execEndsWithContext(t *testing.T, s *suite) {
	s.start(s.Spec("web.0.0", Program{}))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := s.Driver.Exec(ctx, "web.0.0", s.Hang)
	s.wantErr(err, context.DeadlineExceeded)
	if took := time.Since(begun); took > patience {
		t.Errorf("took %v", took)
	}
	if w := s.list(s.Driver)["web.0.0"]; !w.Running {
		t.Error("the timeout ended the workload")
	}
}

func ports(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	spec.Ports = []messages.Port{{Container: 80}, {Container: 53, Protocol: "udp"}}
	w := s.start(spec)
	if len(w.Ports) != 2 {
		t.Fatalf("got ports %+v, want two", w.Ports)
	}
	for _, want := range []messages.Port{{Container: 80, Protocol: "tcp"}, {Container: 53, Protocol: "udp"}} {
		i := slices.IndexFunc(w.Ports, func(p messages.Port) bool { return p.Container == want.Container && p.Protocol == want.Protocol })
		if i < 0 || w.Ports[i].Host == 0 {
			t.Errorf("got ports %+v, want %+v with a host port", w.Ports, want)
		}
	}
	if l := s.list(s.Driver)["web.0.0"]; !slices.Equal(l.Ports, w.Ports) {
		t.Errorf("list: got ports %+v, want %+v", l.Ports, w.Ports)
	}
}

func portInUse(t *testing.T, s *suite) {
	host := quietPort(t)
	first := s.Spec("web.0.0", Program{})
	first.Ports = []messages.Port{{Host: host, Container: 80}}
	s.start(first)
	second := s.Spec("web.1.0", Program{})
	second.Ports = []messages.Port{{Host: host, Container: 80}}
	_, err := s.Driver.Start(t.Context(), second)
	s.wantErr(err, driver.ErrPortInUse, fmt.Sprint(host))
	if l := s.list(s.Driver); len(l) != 1 {
		t.Errorf("a start that failed left something: %+v", l)
	}
	if err := s.Driver.Stop(t.Context(), "web.0.0", stop); err != nil {
		t.Fatal(err)
	}
	if w, err := s.Driver.Start(t.Context(), second); err != nil || w.Ports[0].Host != host {
		t.Errorf("once the port is free: got %+v, %v", w, err)
	}
}

// quietPort returns a host port that is free and that neither the kernel nor Docker gives to anybody who asks for any: such a one may be gone in the moment
// in which it is free.
func quietPort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no port between 20000 and 30000 is free")
	return 0
}

func badSignal(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	spec.Stop.Signal = "SIGNOSUCH"
	_, err := s.Driver.Start(t.Context(), spec)
	s.wantErr(err, driver.ErrInvalid)
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("left %+v", l)
	}
}
