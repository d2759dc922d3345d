package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
)

// soon is how long anything may take that happens by itself; on a busy machine of two cores a container needs seconds.
const soon = 60 * time.Second

// lab is one cluster of the built programs on real sockets and the real Docker engine: a manager, nodes, and an operator's client
// that follows everything.
type lab struct {
	t       *testing.T
	dir     string
	prefix  string // of the names of its nodes, so that labs can share a Docker engine
	http    string
	mqtt    string
	flags   []string
	other   map[string]string // programs that run from elsewhere, under an emulator
	by      []string          // a command that the engines are started by, which becomes theirs
	manager *process
	nodes   map[messages.NodeID]*process
	hosts   map[string]*nettest.Host // by the name of what runs there; elsewhere it runs on this machine
	*follower
}

// process is a program under test.
type process struct {
	cmd   *exec.Cmd
	log   string // file with its stderr
	ended chan struct{}
}

// programsDir is where this run has its programs.
var programsDir = fmt.Sprintf("skerry-e2e-%d", os.Getpid())

// programs builds the two daemons and the image of the test's workload, once.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(os.TempDir(), programsDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "./cluster-manager", "./node-engine")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	app := exec.Command("go", "build", "-o", filepath.Join(dir, "app"), "testdata/app/main.go")
	app.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := app.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build app: %w: %s", err, out)
	}
	return dir, importImage(dir, "app", testImage)
})

// testImage is the workload's image, made here and in no registry; of this run alone, so that runs beside one another do not
// take each other's away.
var testImage = fmt.Sprintf("skerry-e2e/app:%d", os.Getpid())

// importImage makes an image of one static program.
func importImage(dir, program, image string, changes ...string) error {
	tar := exec.Command("tar", "-C", dir, "-c", program)
	args := []string{"import", "-c", `ENTRYPOINT ["/` + program + `"]`}
	for _, c := range changes {
		args = append(args, "-c", c)
	}
	load := exec.Command("docker", append(args, "-", image)...)
	var err error
	if load.Stdin, err = tar.StdoutPipe(); err != nil {
		return err
	}
	var out bytes.Buffer
	load.Stdout, load.Stderr = &out, &out
	if err := errors.Join(load.Start(), tar.Run(), load.Wait()); err != nil {
		return fmt.Errorf("import %s: %w: %s", image, err, out.String())
	}
	return nil
}

func TestMain(m *testing.M) {
	if broker := os.Getenv(witnessAt); broker != "" {
		fmt.Fprintln(os.Stderr, "witness:", bearWitness(broker, os.Getenv(witnessCA)))
		os.Exit(1)
	}
	// This machine's own network is not the tests': labs in namespaces ask for theirs.
	if err := os.Setenv("SKERRY_OVERLAY", "off"); err != nil {
		panic(err)
	}
	code := m.Run()
	dir := filepath.Join(os.TempDir(), programsDir)
	if _, err := os.Stat(dir); err == nil { // some test needed them
		os.RemoveAll(dir)
		_ = exec.Command("docker", "rmi", "-f", testImage).Run()
	}
	os.Exit(code)
}

// newLab starts a manager.
func newLab(t *testing.T, flags ...string) *lab {
	t.Helper()
	l := emptyLab(t, flags...)
	l.startManager()
	l.follow()
	return l
}

// emptyLab returns a lab in which nothing runs yet.
func emptyLab(t *testing.T, flags ...string) *lab {
	t.Helper()
	needDocker(t)
	if _, err := programs(); err != nil {
		t.Fatal(err)
	}
	// An address of its own, and no port that Docker or the kernel gives to others: while the manager is down somebody may have its port, a connection of
	// another test that of 127.0.0.1, a published port that of any address.
	at := fmt.Sprintf("127.%d.%d.1", 64+rand.IntN(64), rand.IntN(256))
	l := &lab{t: t, dir: t.TempDir(), prefix: fmt.Sprintf("e%07x-", rand.Uint32()>>4), http: at + ":20100", mqtt: at + ":20883",
		flags: flags, nodes: map[messages.NodeID]*process{}}
	t.Cleanup(l.cleanUp)
	return l
}

// needDocker ends a test that runs alone on a machine without a Docker engine; under make test there is one.
func needDocker(t *testing.T) {
	t.Helper()
	if dockerAnswers(t) {
		return
	}
	if os.Getenv("SKERRY_TEST_ALL") != "" {
		t.Fatal("no Docker engine answers: scripts/docker.sh starts one")
	}
	t.Skip("no Docker engine answers: scripts/docker.sh starts one")
}

func program(name string) string {
	dir, _ := programs()
	return filepath.Join(dir, name)
}

// command returns what runs one of the programs in this lab.
func (l *lab) command(name string, args ...string) *exec.Cmd {
	if path := l.other[name]; path != "" {
		return exec.Command(emulator, append([]string{path}, args...)...)
	}
	if by := l.by; name == "node-engine" && len(by) > 0 {
		return exec.Command(by[0], append(append(by[1:len(by):len(by)], program(name)), args...)...)
	}
	return exec.Command(program(name), args...)
}

// cleanUp ends what runs and removes the containers of this lab's nodes.
func (l *lab) cleanUp() {
	for _, p := range l.nodes {
		l.end(p)
	}
	l.end(l.manager)
	for id := range l.nodes {
		l.eventually("the containers of "+string(id)+" to be removed", func() bool { // one may be on its way: its engine was killed a moment ago
			ids := strings.Fields(l.docker("ps", "-aq", "--filter", "label=skerry.node="+string(id)))
			return len(ids) == 0 || exec.Command("docker", append([]string{"rm", "-f", "-v"}, ids...)...).Run() == nil
		})
	}
	if l.t.Failed() {
		l.showLogs()
	}
}

func (l *lab) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(l.dir, "*.log"))
	for _, path := range logs {
		content, _ := os.ReadFile(path)
		l.t.Logf("%s:\n%s", filepath.Base(path), content[max(0, len(content)-12_000):])
	}
}

func (l *lab) docker(args ...string) string {
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		l.t.Errorf("docker %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// start runs a program with its stderr in a file of the lab.
func (l *lab) start(name string, cmd *exec.Cmd) *process {
	l.t.Helper()
	path := filepath.Join(l.dir, name+".log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer file.Close()
	cmd.Stderr, cmd.Stdout = file, file
	begin := cmd.Start
	if host := l.hosts[name]; host != nil {
		begin = func() error { return host.Start(cmd) }
	}
	if err := begin(); err != nil {
		l.t.Fatal(err)
	}
	p := &process{cmd: cmd, log: path, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	return p
}

// end asks a program to end and waits for it.
func (l *lab) end(p *process) {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		l.t.Errorf("%s does not end on SIGTERM", p.cmd.Path)
		l.kill(p)
	}
}

// kill ends a program as a crash does.
func (l *lab) kill(p *process) {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// startManager starts the manager on the lab's data, at the addresses that it had before.
func (l *lab) startManager() {
	l.t.Helper()
	args := append([]string{"--cluster", "lab", "--http", l.http, "--mqtt", l.mqtt, "--data", filepath.Join(l.dir, "manager")}, l.flags...)
	from := fileSize(filepath.Join(l.dir, "manager.log"))
	l.manager = l.start("manager", l.command("cluster-manager", args...))
	line := l.logLine(l.manager, from, "listening")
	l.http, l.mqtt = line["http"].(string), line["mqtt"].(string)
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// logLine waits for a line of a program's log with this message, behind the given offset.
func (l *lab) logLine(p *process, from int64, msg string) map[string]any {
	l.t.Helper()
	var found map[string]any
	l.eventually("log line "+msg, func() bool {
		file, err := os.Open(p.log)
		if err != nil {
			return false
		}
		defer file.Close()
		_, _ = file.Seek(from, io.SeekStart)
		for s := bufio.NewScanner(file); s.Scan(); {
			var line map[string]any
			if json.Unmarshal(s.Bytes(), &line) == nil && line["msg"] == msg {
				found = line
			}
		}
		return found != nil
	})
	return found
}

// eventually waits for a condition; what says for what.
func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(soon); !ok(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("waited %s in vain for: %s", soon, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// id returns the name of a node of this lab.
func (l *lab) id(name string) messages.NodeID { return messages.NodeID(l.prefix + name) }

// startNode starts a node engine and returns without waiting for it.
func (l *lab) startNode(name string, flags ...string) messages.NodeID {
	l.t.Helper()
	id := l.id(name)
	args := []string{"--manager", "http://" + l.http, "--name", string(id), "--data", filepath.Join(l.dir, name)}
	if l.hosts[name] != nil {
		args = append(args, "--overlay", "auto")
	}
	args = append(args, flags...)
	l.nodes[id] = l.start(name, l.command("node-engine", args...))
	return id
}

// node starts a node engine and waits until it can run containers.
func (l *lab) node(name string, flags ...string) messages.NodeID {
	l.t.Helper()
	id := l.startNode(name, flags...)
	l.eventually(string(id)+" online with docker", func() bool {
		s, ok := l.nodeStatus(id)
		return ok && s.State == messages.NodeOnline && slices.ContainsFunc(s.Technologies, func(ti messages.TechnologyInfo) bool { return ti.Name == messages.Docker })
	})
	return id
}

// containers returns the ids of a node's containers by instance, running ones only.
func (l *lab) containers(nodes ...messages.NodeID) map[messages.InstanceID]string {
	found := map[messages.InstanceID]string{}
	for _, id := range nodes {
		all, err := labelled(l.t, "skerry.node="+string(id), false)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, c := range all {
			if instance := c.Labels["skerry.instance"]; instance != "" { // not a sandbox that waits for its instance
				found[messages.InstanceID(instance)] = c.ID
			}
		}
	}
	return found
}

// follower is an operator's client that keeps what it hears.
type follower struct {
	client mqtt.Client

	mu      sync.Mutex // guards what follows
	jobs    map[messages.JobName]messages.JobStatus
	history []messages.JobStatus
	boards  map[messages.NodeID]messages.NodeStatus
	results map[string][]messages.Result
	next    int
}

// follow connects the lab's client. It comes back by itself after a restart of the manager.
func (l *lab) follow() {
	l.t.Helper()
	f := &follower{jobs: map[messages.JobName]messages.JobStatus{}, boards: map[messages.NodeID]messages.NodeStatus{}, results: map[string][]messages.Result{}}
	l.follower = f
	opts := mqtt.NewClientOptions().AddBroker("tcp://" + l.mqtt).SetConnectRetry(true).SetConnectRetryInterval(50 * time.Millisecond).
		SetMaxReconnectInterval(100 * time.Millisecond).SetWriteTimeout(10 * time.Second).SetOrderMatters(true)
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		c.SubscribeMultiple(map[string]byte{messages.AllJobsFilter: 1, messages.AllNodesFilter: 1, "control/results/+": 1}, f.hear)
	})
	if host := l.hosts["manager"]; host != nil {
		opts.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
			return host.Dial(context.Background(), "tcp", "127.0.0.1:1883")
		})
	}
	f.client = mqtt.NewClient(opts)
	if token := f.client.Connect(); !token.WaitTimeout(soon) || token.Error() != nil {
		l.t.Fatalf("connect: %v", token.Error())
	}
	l.t.Cleanup(func() { f.client.Disconnect(100) })
}

func (f *follower) hear(_ mqtt.Client, m mqtt.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := messages.ParseTopic(m.Topic())
	if err != nil {
		return
	}
	switch t.Kind {
	case messages.JobStatusTopic:
		var s messages.JobStatus
		if len(m.Payload()) == 0 {
			delete(f.jobs, t.Job)
		} else if json.Unmarshal(m.Payload(), &s) == nil {
			f.jobs[t.Job] = s
			f.history = append(f.history, s)
		}
	case messages.NodeStatusTopic:
		var s messages.NodeStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			f.boards[t.Node] = s
		}
	case messages.ResultTopic:
		var r messages.Result
		if json.Unmarshal(m.Payload(), &r) == nil {
			f.results[t.Request] = append(f.results[t.Request], r)
		}
	}
}

func (f *follower) job(name messages.JobName) (messages.JobStatus, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.jobs[name]
	return s, ok
}

func (f *follower) nodeStatus(id messages.NodeID) (messages.NodeStatus, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.boards[id]
	return s, ok
}

func (f *follower) resultsOf(request string) []messages.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.results[request])
}

// waitJob waits until the job's status is as ok wants it, and returns it.
func (l *lab) waitJob(name messages.JobName, what string, ok func(messages.JobStatus) bool) messages.JobStatus {
	l.t.Helper()
	var s messages.JobStatus
	l.eventually(string(name)+" "+what, func() bool {
		var there bool
		s, there = l.job(name)
		return there && ok(s)
	})
	return s
}

// instance waits until an instance of the job is as ok wants it.
func (l *lab) instance(name messages.JobName, what string, ok func(messages.InstanceReport) bool) messages.InstanceReport {
	l.t.Helper()
	var found messages.InstanceReport
	l.waitJob(name, what, func(s messages.JobStatus) bool {
		at := slices.IndexFunc(s.Instances, ok)
		if at >= 0 {
			found = s.Instances[at]
		}
		return at >= 0
	})
	return found
}

// send publishes a command and returns its request id once the broker has acknowledged it.
func (l *lab) send(cmd messages.Command) string {
	l.t.Helper()
	if cmd.RequestID == "" {
		l.mu.Lock()
		l.next++
		cmd.RequestID = fmt.Sprintf("%s%d", l.prefix, l.next)
		l.mu.Unlock()
	}
	token := l.client.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(), 1, false, messages.Encode(cmd))
	if !token.WaitTimeout(soon) || token.Error() != nil {
		l.t.Fatalf("publish: %v", token.Error())
	}
	return cmd.RequestID
}

// first returns the first Result of a request.
func (l *lab) first(request string) messages.Result {
	l.t.Helper()
	l.eventually("first Result of "+request, func() bool { return len(l.resultsOf(request)) > 0 })
	return l.resultsOf(request)[0]
}

// last returns the last Result of a request.
func (l *lab) last(request string) messages.Result {
	l.t.Helper()
	var r messages.Result
	l.eventually("last Result of "+request, func() bool {
		all := l.resultsOf(request)
		if len(all) > 0 {
			r = all[len(all)-1]
		}
		return len(all) > 0 && r.Last()
	})
	return r
}

// do sends a command that shall be done.
func (l *lab) do(cmd messages.Command) messages.Result {
	l.t.Helper()
	r := l.last(l.send(cmd))
	if r.Phase != messages.Done {
		l.t.Fatalf("%s %s: got %s %s %q, want done", cmd.Command, cmd.Job.Name, r.Phase, r.Code, r.Message)
	}
	return r
}

// app is a job of the test's workload with a health check.
func app(name messages.JobName, replicas int, env map[string]string) messages.Job {
	return messages.Job{Name: name, Replicas: &replicas, Spec: messages.Spec{Image: testImage, Environment: env, Ports: []messages.Port{{Container: 8080}},
		Health: &messages.Health{HTTP: &messages.HTTPCheck{Port: 8080, Path: "/healthz"}, Interval: messages.Duration(200 * time.Millisecond), Timeout: messages.Duration(2 * time.Second),
			StartPeriod: messages.Duration(5 * time.Second)},
		Stop: messages.Stop{Grace: messages.Duration(3 * time.Second)}}}
}

func deployCommand(j messages.Job, worker ...messages.NodeID) messages.Command {
	return messages.Command{Command: messages.Deploy, Job: j, Worker: worker}
}
