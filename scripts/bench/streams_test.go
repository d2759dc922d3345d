package main

import (
	"fmt"
	"os"
	"testing"
)

// TestMain lets the test binary run itself again as the manager, as bench does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveMode {
		main()
		return
	}
	os.Exit(m.Run())
}

// A fleet whose connections are streams registers, and runs what is placed on it, while the manager has fewer files open than there are nodes.
func TestFleetOverStreams(t *testing.T) {
	const nodes = 50
	b := &bench{options: options{fleet: nodes}, dir: t.TempDir(), log: t.Output()}
	defer b.end()
	m, err := b.streamManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.connect(m)
	if err != nil {
		t.Fatal(err)
	}
	boards, _, err := b.joins(t.Context(), m, c)
	if err != nil || len(boards) != nodes {
		t.Fatalf("%d boards joined: %v", len(boards), err)
	}
	if _, err := placeMany(t.Context(), c, nodes/10, 0); err != nil {
		t.Error(err)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
	if err != nil || len(files) >= nodes {
		t.Errorf("the manager of %d nodes has %d files open: %v", nodes, len(files), err)
	}
}
