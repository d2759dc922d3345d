package register

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
)

// bench is a Server on a real socket, and what it admitted.
type bench struct {
	*Server
	url string

	mu    sync.Mutex // guards admits
	seen  map[messages.NodeID][]admission
	total int
}

type admission struct {
	info   messages.NodeInfo
	origin Origin
}

// serve runs a Server until the test ends, and then wants nothing of it left.
func serve(t testing.TB, cfg Config) *bench {
	t.Helper()
	b := &bench{seen: make(map[messages.NodeID][]admission)}
	cfg.Cluster = "lab"
	admit := cfg.Admit
	cfg.Admit = func(ctx context.Context, info messages.NodeInfo, o Origin) (messages.Welcome, error) {
		b.mu.Lock()
		b.seen[info.Name] = append(b.seen[info.Name], admission{info, o})
		b.total++
		b.mu.Unlock()
		if admit != nil {
			return admit(ctx, info, o)
		}
		return welcome(info), nil
	}
	s, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Server = s
	front := httptest.NewServer(s)
	b.url = front.URL
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		front.Close()
		if st := s.Stats(); st.Pending != 0 || st.Panics != 0 {
			t.Errorf("after Run: %+v", st)
		}
		waitFor(t, "goroutines to end", func() bool { return leftover() == "" })
	})
	return b
}

func stacks() string {
	buf := make([]byte, 8<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// leftover returns the stack of a goroutine that serves a registration.
func leftover() string {
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		if strings.Contains(stack, "register.(*Server)") && !strings.Contains(stack, "leftover") || strings.Contains(stack, "register/eio.") {
			return stack
		}
	}
	return ""
}

func (b *bench) admissions(name messages.NodeID) []admission {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[name]
}

func welcome(info messages.NodeInfo) messages.Welcome {
	return messages.Welcome{
		ID: info.Name, Cluster: "lab", Kind: messages.Spare, Brokers: []string{"mqtt://:1883"}, BrokerPort: "1883", Username: "ü",
		Lease: messages.Duration(30 * time.Second), TelemetryInterval: messages.Duration(5 * time.Second), Epoch: 3,
	}
}

// waitFor polls a condition, because nothing tells the test when it comes true.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for %s\n%s", what, leftover())
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// missing skips a test that lacks a part of the machine, or fails it where everything has to be there.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("SKERRY_TEST_ALL") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// result is one line of a client script.
type result struct {
	I         int
	Order     []string
	Event     string
	Form      string
	Answer    json.RawMessage
	Hello     messages.Hello
	Transport string
	Reason    string
	Error     string
}

func (r result) refusal(t *testing.T) messages.Refusal {
	t.Helper()
	var out messages.Refusal
	if r.Event != messages.RefusedEvent {
		t.Fatalf("got %+v, want a refusal", r)
	}
	if err := json.Unmarshal(r.Answer, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// options is the argument of the client scripts.
type options struct {
	Lib        string   `json:"lib,omitempty"`
	URL        string   `json:"url"`
	Namespace  string   `json:"namespace,omitempty"`
	Transports []string `json:"transports"`
	Count      int      `json:"count"`
	Text       bool     `json:"text,omitempty"`
	Info       any      `json:"info,omitempty"`
	Stay       bool     `json:"stay,omitempty"`
	Silent     bool     `json:"silent,omitempty"`
	Upgraded   bool     `json:"upgraded,omitempty"`
}

// client runs clients that nobody here wrote.
type client struct {
	name string
	run  func(t *testing.T, o options) []result
}

func clients(t *testing.T) []client {
	t.Helper()
	return []client{
		{"socket.io-client 2", func(t *testing.T, o options) []result { return runNode(t, "client2", o) }},
		{"socket.io-client 4", func(t *testing.T, o options) []result { return runNode(t, "client4", o) }},
		{"python-socketio", runPython},
	}
}

func runNode(t *testing.T, lib string, o options) []result {
	t.Helper()
	modules := nodeModules(t)
	o.Lib = lib
	return runClient(t, o, []string{"NODE_PATH=" + modules}, "node", "testdata/clients/client.js")
}

func runPython(t *testing.T, o options) []result {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's, which sees Debian's packages
	check := exec.CommandContext(t.Context(), python, "-c", "import socketio, requests, websocket")
	if out, err := check.CombinedOutput(); err != nil {
		missing(t, "python-socketio with its transports is missing (apt-get install python3-socketio python3-requests python3-websocket): %v\n%s", err, out)
	}
	return runClient(t, o, nil, python, "testdata/clients/client.py")
}

func runClient(t *testing.T, o options, env []string, program, script string) []result {
	t.Helper()
	if o.Count == 0 {
		o.Count = 1
	}
	arg, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, script, string(arg))
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, errs.Bytes())
	}
	if errs.Len() > 0 {
		t.Logf("%s: %s", script, errs.Bytes())
	}
	var results []result
	for line := range bytes.Lines(out) {
		var r result
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s printed %q: %v", script, line, err)
		}
		results = append(results, r)
	}
	if len(results) != o.Count {
		t.Fatalf("%d results of %d\n%s", len(results), o.Count, errs.Bytes())
	}
	return results
}

// nodeModules installs the pinned npm clients once for each lock file, outside the tree.
func nodeModules(t *testing.T) string {
	t.Helper()
	npm, err := exec.LookPath("npm")
	if err != nil {
		missing(t, "npm is missing, so the Socket.IO clients of testdata/clients cannot be installed (apt-get install nodejs npm): %v", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	lock, err := os.ReadFile("testdata/clients/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(lock)
	dir := filepath.Join(cache, "skerry-test", "register-clients-"+hex.EncodeToString(hash[:8]))
	modules := filepath.Join(dir, "node_modules")
	if _, err := os.Stat(modules); err == nil {
		return modules
	}
	if err := install(t, npm, dir); err != nil {
		missing(t, "npm ci could not install the Socket.IO clients of testdata/clients; it needs a registry or a filled cache: %v", err)
	}
	return modules
}

// install makes dir appear whole or not at all, so that an interrupted one is not taken for done.
func install(t *testing.T, npm, dir string) error {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "installing-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(filepath.Join("testdata/clients", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o644); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	err = os.Rename(tmp, dir)
	if _, statErr := os.Stat(filepath.Join(dir, "node_modules")); statErr == nil {
		return nil // somebody else was faster
	}
	return err
}
