package main

import (
	"runtime"
	"testing"
)

func TestRunAhead(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	runAhead(func(string) string { return "3" }) // the runtime has taken it
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d goroutines at once where GOMAXPROCS is set, want %d as before", n, before)
	}
	runAhead(func(string) string { return "" })
	if n := runtime.GOMAXPROCS(0); n != before+spareProcessors {
		t.Errorf("%d goroutines at once, want %d", n, before+spareProcessors)
	}
}
