package docker

import (
	"testing"
	"time"

	"skerry.internal/node-engine/internal/driver"
)

// Docker says that a container has ended and that it was short of memory in either order.
func TestShortageInEitherOrder(t *testing.T) {
	now := time.Now()
	end := func(code int) driver.Workload { return driver.Workload{ID: "c", Exit: &driver.Exit{Code: code}} }

	s := newShortage()
	s.oom("c")
	if w := end(killed); !s.ended("c", w, true, now) || !w.Exit.OOM {
		t.Errorf("memory first: got %+v", w.Exit)
	}
	if w := end(killed); s.ended("c", w, true, now) {
		t.Error("the next end takes the word of the one before")
	}
	if w, ok := s.oom("c"); !ok || !w.Exit.OOM {
		t.Errorf("memory second: got %+v, %t", w.Exit, ok)
	}
	if ready, next := s.due(now.Add(time.Hour)); len(ready) != 0 || next != 0 {
		t.Errorf("said twice: %v, %s", ready, next)
	}

	s.ended("c", end(killed), true, now)
	if ready, next := s.due(now.Add(oomPatience / 4)); len(ready) != 0 || next != oomPatience*3/4 {
		t.Errorf("too early: %v, next %s", ready, next)
	}
	if ready, next := s.due(now.Add(oomPatience)); len(ready) != 1 || ready[0].Exit.OOM || next != 0 {
		t.Errorf("killed by somebody: %v, next %s", ready, next)
	}

	s.ended("c", end(killed), true, now)
	s.begun("c")
	if ready, _ := s.due(now.Add(time.Hour)); len(ready) != 0 {
		t.Errorf("started again: %v", ready)
	}
}

// What cannot be a want of memory is said at once.
func TestNoShortageIsSaidAtOnce(t *testing.T) {
	for _, c := range []struct {
		code    int
		limited bool
	}{{0, true}, {1, true}, {143, true}, {killed, false}} {
		s := newShortage()
		if w := (driver.Workload{Exit: &driver.Exit{Code: c.code}}); !s.ended("c", w, c.limited, time.Now()) || w.Exit.OOM {
			t.Errorf("code %d, limited %t: got %+v", c.code, c.limited, w.Exit)
		}
	}
}
