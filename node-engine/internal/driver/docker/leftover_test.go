package docker

import (
	"os"
	"testing"
)

// What is left of one container ends, and nothing else does.
func TestEndLeftovers(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	l := newLab(t)
	one, other := l.start(l.spec("web.0.0", "sleep")), l.start(l.spec("web.1.0", "sleep"))
	if n := endLeftovers(one.ID[:12]); n != 0 {
		t.Errorf("a short id: ended %d", n)
	}
	if n := endLeftovers(one.ID); n < 2 {
		t.Errorf("ended %d, want at least the program and the shim", n)
	}
	l.ended("web.0.0")
	if c := l.raw("web.1.0"); c.ID != other.ID || !c.State.Running {
		t.Errorf("the other one: %+v", c.State)
	}
	if again := l.start(l.spec("web.0.0", "sleep")); !again.Running {
		t.Errorf("started again: %+v", again)
	}
}
