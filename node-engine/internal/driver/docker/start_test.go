package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// A deploy of a present image is what the path of a job costs, so its calls are counted.
func TestCallsOfADeploy(t *testing.T) {
	l := newLab(t)
	c, host := newCounter(t)
	l.Driver = newDriver(t, Config{Node: l.cfg.Node, Host: host})
	if _, err := l.Info(t.Context()); err != nil { // as an engine does at its start
		t.Fatal(err)
	}
	c.take()
	spec := l.spec("web.0.0", "sleep")
	if err := l.Prepare(t.Context(), spec, nil); err != nil {
		t.Fatal(err)
	}
	l.start(spec)
	version := regexp.MustCompile(`^(\w+) /v[0-9.]+/`)
	id := regexp.MustCompile(`[0-9a-f]{64}`)
	var got []string
	for _, call := range c.take() {
		got = append(got, id.ReplaceAllString(version.ReplaceAllString(call, "$1 "), "ID"))
	}
	want := []string{"GET images/" + l.ref + "/json", "POST containers/create", "POST containers/ID/start", "GET containers/ID/json"}
	if !slices.Equal(got, want) {
		t.Errorf("got calls %q, want %q", got, want)
	}
}

func TestEnvironmentAndArguments(t *testing.T) {
	l := newLab(t)
	spec := l.spec("web.3.7", "env", "args")
	spec.Environment = map[string]string{"MODE": "edge", "SPACED": "a b=c", "SKERRY_NODE": "forged"}
	l.start(spec)
	out := l.output(spec.Instance)
	for _, want := range []string{"MODE=edge\n", "SPACED=a b=c\n", "SKERRY_INSTANCE=web.3.7\n", "SKERRY_JOB=web\n", "SKERRY_ORDINAL=3\n",
		"SKERRY_NODE=" + string(l.cfg.Node) + "\n", "[/helper env args]\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	entry := l.spec("web.4.0", "args")
	entry.Entrypoint = []string{"/helper", "print=entry"}
	l.start(entry)
	if out := l.output(entry.Instance); out != "entry\n[/helper print=entry args]\n" {
		t.Errorf("entrypoint: got %q", out)
	}
}

func TestLabelsNameAndLogBounds(t *testing.T) {
	l := newLab(t)
	l.Driver = newDriver(t, Config{Node: l.cfg.Node, Cluster: "lab"})
	spec := l.spec("web.0.0", "sleep")
	l.start(spec)
	c := l.raw(spec.Instance)
	want := map[string]string{LabelNode: string(l.cfg.Node), LabelJob: "web", LabelInstance: "web.0.0", LabelCluster: "lab", LabelSpec: spec.Hash()}
	for k, v := range want {
		if c.Config.Labels[k] != v {
			t.Errorf("label %s: got %q, want %q", k, c.Config.Labels[k], v)
		}
	}
	if c.Name != "/skerry-"+string(l.cfg.Node)+".web.0.0" {
		t.Errorf("got name %s", c.Name)
	}
	if log := c.HostConfig.LogConfig; log.Type != "json-file" || log.Config["max-size"] != "10m" || log.Config["max-file"] != "3" {
		t.Errorf("got log configuration %+v", log)
	}
	if p := c.HostConfig.RestartPolicy.Name; p != "no" {
		t.Errorf("got restart policy %q: restarts are not Docker's business", p)
	}
}

// Limits are read where the kernel keeps them.
func TestLimits(t *testing.T) {
	l := newLab(t)
	spec := l.spec("web.0.0", "sleep")
	spec.Resources = messages.Resources{CPUs: 0.5, MemoryMB: 32, PIDs: 40}
	w := l.start(spec)
	c := l.raw("web.0.0")
	for what, want := range map[string]string{"memory": fmt.Sprint(32 << 20), "pids": "40", "cpu": "0.5"} {
		if got := limit(t, w.ID, what, c.State.Pid); got != want {
			t.Errorf("%s: got %q, want %s", what, got, want)
		}
	}
	if c.HostConfig.MemorySwap != 32<<20 {
		t.Errorf("got %d bytes of memory with swap, want no swap", c.HostConfig.MemorySwap)
	}
}

// limit reads a limit of a container from its cgroup, v1 or v2.
func limit(t *testing.T, id, what string, pid int) string {
	t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	read := func(controller, file string) string {
		for line := range strings.Lines(string(groups)) {
			parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if !strings.Contains(parts[2], id) || !slices.Contains(strings.Split(parts[1], ","), controller) {
				continue
			}
			b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, parts[2], file))
			if err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	number := func(s string) (n float64) { fmt.Sscan(s, &n); return n }
	var v1, v2 string
	switch what {
	case "memory":
		v1, v2 = read("memory", "memory.limit_in_bytes"), read("", "memory.max")
	case "pids":
		v1, v2 = read("pids", "pids.max"), read("", "pids.max")
	case "cpu":
		if q := read("cpu", "cpu.cfs_quota_us"); q != "" {
			v1 = fmt.Sprint(number(q) / number(read("cpu", "cpu.cfs_period_us")))
		}
		if q, period, ok := strings.Cut(read("", "cpu.max"), " "); ok {
			v2 = fmt.Sprint(number(q) / number(period))
		}
	}
	if v1 != "" {
		return v1
	}
	return v2
}

func TestVolumesAndDevices(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	name := "skerry-" + string(l.cfg.Node)
	t.Cleanup(func() {
		for _, id := range []messages.InstanceID{"web.0.0", "web.0.1"} { // a volume goes when nobody uses it
			if err := l.Stop(context.Background(), id, messages.Stop{}); err != nil && !errors.Is(err, driver.ErrNotFound) {
				t.Error(err)
			}
		}
		if err := l.cli.VolumeRemove(context.Background(), name, true); err != nil {
			t.Error(err)
		}
	})
	spec := l.spec("web.0.0", "write=/host/a:hello", "write=/named/b:kept", "zeros=/dev/zero", "zeros=/dev/other")
	spec.Volumes = []messages.Volume{{Source: dir, Target: "/host"}, {Source: name, Target: "/named"}}
	spec.Devices = []messages.Device{{Host: "/dev/null"}, {Host: "/dev/zero", Container: "/dev/other", Permissions: "r"}}
	l.start(spec)
	if out := l.output("web.0.0"); out != "read 1000\nread 1000\n" {
		t.Errorf("devices: got %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "hello" {
		t.Errorf("bind mount: got %q, %v", b, err)
	}
	if err := l.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Fatal(err)
	}
	again := l.spec("web.0.1", "read=/named/b", "write=/ro/x:no")
	again.Volumes = []messages.Volume{{Source: name, Target: "/named"}, {Source: dir, Target: "/ro", ReadOnly: true}}
	l.start(again)
	out := l.output("web.0.1")
	if !strings.Contains(out, "kept\n") || !strings.Contains(out, "read-only file system") {
		t.Errorf("named volume kept, read-only refused: got %q", out)
	}
}

// Anonymous volumes (an image's VOLUME) go with their container.
func TestAnonymousVolumesGo(t *testing.T) {
	l := newLab(t)
	l.ref = helperImage(t, l.cli, `VOLUME ["/data"]`)
	l.start(l.spec("web.0.0", "sleep"))
	mounts := l.raw("web.0.0").Mounts
	if len(mounts) != 1 || mounts[0].Name == "" {
		t.Fatalf("got mounts %+v, want one anonymous volume", mounts)
	}
	if err := l.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Fatal(err)
	}
	if v, err := l.cli.VolumeInspect(t.Context(), mounts[0].Name); err == nil {
		t.Errorf("volume left behind: %+v", volume.Volume(v))
	}
}

// What can never start here says so, says why, and leaves nothing.
func TestCannotRunHere(t *testing.T) {
	l := newLab(t)
	tests := []struct {
		name   string
		change func(*driver.Spec)
		words  []string
	}{
		{"bind source", func(s *driver.Spec) { s.Volumes = []messages.Volume{{Source: "/no/such/dir", Target: "/x"}} }, []string{"/no/such/dir"}},
		{"device", func(s *driver.Spec) { s.Devices = []messages.Device{{Host: "/dev/nosuch"}} }, []string{"/dev/nosuch"}},
		{"gpu", func(s *driver.Spec) { s.Resources.GPUs = 1 }, []string{"nvidia", "install"}},
		{"cpus", func(s *driver.Spec) { s.Resources.CPUs = 4000 }, []string{"CPUs"}},
		{"instance", func(s *driver.Spec) { s.Instance = "Bad name" }, []string{"Bad name"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := l.spec("web.0.0", "sleep")
			test.change(&spec)
			_, err := l.Start(t.Context(), spec)
			if !errors.Is(err, driver.ErrInvalid) {
				t.Fatalf("got %v, want %v", err, driver.ErrInvalid)
			}
			for _, w := range test.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not name %q", err, w)
				}
			}
			if all, err := l.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("left %+v, %v", all, err)
			}
		})
	}
}

// A program that the image does not have: without an init Docker itself refuses the start, with one it is the init that ends, as a shell would.
func TestNoSuchProgram(t *testing.T) {
	l := newLab(t)
	spec := l.spec("web.0.0")
	spec.Entrypoint = []string{"/no/such/program"}
	l.start(spec)
	if w := l.ended("web.0.0"); w.Exit.Code != 127 {
		t.Errorf("with an init: got exit code %d, want 127", w.Exit.Code)
	}
	if out := l.snapshot("web.0.0"); !strings.Contains(out, "/no/such/program") {
		t.Errorf("with an init: the output does not name the program: %q", out)
	}
	d := newDriver(t, Config{Node: l.cfg.Node, NoInit: true})
	spec.Instance = "web.1.0"
	_, err := d.Start(t.Context(), spec)
	if !errors.Is(err, driver.ErrInvalid) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("without: got %v, want %v", err, driver.ErrInvalid)
	}
	if _, err := l.inspect(t.Context(), l.cli, "web.1.0"); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("without: left behind: %v", err)
	}
}

// The port may also be taken by a program that is no container.
func TestPortTakenByAProgram(t *testing.T) {
	l := newLab(t)
	taken, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	spec := l.spec("web.0.0", "sleep")
	spec.Ports = []messages.Port{{Host: port, Container: 80}}
	_, err = l.Start(t.Context(), spec)
	if !errors.Is(err, driver.ErrPortInUse) || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("got %v, want %v naming %d", err, driver.ErrPortInUse, port)
	}
	if all, err := l.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left %+v, %v", all, err)
	}
}

func TestPortConflictNamesThePort(t *testing.T) {
	spec := driver.Spec{Spec: messages.Spec{Ports: []messages.Port{{Host: 80}, {Host: 8080}, {}}}}
	tests := []struct {
		text, want string
		ok         bool
	}{
		{"Bind for 0.0.0.0:8080 failed: port is already allocated", "8080", true},
		{"listen tcp4 0.0.0.0:80: bind: address already in use", "80", true},
		{"failed to bind host port 0.0.0.0:8080/tcp: address already in use", "8080", true},
		{"address already in use", "80 or 8080", true},
		{"no such file", "", false},
	}
	for _, test := range tests {
		if got, ok := portConflict(spec, test.text); got != test.want || ok != test.ok {
			t.Errorf("%q: got %q, %v, want %q, %v", test.text, got, ok, test.want, test.ok)
		}
	}
}

// A start that fails keeps the attempt before it, whose exit code and output somebody may still want.
func TestFailedRestartKeepsTheEarlierAttempt(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	spec := l.spec("web.0.0", "print=first", "exit=4")
	spec.Volumes = []messages.Volume{{Source: dir, Target: "/x"}}
	w := l.start(spec)
	l.ended(spec.Instance)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Start(t.Context(), spec); err == nil {
		t.Fatal("started though its volume is gone")
	}
	all, err := l.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != w.ID {
		t.Fatalf("got %+v, %v, want the earlier attempt", all, err)
	}
	if out := l.output(spec.Instance); out != "first\n" {
		t.Errorf("got output %q", out)
	}
}

// A caller that gives up while Docker makes the container leaves none.
func TestCancelDuringCreate(t *testing.T) {
	l := newLab(t)
	c, host := newCounter(t)
	l.Driver = newDriver(t, Config{Node: l.cfg.Node, Host: host})
	if _, err := l.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/containers/create") {
			cancel()
		}
		return false
	})
	if _, err := l.Start(ctx, l.spec("web.0.0", "sleep")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if all, err := l.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left %+v, %v", all, err)
	}
}

// A container whose task or shim containerd still holds (dockerd was killed during its start, or together with its program) can never be started
// again: it is made anew.
func TestStuckContainerIsMadeAnew(t *testing.T) {
	for _, says := range []string{"task %s: already exists", "id already in use",
		"failed to start shim: mkdir /run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/%s: file exists: unknown"} {
		l := newLab(t)
		c, host := newCounter(t)
		l.Driver = newDriver(t, Config{Node: l.cfg.Node, Host: host})
		spec := l.spec("web.0.0", "sleep")
		first := l.start(spec)
		if err := l.cli.ContainerKill(t.Context(), first.ID, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		l.ended("web.0.0")
		c.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/containers/"+first.ID+"/start") {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `{"message":%q}`, strings.ReplaceAll(says, "%s", first.ID))
			return true
		})
		if second := l.start(spec); second.ID == first.ID || !second.Running {
			t.Errorf("%s: got %+v, want another container that runs", says, second)
		}
	}
}

// A name that is taken by somebody else's container is nobody's to remove.
func TestForeignContainerIsLeftAlone(t *testing.T) {
	l := newLab(t)
	made, err := l.cli.ContainerCreate(t.Context(), &container.Config{Image: l.ref}, nil, nil, nil, l.containerName("web.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(context.Background(), l.cli, made.ID) })
	if _, err := l.Start(t.Context(), l.spec("web.0.0", "sleep")); err == nil || !strings.Contains(err.Error(), "not Skerry's") {
		t.Errorf("start: got %v", err)
	}
	if err := l.Stop(t.Context(), "web.0.0", messages.Stop{}); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("stop: got %v", err)
	}
	if _, err := l.cli.ContainerInspect(t.Context(), made.ID); err != nil {
		t.Errorf("the foreign container: %v", err)
	}
}

// Two engines on one Docker see their own alone, also where name and job could be read as each other's.
func TestTwoNodesOnOneDocker(t *testing.T) {
	l := newLab(t)
	a := l.Driver
	b := newDriver(t, Config{Node: a.cfg.Node + "-1"})
	t.Cleanup(func() { b.Stop(context.Background(), "web.0.0", messages.Stop{}) })
	seen := make(chan driver.Workload, 10)
	ready := make(chan struct{})
	go a.Watch(t.Context(), func() { close(ready) }, func(w driver.Workload) { seen <- w })
	<-ready
	specB := l.spec("web.0.0", "sleep")
	wB, err := b.Start(t.Context(), specB)
	if err != nil {
		t.Fatal(err)
	}
	wA := l.start(l.spec("1-web.0.0", "sleep"))
	if wA.ID == wB.ID {
		t.Fatal("one container for two nodes")
	}
	if all, err := a.List(t.Context()); err != nil || len(all) != 1 || all[0].ID != wA.ID {
		t.Errorf("a: got %+v, %v", all, err)
	}
	if u, err := a.Usage(t.Context()); err != nil || len(u) != 1 || u[0].Instance != "1-web.0.0" {
		t.Errorf("usage of a: got %+v, %v", u, err)
	}
	if err := a.Stop(t.Context(), "web.0.0", messages.Stop{}); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("a stopped b's: %v", err)
	}
	select {
	case w := <-seen:
		if w.ID != wA.ID {
			t.Errorf("a was told of %+v", w)
		}
	case <-time.After(patience):
		t.Error("a was not told of its own")
	}
}

func TestInit(t *testing.T) {
	l := newLab(t)
	spec := l.spec("web.0.0", "pid", "sleep")
	l.start(spec)
	if init := l.raw("web.0.0").HostConfig.Init; init == nil || !*init {
		t.Error("no init though the image has none")
	}
	own := l.spec("web.1.0", "sleep")
	own.Entrypoint = []string{"/init"}
	p, err := l.plan(t.Context(), l.cli, own)
	if err != nil || *p.host.Init {
		t.Errorf("an init before the spec's own: %v, %v", *p.host.Init, err)
	}
	l.ref = helperImage(t, l.cli, `ENTRYPOINT ["/usr/bin/tini", "--"]`)
	p, err = l.plan(t.Context(), l.cli, l.spec("web.2.0", "sleep"))
	if err != nil || *p.host.Init {
		t.Errorf("an init before the image's own: %v, %v", *p.host.Init, err)
	}
	// A program that handles no signal ends by it at once.
	l.ref = helperImage(t, l.cli)
	l.start(l.spec("web.3.0", "print=ready", "unhandled"))
	eventually(t, "the program runs", func() bool { return strings.Contains(l.snapshot("web.3.0"), "ready") })
	if !l.raw("web.3.0").State.Running {
		t.Fatal("it ended by itself")
	}
	begun := time.Now()
	if err := l.Stop(t.Context(), "web.3.0", messages.Stop{Grace: messages.Duration(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("stop took %v", took)
	}
}
