package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"skerry.internal/messages"
)

// cgroups returns the folders of a container's control groups by controller; "" is the one of cgroup v2.
func (l *lab) cgroups(container string) map[string]string {
	l.t.Helper()
	text, err := os.ReadFile("/proc/" + l.docker("inspect", "-f", "{{.State.Pid}}", container) + "/cgroup")
	if err != nil {
		l.t.Fatal(err)
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for controller := range strings.SplitSeq(parts[1], ",") {
			dirs[controller] = filepath.Join("/sys/fs/cgroup", controller, parts[2])
		}
	}
	return dirs
}

// limit reads one limit of a container, from the file of cgroup v1 where the controller is there, else from the one of v2.
func (l *lab) limit(dirs map[string]string, controller, v1, v2 string) string {
	l.t.Helper()
	path := filepath.Join(dirs[""], v2)
	if dir, old := dirs[controller]; old {
		path = filepath.Join(dir, v1)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// The limits of a job are the kernel's limits of its container, and its output is bounded.
func TestLimitsInTheKernel(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	j := app("tight", 1, nil)
	j.Resources = messages.Resources{CPUs: 0.25, MemoryMB: 48, PIDs: 77}
	l.do(deployCommand(j))
	container := l.containers(a)["tight.0.0"]
	dirs := l.cgroups(container)
	cpu := l.limit(dirs, "cpu", "cpu.cfs_quota_us", "cpu.max")
	if _, old := dirs["cpu"]; old {
		cpu += " " + l.limit(dirs, "cpu", "cpu.cfs_period_us", "")
	}
	for _, c := range []struct{ what, got, want string }{
		{"cpu quota and period", cpu, "25000 100000"},
		{"memory", l.limit(dirs, "memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(48 << 20)},
		{"pids", l.limit(dirs, "pids", "pids.max", "pids.max"), "77"},
		{"log driver and its bounds", l.docker("inspect", "-f", `{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config "max-size"}} {{index .HostConfig.LogConfig.Config "max-file"}}`, container),
			"json-file 10m 3"},
		{"restarts are the engine's business", l.docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", container), "no"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, c.got, c.want)
		}
	}
	l.do(deployCommand(app("loose", 1, nil)))
	free := l.cgroups(l.containers(a)["loose.0.0"])
	if got := l.limit(free, "memory", "memory.limit_in_bytes", "memory.max"); got == fmt.Sprint(48<<20) {
		t.Errorf("a job without limits has memory %s", got)
	}
}

// An app that takes more memory than it may is reported as such, with what to do.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	for n := range 5 { // Docker hears of it from another process than of the end, and forgets it where the end is heard of first
		name := messages.JobName(fmt.Sprintf("hungry-%d", n))
		j := app(name, 1, map[string]string{"EAT_MB": "300"})
		j.Resources.MemoryMB = 32
		j.Restart = messages.Restart{MaxAttempts: 1, Backoff: messages.Duration(100 * time.Millisecond)}
		request := l.send(deployCommand(j))
		dead := l.instance(name, "has failed", func(i messages.InstanceReport) bool { return i.State == messages.FailedState })
		if dead.Code != messages.Exited || exitCode(dead) != 137 {
			t.Errorf("got code %s, exit code %d, reason %q", dead.Code, exitCode(dead), dead.Reason)
		}
		all, err := labelled(t, "skerry.instance="+string(messages.NewInstanceID(name, 0, 0)), true)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(all, func(c container.Summary) bool { return c.Labels["skerry.node"] == string(a) })
		if at < 0 {
			t.Fatalf("%s has left no container", name)
		}
		if word := l.docker("inspect", "--format", "{{.State.OOMKilled}}", all[at].ID); word != strconv.FormatBool(dead.OOM) {
			t.Errorf("Docker says %s, the status %t", word, dead.OOM)
		}
		if !dead.OOM {
			continue
		}
		if !strings.Contains(dead.Reason, "32 MiB") || !strings.Contains(dead.Reason, "raise resources.memory_mb") {
			t.Errorf("got reason %q", dead.Reason)
		}
		if r := l.last(request); r.Phase != messages.Failed || r.Code != messages.Exited || !strings.Contains(r.Message, "raise resources.memory_mb") {
			t.Errorf("got %s %s %q", r.Phase, r.Code, r.Message)
		}
		return
	}
	t.Error("no end for want of memory was seen")
}

// exitCode returns the exit code that a status says, -1 where it says none.
func exitCode(i messages.InstanceReport) int {
	if i.ExitCode == nil {
		return -1
	}
	return *i.ExitCode
}

// Restarts come at doubling intervals and end where the job says.
func TestRestartsBackOffAndGiveUp(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.node("a")
	const first, attempts = 400 * time.Millisecond, 3
	j := app("crashing", 1, map[string]string{"EXIT_AFTER_MS": "50", "EXIT_CODE": "7", "SICK": "never healthy"}) // else the deploy is done at once
	j.Restart = messages.Restart{Policy: messages.RestartOnFailure, MaxAttempts: attempts, Backoff: messages.Duration(first)}
	request := l.send(deployCommand(j))
	dead := l.instance("crashing", "was given up", func(i messages.InstanceReport) bool { return i.State == messages.FailedState })
	if dead.Code != messages.Exited || exitCode(dead) != 7 || dead.OOM || dead.Attempt != attempts || !strings.Contains(dead.Reason, "gave up after 3 attempts: exited with code 7") {
		t.Errorf("given up with %+v", dead.InstanceStatus)
	}
	if r := l.last(request); r.Phase != messages.Failed || r.Code != messages.Exited || !strings.Contains(r.Message, "exited with code 7") {
		t.Errorf("got %s %s %q", r.Phase, r.Code, r.Message)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[int]time.Time{}
	for _, s := range l.history {
		if len(s.Instances) != 1 {
			continue
		}
		switch i := s.Instances[0]; {
		case i.State == messages.Pending && i.Attempt > 0:
			wait, want := i.NextAt.Sub(i.At.Time), first<<(i.Attempt-1)
			if wait > want || wait <= want/2 { // the time between the decision and the status is the machine's
				t.Errorf("attempt %d: waits %s, want %s", i.Attempt, wait, want)
			}
			if exitCode(i) != 7 {
				t.Errorf("attempt %d: exit code %d, want 7", i.Attempt, exitCode(i))
			}
			next[i.Attempt] = i.NextAt.Time
		case i.State == messages.Running && i.StartedAt.Before(next[i.Attempt]):
			t.Errorf("attempt %d began at %s, before its time %s", i.Attempt, i.StartedAt, next[i.Attempt])
		}
	}
	if len(next) != attempts {
		t.Errorf("seen waiting for %d attempts, want %d", len(next), attempts)
	}
}

// see returns what an instance sees at a path inside its container.
func (l *lab) see(i messages.InstanceReport, path string) string {
	l.t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + i.Address + ":8080/read?path=" + url.QueryEscape(path))
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		l.t.Fatalf("%s: %s %q %v", path, resp.Status, body, err)
	}
	return string(body)
}

// What a job hands to its workload is there inside.
func TestWhatAJobHandsIn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	shared := filepath.Join(l.dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "note"), []byte("from the board"), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := l.prefix + "kept"
	t.Cleanup(func() { _ = exec.Command("docker", "volume", "rm", "-f", volume).Run() })
	j := app("web", 1, map[string]string{"MODE": "edge of ä=b"})
	j.Args = []string{"--first", "second word"}
	j.Volumes = []messages.Volume{{Source: shared, Target: "/shared", ReadOnly: true}, {Source: volume, Target: "/kept"}}
	j.Devices = []messages.Device{{Host: "/dev/zero", Container: "/dev/nothing", Permissions: "r"}}
	l.do(deployCommand(j))
	i := l.instance("web", "is up", func(i messages.InstanceReport) bool { return i.Healthy })
	if got, want := l.see(i, "/proc/self/cmdline"), "/app\x00--first\x00second word\x00"; got != want {
		t.Errorf("arguments: got %q, want %q", got, want)
	}
	environment := strings.Split(l.see(i, "/proc/self/environ"), "\x00")
	for _, want := range []string{"MODE=edge of ä=b", "SKERRY_INSTANCE=web.0.0", "SKERRY_JOB=web", "SKERRY_NODE=" + string(a), "SKERRY_ORDINAL=0"} {
		if !slices.Contains(environment, want) {
			t.Errorf("environment lacks %q: %q", want, environment)
		}
	}
	if got := l.see(i, "/shared/note"); got != "from the board" {
		t.Errorf("volume: got %q", got)
	}
	if got := l.see(i, "/dev/nothing"); got != strings.Repeat("\x00", 4096) {
		t.Errorf("device: got %q", got)
	}
	mounts := strings.Split(l.see(i, "/proc/self/mounts"), "\n")
	for target, option := range map[string]string{"/shared": "ro", "/kept": "rw"} {
		if !slices.ContainsFunc(mounts, func(line string) bool {
			f := strings.Fields(line)
			return len(f) > 3 && f[1] == target && strings.HasPrefix(f[3]+",", option+",")
		}) {
			t.Errorf("%s is not mounted %s: %q", target, option, mounts)
		}
	}
}

// A workload is asked to end by its signal, and is killed when its grace is over.
func TestSignalAndGrace(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	for _, c := range []struct {
		name   messages.JobName
		linger string
		stop   messages.Stop
		code   string
		least  time.Duration
	}{
		{"polite", "1500", messages.Stop{Grace: messages.Duration(time.Minute)}, "0", 1500 * time.Millisecond},
		{"stubborn", "600000", messages.Stop{Grace: messages.Duration(time.Second)}, "137", time.Second},
		{"other", "600000", messages.Stop{Signal: "SIGINT", Grace: messages.Duration(time.Minute)}, "130", 0},
	} {
		j := app(c.name, 1, map[string]string{"LINGER_MS": c.linger})
		j.Stop = c.stop
		l.do(deployCommand(j))
		container := l.containers(a)[messages.NewInstanceID(c.name, 0, 0)]
		wait := exec.Command("docker", "wait", container)
		code := &lines{}
		wait.Stdout = code
		if err := wait.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: c.name}})
		took := time.Since(began)
		_ = wait.Wait()
		if got := strings.Join(code.copy(), " "); got != c.code || took < c.least || took > soon/2 {
			t.Errorf("%s: exit code %q after %s, want %s after %s or a little more", c.name, got, took, c.code, c.least)
		}
	}
}

// Checks by a program and by a connection tell good from bad, too.
func TestExecAndTCPChecks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.node("a")
	for _, c := range []struct {
		name  messages.JobName
		check messages.Health
		words string // of the reason; none: healthy
	}{
		{"exec-good", messages.Health{Exec: []string{"/app", "exit", "0"}}, ""},
		{"exec-bad", messages.Health{Exec: []string{"/app", "exit", "4"}}, "exited with code 4"},
		{"tcp-good", messages.Health{TCP: &messages.TCPCheck{Port: 8080}}, ""},
		{"tcp-bad", messages.Health{TCP: &messages.TCPCheck{Port: 8081}}, "refused"},
	} {
		j := app(c.name, 1, nil)
		j.Restart.Backoff = messages.Duration(100 * time.Millisecond)
		j.Health = &c.check
		j.Health.Interval, j.Health.Timeout = messages.Duration(200*time.Millisecond), messages.Duration(5*time.Second)
		if j.Health.StartPeriod = messages.Duration(time.Minute); c.words != "" {
			j.Health.StartPeriod = messages.Duration(300 * time.Millisecond)
		}
		r := l.last(l.send(deployCommand(j)))
		if c.words == "" {
			if i := r.Instances[0]; r.Phase != messages.Done || !i.Healthy || i.Code != "" || i.Attempt != 0 {
				t.Errorf("%s: got %s %s %q", c.name, r.Phase, r.Code, r.Message)
			}
			continue
		}
		if r.Phase != messages.Failed || r.Code != messages.Unhealthy || !strings.Contains(r.Message, c.words) {
			t.Errorf("%s: got %s %s %q", c.name, r.Phase, r.Code, r.Message)
		}
		if l.everHealthy(c.name) {
			t.Errorf("%s: a status said healthy", c.name)
		}
		l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: c.name}})
	}
}

// everHealthy reports whether a status of the job has ever said that a copy is healthy.
func (l *lab) everHealthy(name messages.JobName) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.history, func(s messages.JobStatus) bool { return s.Job == name && s.Healthy > 0 })
}
