package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
)

func checked(h messages.Health) func(*messages.Spec) {
	return func(s *messages.Spec) {
		s.Health = &h
		*s = messages.Job{Spec: *s}.WithDefaults().Spec
	}
}

// probe is a health check by exec whose answer the test sets.
type probe struct{ code, calls atomic.Int64 }

func (p *probe) driver() *fake.Driver {
	return &fake.Driver{ExecFunc: func(context.Context, messages.InstanceID, []string) (int, error) {
		p.calls.Add(1)
		return int(p.code.Load()), nil
	}}
}

func TestHealthyAtFirstSuccess(t *testing.T) {
	var p probe
	p.code.Store(1)
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}, Interval: messages.Duration(5 * time.Second)})))
		settle(3100 * time.Millisecond)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running})
		p.code.Store(0)
		settle(maxPause)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		calls, reports := p.calls.Load(), r.count()
		settle(time.Minute)
		if got := p.calls.Load() - calls; got != 12 {
			t.Errorf("got %d checks in a minute, want one every 5 s", got)
		}
		if r.count() != reports {
			t.Error("reports without a change")
		}
	})
}

func TestUnhealthyIsAFailedAttempt(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up", "now"}, Retries: 3}), restart(messages.RestartOnFailure, 1)))
		settle(21 * time.Second)
		p.code.Store(7)
		settle(10 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true}) // two failures in a row
		p.code.Store(0)
		settle(5 * time.Second)
		p.code.Store(7)
		settle(14500 * time.Millisecond)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Pending, Code: messages.Unhealthy, Attempt: 1,
			Reason: "unhealthy: up exited with code 7, next attempt in 1s"})
		if got := r.running(); got != "" {
			t.Errorf("still running: %s", got)
		}
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.FailedState, Code: messages.Unhealthy, Attempt: 1, Reason: "gave up after 1 attempt: unhealthy"})
		if got := r.running(); got != "" {
			t.Errorf("still running: %s", got)
		}
	})
}

func TestNeverHealthy(t *testing.T) {
	var p probe
	p.code.Store(1)
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}, StartPeriod: messages.Duration(2 * time.Minute)})))
		settle(2*time.Minute + 14*time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running})
		settle(1500 * time.Millisecond)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Pending, Code: messages.Unhealthy, Attempt: 1})
		settle(4 * time.Minute) // and although each life is longer than a minute its failures count
		if s := r.last("web.0.0"); s.Attempt != 2 || (s.State == messages.Pending && !strings.Contains(s.Reason, "next attempt in 2s")) {
			t.Errorf("got %+v", s)
		}
	})
}

func TestUnhealthyUnderNeverIsLeft(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}}), restart(messages.RestartNever, 0)))
		settle(time.Minute)
		p.code.Store(1)
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Code: messages.Unhealthy, Reason: "unhealthy: up exited with code 1"})
		if n := r.count(); n != 6 {
			t.Errorf("got %d reports, want 6", n)
		}
		p.code.Store(0)
		settle(5 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestCheckHasATimeoutAndIsCutByNews(t *testing.T) {
	d := &fake.Driver{ExecFunc: func(ctx context.Context, _ messages.InstanceID, _ []string) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}, Timeout: messages.Duration(time.Hour)})))
		settle(time.Minute)
		if !r.d.Crash("web.0.0", 9, false) {
			t.Fatal("does not run")
		}
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Pending, Code: messages.Exited, Attempt: 1, ExitCode: new(9)})
		settle(2 * time.Second)
		r.assign("web.0.0", 2, nil)
		synctest.Wait()
		r.want("web.0.0", messages.InstanceStatus{State: messages.Stopped, Attempt: 1})
		r.assign("api.0.0", 3, spec(checked(messages.Health{Exec: []string{"up"}}), restart(messages.RestartNever, 0)))
		settle(time.Minute)
		r.want("api.0.0", messages.InstanceStatus{State: messages.Running, Code: messages.Unhealthy, Reason: "unhealthy: no answer within 1s"})
	})
}

// A technology that stands still says nothing about a workload, however long that goes on.
func TestCheckThatTheDriverDoesNotBegin(t *testing.T) {
	var stall atomic.Bool
	d := &fake.Driver{ExecFunc: func(ctx context.Context, _ messages.InstanceID, _ []string) (int, error) {
		if stall.Load() {
			<-ctx.Done()
			return 0, fmt.Errorf("%w: %w", driver.ErrUnavailable, ctx.Err())
		}
		return 0, nil
	}}
	bubble(t, d, func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}})))
		settle(time.Minute)
		stall.Store(true)
		settle(time.Hour)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
	})
}

func TestChecksRestWhileTheDriverIsAway(t *testing.T) {
	var p probe
	bubble(t, p.driver(), func(t *testing.T, r *rig) {
		r.start()
		r.assign("web.0.0", 1, spec(checked(messages.Health{Exec: []string{"up"}})))
		settle(time.Minute)
		r.d.Down(true)
		synctest.Wait()
		checks := r.d.Calls("exec")
		settle(time.Minute)
		if n := r.d.Calls("exec") - checks; n != 0 {
			t.Errorf("got %d checks, want none", n)
		}
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true, Reason: "docker does not answer"})
		r.d.Down(false)
		settle(10 * time.Second)
		r.want("web.0.0", messages.InstanceStatus{State: messages.Running, Healthy: true})
		if s := r.last("web.0.0"); s.Reason != "" {
			t.Errorf("got %+v", s)
		}
	})
}

func TestHTTPAndTCPChecks(t *testing.T) {
	codes := map[string]int{"/ok": 200, "/moved": 302, "/missing": 404, "/broken": 500}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/moved" {
			w.Header().Set("Location", "/broken")
		}
		w.WriteHeader(codes[q.URL.Path])
	}))
	defer srv.Close()
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	set := &Set{http: newHTTPClient()}
	closed := closedPort(t)
	cases := map[string]struct {
		h    messages.Health
		s    messages.InstanceStatus
		want string // part of the error; empty: healthy
	}{
		"ok":             {messages.Health{HTTP: &messages.HTTPCheck{Port: port, Path: "/ok"}}, messages.InstanceStatus{Address: "127.0.0.1"}, ""},
		"no address":     {messages.Health{HTTP: &messages.HTTPCheck{Port: port, Path: "/ok"}}, messages.InstanceStatus{}, ""},
		"published":      {messages.Health{HTTP: &messages.HTTPCheck{Port: 80, Path: "/ok"}}, messages.InstanceStatus{Ports: []messages.Port{{Host: port, Container: 80}}}, ""},
		"redirect":       {messages.Health{HTTP: &messages.HTTPCheck{Port: port, Path: "/moved"}}, messages.InstanceStatus{}, ""},
		"not found":      {messages.Health{HTTP: &messages.HTTPCheck{Port: port, Path: "/missing"}}, messages.InstanceStatus{}, "404 Not Found"},
		"server error":   {messages.Health{HTTP: &messages.HTTPCheck{Port: port, Path: "/broken"}}, messages.InstanceStatus{}, "500"},
		"nobody listens": {messages.Health{HTTP: &messages.HTTPCheck{Port: closed, Path: "/"}}, messages.InstanceStatus{}, "refused"},
		"tcp":            {messages.Health{TCP: &messages.TCPCheck{Port: port}}, messages.InstanceStatus{Address: "127.0.0.1"}, ""},
		"tcp refused":    {messages.Health{TCP: &messages.TCPCheck{Port: closed}}, messages.InstanceStatus{}, "refused"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := set.newTestRunner(c.s)
			err := r.check(t.Context(), &c.h)
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func (s *Set) newTestRunner(st messages.InstanceStatus) *runner {
	r := &runner{set: s}
	r.record.Status = st
	return r
}

func closedPort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// While a workload has not been joined to its network again nothing is there to be asked, least of all the board itself.
func TestChecksRestUntilItIsJoined(t *testing.T) {
	set := &Set{http: newHTTPClient()}
	for mode, rests := range map[messages.NetworkMode]bool{messages.Overlay: true, messages.HostNetwork: false} {
		r := set.newTestRunner(messages.InstanceStatus{Instance: "web.0.0", State: messages.Running, Network: mode})
		r.set.cfg.Report, r.quiet, r.log = func(messages.InstanceStatus) {}, true, slog.New(slog.DiscardHandler)
		r.acting.Spec = spec(checked(messages.Health{TCP: &messages.TCPCheck{Port: closedPort(t)}}))
		if got := r.tend(t.Context()) == idle; got != rests || r.health.next.IsZero() != rests {
			t.Errorf("%s: got at rest %v, next check at %v", mode, got, r.health.next)
		}
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r := (&Set{http: newHTTPClient()}).newTestRunner(messages.InstanceStatus{})
	err = r.check(ctx, &messages.Health{HTTP: &messages.HTTPCheck{Port: l.Addr().(*net.TCPAddr).Port, Path: "/"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
