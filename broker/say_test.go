package broker

import (
	"strings"
	"testing"
	"time"
)

func TestWarningsAreBounded(t *testing.T) {
	var s say
	now := time.Now()
	said := 0
	for range 10 * saidMost {
		if _, ok := s.due(now); ok {
			said++
		}
	}
	if said != saidMost {
		t.Errorf("said %d times within a minute, want %d", said, saidMost)
	}
	if unsaid, ok := s.due(now.Add(saidEvery)); !ok || unsaid != 9*saidMost {
		t.Errorf("a minute later: said %t, %d left out, want %d", ok, unsaid, 9*saidMost)
	}
	if unsaid, ok := s.due(now.Add(saidEvery + 1)); !ok || unsaid != 0 {
		t.Errorf("then: said %t, %d left out, want none", ok, unsaid)
	}
	if got := clip(strings.Repeat("x", 60_000)); len(got) > saidLen+8 {
		t.Errorf("%d bytes of a client's id are logged", len(got))
	}
}
