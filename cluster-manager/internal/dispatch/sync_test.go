package dispatch

import (
	"maps"
	"testing"

	"skerry.internal/messages"
)

// A node that has lost its disk counts seq from the start. What it says in answer to the sync is news all the same; what is late
// after that is not.
func TestNodeThatLostItsDiskIsHeard(t *testing.T) {
	w := newWorld(t, "a")
	w.done(w.accepted(deploy(job("web", "good", 1))))
	for range 9 {
		w.change("web.0.0", func(*messages.InstanceStatus) {})
	}
	late := w.nodes["a"].status["web.0.0"]
	w.disconnect("a")
	maps.DeleteFunc(w.nodes["a"].holds, func(messages.InstanceID, messages.Assignment) bool { return true })
	clear(w.nodes["a"].status)
	w.connect("a")
	w.settle()
	w.change("web.0.0", func(s *messages.InstanceStatus) { s.State, s.Healthy = messages.FailedState, false })
	if got := w.jobs["web"].Instances[0]; got.State != messages.FailedState {
		t.Fatalf("got %s with seq %d, want what the node says now", got.State, got.Seq)
	}
	late.Seq = 1
	w.core.Status("a", late, w.now)
	w.settle()
	if got := w.jobs["web"].Instances[0]; got.State != messages.FailedState {
		t.Errorf("got %s, want a late status to change nothing", got.State)
	}
}
