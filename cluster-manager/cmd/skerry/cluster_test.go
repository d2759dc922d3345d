package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/cluster-manager/manager"
	"skerry.internal/messages"
)

// testCluster is a whole manager in this process.
type testCluster struct {
	m    *manager.Manager
	dir  string
	stop func() // ends the manager and waits for it
}

// newCluster starts a manager that lasts as long as the test.
func newCluster(t *testing.T) *testCluster {
	t.Helper()
	c := &testCluster{dir: t.TempDir()}
	c.start(t, "127.53.0.1:0") // nobody's connections come from there, so that it is free again after a restart
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *testCluster) start(t *testing.T, mqttAddr string) {
	t.Helper()
	m, err := manager.New(t.Context(), manager.Config{Cluster: "lab", HTTP: "127.0.0.1:0", MQTT: mqttAddr, Data: c.dir, Core: []messages.NodeID{"core-1"},
		Network: netip.MustParsePrefix("10.160.0.0/12"), Network6: netip.MustParsePrefix("fd5c:ae11:9::/48"),
		LostAfter: 2 * time.Second, TelemetryInterval: time.Second, Version: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.m = m
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	c.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

// restart ends the manager and starts another over the same state, at the same address.
func (c *testCluster) restart(t *testing.T) {
	t.Helper()
	addr := c.m.MQTTAddr()
	c.stop()
	c.start(t, addr)
}

func (c *testCluster) waitNode(t *testing.T, id messages.NodeID, state messages.NodeState) {
	t.Helper()
	until(t, string(id)+" to be "+string(state), func() bool {
		var n messages.NodeStatus
		r := c.skerry(t, "node", "status", string(id), "--json")
		return json.Unmarshal([]byte(r.out), &n) == nil && n.State == state
	})
}

// result is what a run of skerry left.
type result struct {
	code     int
	out, err string
}

// skerry runs the command in this process.
func (c *testCluster) skerry(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return c.skerryWith(ctx, "", args...)
}

func (c *testCluster) skerryWith(ctx context.Context, stdin string, args ...string) result {
	var out, errs bytes.Buffer
	code := run(ctx, args, streams{in: strings.NewReader(stdin), out: &out, err: &errs}, c.getenv)
	return result{code, out.String(), errs.String()}
}

func (c *testCluster) getenv(name string) string {
	switch name {
	case "SKERRY_BROKER":
		return "tcp://" + c.m.MQTTAddr()
	case "SKERRY_LABEL", "SKERRY_CLUSTER":
		return "nowhere" // meant for an engine and a manager
	default:
		return ""
	}
}

// until polls for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("waited too long for %s", what)
}

// buffer collects the output of something that goes on.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// process is a skerry that runs as a process of its own.
type process struct {
	cmd      *exec.Cmd
	out, err buffer
}

// spawn starts the built program with a cluster's address in its environment.
func (c *testCluster) spawn(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(t.Context(), binary, args...)}
	p.cmd.Env = append(os.Environ(), "SKERRY_BROKER=tcp://"+c.m.MQTTAddr(), "TERM=xterm")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// wait returns the exit code.
func (p *process) wait() int {
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// build makes the program, as the build of the project does.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "skerry")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-X main.version=v1-test", "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// want holds the exit code and what the streams contain.
func (r result) want(t *testing.T, code int, out, err string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, err) {
		t.Errorf("got exit code %d, want %d\nstdout, want %q:\n%s\nstderr, want %q:\n%s", r.code, code, out, r.out, err, r.err)
	}
}
