package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"
)

// lookup asks as a client would that waits for the answer.
func lookup(ctx context.Context, t *testing.T, s *Server, name string) string {
	t.Helper()
	packet, err := new(wire.Msg).SetQuestion(name, wire.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	raw, later := s.begin(packet, false)
	if later != nil {
		raw = later.answer(ctx)
	}
	m := new(wire.Msg)
	if err := m.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	return brief(m)
}

const noAnswer, noName = "SERVFAIL", "NXDOMAIN skerry.internal."

func TestMiss(t *testing.T) {
	db := Job{Name: "db", RoundRobin: netip.MustParseAddr("10.172.0.50")}
	for name, c := range map[string]struct {
		said  func(*Server) // 100 ms after the question
		want  string
		after time.Duration
		asked int32 // how often, when ten ask and one more a second later
		then  string
	}{
		"the table comes":      {func(s *Server) { s.SetTable(NewTable([]Job{db})) }, "A 10.172.0.50", 100 * time.Millisecond, 1, "A 10.172.0.50"},
		"another table comes":  {func(s *Server) { s.SetTable(NewTable(nil)) }, noAnswer, patience, 1, noAnswer},
		"no such job":          {func(s *Server) { s.Unknown("db", "other") }, noName, 100 * time.Millisecond, 1, noName},
		"nobody says anything": {func(*Server) {}, noAnswer, patience, 1, noAnswer},
		"another is not to be": {func(s *Server) { s.Unknown("other") }, noAnswer, patience, 1, noAnswer},
		"it is there, and then": {func(s *Server) {
			s.SetTable(NewTable([]Job{db}))
			s.SetTable(NewTable(nil))
		}, noAnswer, 100 * time.Millisecond, 1, noAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				s := unplugged(func(job string) {
					if asked.Add(1); job != "db" {
						t.Errorf("asked for %q", job)
					}
				})
				var hits []string
				s.hit = func(job string) { hits = append(hits, job) }
				var wg sync.WaitGroup
				began := time.Now()
				for range 10 {
					wg.Go(func() {
						if got := lookup(t.Context(), t, s, "DB.skerry.internal."); got != c.want || time.Since(began) != c.after {
							t.Errorf("got %q after %s, want %q after %s", got, time.Since(began), c.want, c.after)
						}
					})
				}
				time.Sleep(100 * time.Millisecond)
				if got := lookup(t.Context(), t, s, "web.skerry.internal."); got != "A 10.172.0.1" || time.Since(began) != 100*time.Millisecond {
					t.Errorf("another name: got %q after %s", got, time.Since(began))
				}
				if !slices.Equal(hits, []string{"web"}) {
					t.Errorf("hits: got %v, want web", hits)
				}
				c.said(s)
				wg.Wait()
				time.Sleep(time.Second)
				began = time.Now()
				if got := lookup(t.Context(), t, s, "db.skerry.internal."); got != c.then || time.Since(began) != 0 {
					t.Errorf("a second later: got %q after %s, want %q at once", got, time.Since(began), c.then)
				}
				if asked.Load() != c.asked {
					t.Errorf("asked %d times, want %d", asked.Load(), c.asked)
				}
				if len(s.miss.pending) != 0 {
					t.Errorf("%d names are still waited for", len(s.miss.pending))
				}
			})
		})
	}
}

// A name that did not come is asked for again after a while, and one that comes late is answered at once.
func TestMissIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		s := unplugged(func(string) { asked++ })
		for range 3 {
			if got := lookup(t.Context(), t, s, "db.skerry.internal."); got != noAnswer {
				t.Errorf("got %q", got)
			}
			time.Sleep(forgetful)
		}
		if asked != 3 {
			t.Errorf("asked %d times, want 3", asked)
		}
		lookup(t.Context(), t, s, "db.skerry.internal.")
		s.SetTable(NewTable([]Job{{Name: "db", RoundRobin: netip.MustParseAddr("10.172.0.50")}}))
		if got := lookup(t.Context(), t, s, "db.skerry.internal."); got != "A 10.172.0.50" {
			t.Errorf("after it came: got %q", got)
		}
	})
}

// A table that comes while the question is put to OnMiss is not slept through.
func TestMissAnsweredWithinTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Server
		s = unplugged(func(job string) {
			s.SetTable(NewTable([]Job{{Name: job, RoundRobin: netip.MustParseAddr("10.172.0.50")}}))
		})
		began := time.Now()
		if got := lookup(t.Context(), t, s, "db.skerry.internal."); got != "A 10.172.0.50" || time.Since(began) != 0 {
			t.Errorf("got %q after %s", got, time.Since(began))
		}
	})
}

// The end of the server ends the waiting, and is no statement about the name.
func TestMissAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := unplugged(func(string) { cancel() })
		began := time.Now()
		if got := lookup(ctx, t, s, "db.skerry.internal."); got != noAnswer || time.Since(began) != 0 {
			t.Errorf("got %q after %s", got, time.Since(began))
		}
		if len(s.miss.absent) != 0 {
			t.Error("remembered as missing")
		}
	})
}

// What is remembered is bounded, whatever names are asked for.
func TestMissMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := unplugged(func(string) {})
		names := make([]string, 2*maxAbsent)
		for i := range names {
			names[i] = fmt.Sprintf("n%d", i)
		}
		s.Unknown(names...)
		if len(s.miss.absent) != maxAbsent {
			t.Errorf("remembers %d names, want %d", len(s.miss.absent), maxAbsent)
		}
		time.Sleep(forgetful)
		s.Unknown("db")
		if len(s.miss.absent) != 1 {
			t.Errorf("remembers %d names after they are old, want 1", len(s.miss.absent))
		}
		for _, name := range []string{strings.Repeat("a", 63) + ".skerry.internal.", `a\000.skerry.internal.`, "a_b.skerry.internal.", "-a.skerry.internal."} {
			lookup(t.Context(), t, s, name)
		}
		if len(s.miss.absent) != 2 {
			t.Errorf("remembers %d names, want the two that could be jobs", len(s.miss.absent))
		}
	})
}
