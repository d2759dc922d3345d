package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

// Until the first success checks are repeated faster than their interval, so that a deploy does not wait for one: at first at once, and
// then after pauses that double. A program in the workload costs more than a connection and begins with the longest pause.
const (
	firstPause = 20 * time.Millisecond
	maxPause   = 250 * time.Millisecond
)

// checks is what is known of the health of one life of a workload.
type checks struct {
	been     bool // it has been healthy in this life
	since    time.Time
	next     time.Time
	failures int // in a row
	pause    time.Duration
}

func newChecks(been bool) checks { return checks{been: been, since: time.Now()} }

// tend looks after a running workload: it checks its health where that is due, and returns how long there is nothing to do.
func (r *runner) tend(ctx context.Context) time.Duration {
	h := r.spec().Health
	if h == nil {
		r.health.been = true
		r.publish(func(rec *store.Record) {
			if !rec.Status.Healthy {
				rec.Status.Healthy, rec.Status.Code, rec.Status.Reason = true, "", ""
			}
		})
		return idle
	}
	if s := r.status(); len(h.Exec) == 0 && s.Network == messages.Overlay && s.Address == "" {
		return idle // it is not joined yet: an event says when, and until then nothing answers for it
	}
	if d := time.Until(r.health.next); d > 0 {
		return d
	}
	checkCtx, done, ok := r.glancing(ctx, h.Timeout.Std())
	if !ok {
		return idle
	}
	began := time.Now()
	err := r.check(checkCtx, h)
	timedOut := errors.Is(checkCtx.Err(), context.DeadlineExceeded)
	if err != nil && timedOut && !errors.Is(err, driver.ErrUnavailable) {
		err = fmt.Errorf("no answer within %s", h.Timeout)
	}
	if done() || ctx.Err() != nil {
		return 0 // cut short: it says nothing
	}
	r.checked(h, began, err)
	return 0
}

// glancing gives a check its context, which ends with any news. ok is false while the technology does not answer: nothing
// could be done about a bad result. done ends it and reports whether there was news.
func (r *runner) glancing(ctx context.Context, timeout time.Duration) (checkCtx context.Context, done func() bool, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away != present {
		return nil, nil, false
	}
	checkCtx, cancel := context.WithTimeout(ctx, timeout)
	r.glance = cancel
	if r.seen != nil || r.overtook {
		cancel()
	}
	return checkCtx, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		cancel()
		r.glance = nil
		return r.seen != nil || r.overtook
	}, true
}

// checked takes over the result of one check.
func (r *runner) checked(h *messages.Health, began time.Time, err error) {
	c := &r.health
	c.next = began.Add(h.Interval.Std())
	bad := false
	switch ran := time.Since(c.since); {
	case errors.Is(err, driver.ErrUnavailable): // no result
	case err == nil:
		c.been, c.failures = true, 0
		r.publish(func(rec *store.Record) { rec.Status.Healthy, rec.Status.Code, rec.Status.Reason = true, "", "" })
	case c.been && ran < h.StartPeriod.Std():
		c.failures = 0
	case c.been:
		c.failures++
		bad = c.failures >= h.Retries
	default:
		bad = ran >= h.StartPeriod.Std()+time.Duration(h.Retries)*h.Interval.Std()
		if !bad {
			c.next = began.Add(c.longer(h))
		}
	}
	c.next = maxTime(c.next, time.Now().Add(min(firstPause, h.Interval.Std()))) // a slow check does not follow upon itself
	if bad {
		r.unhealthy(clip("unhealthy: " + err.Error()))
	}
}

// longer returns the pause before the next check of a workload that is coming up.
func (c *checks) longer(h *messages.Health) time.Duration {
	c.pause = min(max(2*c.pause, firstPause), maxPause)
	if len(h.Exec) > 0 {
		c.pause = maxPause
	}
	return min(c.pause, h.Interval.Std())
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// unhealthy says so, and has the workload ended where the restart policy gives it another attempt.
func (r *runner) unhealthy(reason string) {
	never := r.spec().Restart.Policy == messages.RestartNever
	if s := r.status(); never && s.Code == messages.Unhealthy {
		return // said already; only the last words of its checks differ
	}
	r.publish(func(rec *store.Record) {
		rec.Status.Healthy, rec.Status.Code, rec.Status.Reason = false, messages.Unhealthy, reason
	})
	if !never {
		r.ending, r.cause = true, &failure{code: messages.Unhealthy, reason: reason}
	}
}

// check makes one check; nil is healthy.
func (r *runner) check(ctx context.Context, h *messages.Health) error {
	s := r.status()
	switch {
	case h.HTTP != nil:
		return r.set.checkHTTP(ctx, "http://"+target(s, h.HTTP.Port)+h.HTTP.Path)
	case h.TCP != nil:
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", target(s, h.TCP.Port))
		if err != nil {
			return err
		}
		return conn.Close()
	default:
		code, err := r.set.driverFor(r.spec()).Exec(ctx, r.id, h.Exec)
		if err == nil && code != 0 {
			err = fmt.Errorf("%s exited with code %d", h.Exec[0], code)
		}
		return err
	}
}

// target returns where a container's port is reached: at its address, or for a container without one of its own on this host.
func target(s messages.InstanceStatus, port int) string {
	addr, err := netip.ParseAddr(s.Address)
	if err == nil {
		return net.JoinHostPort(addr.String(), strconv.Itoa(port))
	}
	for _, p := range s.Ports {
		if p.Container == port && p.Protocol != "udp" && p.Host != 0 {
			port = p.Host
			break
		}
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func (s *Set) checkHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "skerry-health")
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// newHTTPClient returns a client for checks: a redirect is an answer, no connection is kept, no proxy of the environment is asked.
func newHTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
