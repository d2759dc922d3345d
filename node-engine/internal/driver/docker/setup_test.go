package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// socket is where the tests find Docker.
const socket = "/var/run/docker.sock"

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// bare returns a plain client of the real engine.
func bare(t testing.TB) *client.Client {
	t.Helper()
	cli, err := client.NewClientWithOpts(client.WithHost("unix://"+socket), client.WithAPIVersionNegotiation())
	if err == nil {
		_, err = cli.Ping(context.Background())
	}
	if err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatalf("no docker: %v", err)
		}
		t.Skipf("no docker: %v", err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

// newNode returns a node name of this test alone, and removes every container of it when the test ends.
func newNode(t testing.TB, cli *client.Client) messages.NodeID {
	t.Helper()
	node := messages.NodeID("test-" + strings.ToLower(rand.Text()[:10]))
	t.Cleanup(func() {
		ctx := context.Background()
		mine := filters.NewArgs(filters.Arg("label", LabelNode+"="+string(node)))
		left, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: mine})
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		for _, c := range left {
			if err := remove(ctx, cli, c.ID); err != nil {
				t.Errorf("clean up %s: %v", c.Names, err)
			}
		}
	})
	return node
}

func newDriver(t testing.TB, cfg Config) *Driver {
	t.Helper()
	if cfg.Host == "" {
		cfg.Host = "unix://" + socket
	}
	d, err := New(cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// helperTar is a file system with the helper program alone, built once.
var helperTar = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "skerry-helper-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "helper")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", file, "./testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the helper: %w\n%s", err, out)
	}
	program, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "helper", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
})

// helperImage makes an image of the helper for this test. changes are lines of a Dockerfile.
func helperImage(t testing.TB, cli *client.Client, changes ...string) string {
	t.Helper()
	layer, err := helperTar()
	if err != nil {
		t.Fatal(err)
	}
	ref := "skerry-test-" + strings.ToLower(rand.Text()[:10]) + ":1"
	changes = append([]string{`ENTRYPOINT ["/helper"]`, `CMD ["sleep"]`}, changes...)
	r, err := cli.ImageImport(t.Context(), image.ImportSource{Source: bytes.NewReader(layer), SourceName: "-"}, ref,
		image.ImportOptions{Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	r.Close()
	if err != nil || bytes.Contains(out, []byte(`"error"`)) {
		t.Fatalf("import: %v %s", err, out)
	}
	cleanImage(t, cli, ref)
	return ref
}

// cleanImage removes an image when the test ends, if it is there.
func cleanImage(t testing.TB, cli *client.Client, ref string) {
	t.Cleanup(func() {
		_, err := cli.ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true, PruneChildren: true})
		if err != nil && !strings.Contains(err.Error(), "No such image") {
			t.Errorf("clean up %s: %v", ref, err)
		}
	})
}

// lab is what most tests need: a driver for a node of its own, and an image.
type lab struct {
	*Driver
	t   testing.TB
	cli *client.Client
	ref string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	cli := bare(t)
	ref := helperImage(t, cli)
	return &lab{Driver: newDriver(t, Config{Node: newNode(t, cli)}), t: t, cli: cli, ref: ref}
}

// spec is the helper doing these actions in turn.
func (l *lab) spec(id messages.InstanceID, actions ...string) driver.Spec {
	return driver.Spec{Instance: id, Spec: messages.Spec{Image: l.ref, Args: actions}}
}

func (l *lab) start(spec driver.Spec) driver.Workload {
	l.t.Helper()
	w, err := l.Start(l.t.Context(), spec)
	if err != nil {
		l.t.Fatalf("start %s: %v", spec.Instance, err)
	}
	return w
}

// raw is the container as Docker describes it.
func (l *lab) raw(id messages.InstanceID) container.InspectResponse {
	l.t.Helper()
	c, err := l.cli.ContainerInspect(l.t.Context(), l.containerName(id))
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// output waits for the end of the workload and returns what it wrote.
func (l *lab) output(id messages.InstanceID) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	var all strings.Builder
	err := l.Logs(ctx, messages.LogsRequest{Instance: id, Follow: true}, func(_, text string) error {
		all.WriteString(text)
		return nil
	})
	if err != nil || ctx.Err() != nil {
		l.t.Fatalf("output of %s: %v %v", id, err, ctx.Err())
	}
	return all.String()
}

// ended waits for the end of the workload.
func (l *lab) ended(id messages.InstanceID) driver.Workload {
	l.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if w := workload(l.raw(id)); w.Exit != nil {
			return w
		}
	}
	l.t.Fatalf("%s still runs", id)
	return driver.Workload{}
}

// eventually polls until is says so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// wire is a way to Docker that a test can cut.
type wire struct {
	listener net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

func newWire(t testing.TB) *wire {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, conns: map[net.Conn]bool{}}
	w.wg.Go(w.accept)
	t.Cleanup(func() { w.cut(); w.wg.Wait() })
	return w
}

func (w *wire) host() string { return "unix://" + w.listener.Addr().String() }

func (w *wire) accept() {
	for {
		a, err := w.listener.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("unix", socket)
		if err != nil {
			a.Close()
			continue
		}
		w.mu.Lock()
		w.conns[a], w.conns[b] = true, true
		w.mu.Unlock()
		for from, to := range map[net.Conn]net.Conn{a: b, b: a} {
			w.wg.Go(func() {
				io.Copy(to, from)
				to.Close()
			})
		}
	}
}

// cut ends every connection and takes no more.
func (w *wire) cut() {
	w.listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
}

// counter is a way to Docker that notes what is asked, and can answer in Docker's place.
type counter struct {
	mu     sync.Mutex
	calls  []string
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newCounter(t testing.TB) (*counter, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	proxy.FlushInterval = -1
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.calls = append(c.calls, r.Method+" "+r.URL.Path)
		answer := c.answer
		c.mu.Unlock()
		if answer == nil || !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	t.Cleanup(func() { server.Close(); wg.Wait() })
	return c, "unix://" + file
}

// take returns the calls since the last take.
func (c *counter) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.calls
	c.calls = nil
	return calls
}

func (c *counter) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}
