package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

func startsAtOnce(t *testing.T, s *suite) {
	const n = 5
	var wg sync.WaitGroup
	for i := range n {
		spec := s.Spec(messages.NewInstanceID("web", i, 0), Program{})
		wg.Go(func() {
			if _, err := s.Driver.Start(t.Context(), spec); err != nil {
				t.Errorf("start %s: %v", spec.Instance, err)
			}
		})
	}
	wg.Wait()
	l := s.list(s.Driver)
	if len(l) != n {
		t.Errorf("got %d workloads, want %d", len(l), n)
	}
	for id := range l {
		wg.Go(func() {
			if err := s.Driver.Stop(t.Context(), id, stop); err != nil {
				t.Errorf("stop %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("left %+v", l)
	}
}

func sameStartAtOnce(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	var mu sync.Mutex
	ids := map[string]bool{}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			w, err := s.Driver.Start(t.Context(), spec)
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[w.ID] = true
		})
	}
	wg.Wait()
	if len(ids) != 1 || len(s.list(s.Driver)) != 1 {
		t.Errorf("got the workloads %v, want one", ids)
	}
}

func cancelledContext(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	spec := s.Spec("web.0.0", Program{})
	if err := s.Driver.Prepare(ctx, spec, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("prepare: got %v", err)
	}
	if _, err := s.Driver.Start(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("start: got %v", err)
	}
	if err := s.Driver.Stop(ctx, spec.Instance, stop); !errors.Is(err, context.Canceled) {
		t.Errorf("stop: got %v", err)
	}
	if _, err := s.Driver.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("list: got %v", err)
	}
	if err := s.Driver.Watch(ctx, func() {}, func(driver.Workload) {}); err != nil {
		t.Errorf("watch: got %v, want nil", err)
	}
	if l := s.list(s.Driver); len(l) != 0 {
		t.Errorf("left %+v", l)
	}
}

func takenUpAgain(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	spec.Ports = []messages.Port{{Container: 80}}
	first := s.start(spec)
	d := s.Again()
	got := s.list(d)["web.0.0"]
	if got.ID != first.ID || !got.Running || got.Ports[0] != first.Ports[0] || got.Address != first.Address {
		t.Errorf("list: got %+v, want %+v", got, first)
	}
	again, err := d.Start(t.Context(), spec)
	if err != nil || again.ID != first.ID || !again.StartedAt.Equal(first.StartedAt) {
		t.Errorf("start: got %+v, %v, want %+v left alone", again, err, first)
	}
	if err := d.Stop(t.Context(), spec.Instance, stop); err != nil {
		t.Error(err)
	}
}

func usage(t *testing.T, s *suite) {
	m, ok := s.Driver.(driver.Meter)
	if !ok {
		return
	}
	s.start(s.Spec("web.0.0", Program{}))
	s.start(s.Spec("job.0.0", Program{Exit: true}))
	s.ended("job.0.0")
	all, err := m.Usage(t.Context())
	if err != nil || len(all) != 1 || all[0].Instance != "web.0.0" {
		t.Errorf("got %+v, %v, want web.0.0 alone", all, err)
	}
}

// printed waits until the output of a workload holds text.
func (s *suite) printed(id messages.InstanceID, text string) {
	s.t.Helper()
	l, ok := s.Driver.(driver.Logger)
	if !ok {
		s.t.Fatal("the suite needs a driver.Logger to know when a program is ready")
	}
	found := errors.New("found")
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var all strings.Builder
	err := l.Logs(ctx, messages.LogsRequest{Instance: id, Follow: true}, func(_, piece string) error {
		all.WriteString(piece)
		if strings.Contains(all.String(), text) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		s.t.Fatalf("%s never printed %q but %q: %v", id, text, all.String(), err)
	}
}

func logs(t *testing.T, s *suite) {
	l, ok := s.Driver.(driver.Logger)
	if !ok {
		return
	}
	s.start(s.Spec("job.0.0", Program{Exit: true, Print: "grüß dich"}))
	s.ended("job.0.0")
	for _, follow := range []bool{false, true} {
		var all strings.Builder
		err := l.Logs(t.Context(), messages.LogsRequest{Instance: "job.0.0", Follow: follow}, func(stream, text string) error {
			fmt.Fprintf(&all, "%s:%s", stream, text)
			return nil
		})
		if err != nil || all.String() != "stdout:grüß dich\n" {
			t.Errorf("follow %v: got %q, %v", follow, all.String(), err)
		}
	}
	s.wantErr(l.Logs(t.Context(), messages.LogsRequest{Instance: "never.0.0"}, func(string, string) error { return nil }), driver.ErrNotFound)
}

func down(t *testing.T, s *suite) {
	spec := s.Spec("web.0.0", Program{})
	s.start(spec)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Driver.Watch(t.Context(), func() { close(ready) }, func(driver.Workload) {}) }()
	<-ready
	s.Down()
	select {
	case err := <-ended:
		s.wantErr(err, driver.ErrUnavailable)
	case <-time.After(patience):
		t.Fatal("watch did not end")
	}
	s.wantErr(s.Driver.Prepare(t.Context(), spec, nil), driver.ErrUnavailable)
	_, err := s.Driver.Start(t.Context(), spec)
	s.wantErr(err, driver.ErrUnavailable)
	s.wantErr(s.Driver.Stop(t.Context(), spec.Instance, stop), driver.ErrUnavailable)
	_, err = s.Driver.List(t.Context())
	s.wantErr(err, driver.ErrUnavailable)
	_, err = s.Driver.Exec(t.Context(), spec.Instance, s.Succeed)
	s.wantErr(err, driver.ErrUnavailable)
	s.wantErr(s.Driver.Watch(t.Context(), func() {}, func(driver.Workload) {}), driver.ErrUnavailable)
}

func dial(t *testing.T, s *suite) {
	if !s.Dials {
		return
	}
	spec := s.Spec("web.0.0", Program{Listen: 8080, Print: "ready"})
	spec.Ports = []messages.Port{{Container: 8080}}
	w := s.start(spec)
	s.printed(spec.Instance, "ready")
	for _, addr := range []string{
		net.JoinHostPort(w.Address.String(), "8080"),
		net.JoinHostPort("127.0.0.1", fmt.Sprint(w.Ports[0].Host)),
	} {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Errorf("dial %s: %v", addr, err)
			continue
		}
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != "hello\n" {
			t.Errorf("%s: got %q, %v", addr, got, err)
		}
		conn.Close()
	}
}
