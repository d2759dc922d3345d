package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench holds what a measurement has started.
type bench struct {
	options
	dir      string
	log      io.Writer
	started  []*daemon
	closers  []func()
	nodes    []string // names of engines that may have made containers
	links    []string // data directories of engines that may have made links of the overlay
	numbered int
}

// close ends everything that was started and removes its containers.
func (b *bench) close() {
	b.end()
	removeContainers("skerry.node=" + nodeName) // those of the floors too
}

// end ends everything that was started, the newest first.
func (b *bench) end() {
	for _, f := range slices.Backward(b.closers) {
		f()
	}
	for _, d := range slices.Backward(b.started) {
		d.stop()
	}
	for _, name := range b.nodes { // once no engine is left that would make them again
		removeContainers("skerry.node=" + name)
	}
	for _, data := range b.links {
		if out, err := exec.Command(filepath.Join(b.bin, "node-engine"), "--clean-up", "--data", data).CombinedOutput(); err != nil { //nolint:noctx // also after an interrupt
			fmt.Fprintf(b.log, "   clean-up of %s: %s: %s\n", data, err, out)
		}
	}
	b.started, b.closers, b.nodes, b.links = nil, nil, nil, nil
}

// nodeName begins the name of every real node that bench starts, so that its containers can be told from others.
const nodeName = "skerry-bench"

// patience is how long anything may take that happens by itself.
const patience = 2 * time.Minute

// eventually waits for a condition.
func eventually(ctx context.Context, what string, ok func() bool) error {
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain for %s", patience, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// daemon is a program under measurement.
type daemon struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

func (b *bench) start(program string, args ...string) (*daemon, error) {
	b.numbered++
	path := filepath.Join(b.dir, fmt.Sprintf("%s-%d.log", filepath.Base(program), b.numbered))
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if b.profiles != "" {
		args = append(args, "--debug", "127.0.0.1:0")
	}
	cmd := exec.Command(program, args...) //nolint:noctx // ended by stop, in good order
	cmd.Stderr = file
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: make build makes the programs", err)
	}
	d := &daemon{cmd: cmd, log: path, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(d.ended)
	}()
	b.started = append(b.started, d)
	return d, nil
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(20 * time.Second):
		d.kill()
	}
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

// line waits for a log line with this message.
func (d *daemon) line(ctx context.Context, msg string) (found map[string]any, err error) {
	err = eventually(ctx, msg+" in "+d.log, func() bool {
		content, err := os.ReadFile(d.log)
		if err != nil {
			return false
		}
		for s := bufio.NewScanner(bytes.NewReader(content)); s.Scan(); {
			var line map[string]any
			if json.Unmarshal(s.Bytes(), &line) == nil && line["msg"] == msg {
				found = line
				return true
			}
		}
		return false
	})
	return found, err
}

// manager is a running cluster manager.
type manager struct {
	*daemon
	program          string
	mode             []string // arguments before the flags
	http, mqtt, data string
	args             []string
	streams          streams
	bare             bool // it is the MQTT library's broker alone
}

func (b *bench) manager(ctx context.Context, flags ...string) (*manager, error) {
	m := b.newManager(filepath.Join(b.bin, "cluster-manager"))
	m.args = flags
	return m, b.restart(ctx, m)
}

func (b *bench) newManager(program string) *manager {
	b.numbered++
	return &manager{program: program, http: "127.0.0.1:0", mqtt: "127.0.0.1:0", data: filepath.Join(b.dir, fmt.Sprintf("manager-%d", b.numbered))}
}

// restart starts the manager on its data, at the addresses it had before.
func (b *bench) restart(ctx context.Context, m *manager) error {
	d, err := b.start(m.program, slices.Concat(m.mode, []string{"--cluster", "bench", "--http", m.http, "--mqtt", m.mqtt, "--data", m.data}, m.args)...)
	if err != nil {
		return err
	}
	m.daemon = d
	line, err := d.line(ctx, "listening")
	if err != nil {
		return err
	}
	m.http, m.mqtt = fmt.Sprint(line["http"]), fmt.Sprint(line["mqtt"])
	return nil
}

// engine starts a node engine on the real Docker engine. Without the overlay, whose figures are apart: so the floor, which is Docker's own API,
// does the same work.
func (b *bench) engine(m *manager, name string, flags ...string) (*daemon, error) {
	return b.start(filepath.Join(b.bin, "node-engine"), append([]string{"--manager", "http://" + m.http, "--name", name, "--data", filepath.Join(b.dir, name), "--overlay", "off"}, flags...)...)
}

// node starts a node engine and waits until it is online.
func (b *bench) node(ctx context.Context, m *manager, c *client, suffix string, flags ...string) (*daemon, error) {
	name := nodeName + suffix
	d, err := b.engine(m, name, flags...)
	if err != nil {
		return nil, err
	}
	b.nodes = append(b.nodes, name)
	return d, eventually(ctx, name+" online", func() bool { return c.online(name) })
}

// overlayNode starts a node engine with the overlay and waits until that is up.
func (b *bench) overlayNode(ctx context.Context, m *manager, c *client, suffix string) (*daemon, error) {
	b.links = append(b.links, filepath.Join(b.dir, nodeName+suffix))
	d, err := b.node(ctx, m, c, suffix, "--overlay", "auto")
	if err != nil {
		return nil, err
	}
	_, err = d.line(ctx, "overlay up")
	return d, err
}

// usage is what the kernel says of a process.
type usage struct {
	rssMB   float64
	peakMB  float64 // since the process began, or since forgetPeak
	cpu     time.Duration
	written float64 // bytes to disk
	// What takes a look at more than the process itself is there in daemon.usage's answer only.
	sent     float64 // bytes over TCP
	children int
}

// usage returns all that is known of what a daemon has used.
func (d *daemon) usage(ctx context.Context) (usage, error) {
	pid := d.cmd.Process.Pid
	u, err := usageOf(pid)
	if err != nil {
		return u, err
	}
	if u.sent, err = sentBy(ctx, pid); err != nil {
		return u, err
	}
	u.children, err = children(pid)
	return u, err
}

// forgetPeak has the kernel begin anew with the greatest memory of a process.
func forgetPeak(pid int) error {
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0)
}

// sentBy returns the bytes that the TCP connections of a process have carried out of it, without headers.
func sentBy(ctx context.Context, pid int) (float64, error) {
	out, err := exec.CommandContext(ctx, "ss", "-tinHpO", "state", "established").Output()
	if err != nil {
		return 0, fmt.Errorf("ss (apt-get install iproute2): %w", err)
	}
	sum := 0.0
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, fmt.Sprintf("pid=%d,", pid)) {
			continue
		}
		for word := range strings.FieldsSeq(line) {
			if value, ok := strings.CutPrefix(word, "bytes_sent:"); ok {
				n, err := strconv.ParseFloat(value, 64)
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

func usageOf(pid int) (usage, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	status, err1 := os.ReadFile(filepath.Join(proc, "status"))
	stat, err2 := os.ReadFile(filepath.Join(proc, "stat"))
	io, err3 := os.ReadFile(filepath.Join(proc, "io"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return usage{}, err
	}
	var u usage
	u.rssMB, u.peakMB = field(status, "VmRSS:")/1024, field(status, "VmHWM:")/1024
	u.written = field(io, "write_bytes:")
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that we build for
	for _, at := range []int{11, 12} { // utime and stime
		n, err := strconv.Atoi(fields[at])
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(n) * tick
	}
	return u, nil
}

func field(content []byte, name string) float64 {
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// docker is the bare API of the Docker engine: the floor under everything that runs a container.
type docker struct{ http *http.Client }

func newDocker() *docker {
	var d net.Dialer
	return &docker{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", "/var/run/docker.sock")
	}, MaxIdleConnsPerHost: 32}}}
}

// call posts to the API and returns the answer.
func (d *docker) call(ctx context.Context, method, path string, body any) (map[string]any, error) {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, payload)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("docker %s %s: %s: %s", method, path, resp.Status, b)
	}
	var answer map[string]any
	if len(b) > 0 && b[0] == '{' {
		err = json.Unmarshal(b, &answer)
	}
	return answer, err
}

// run creates and starts a container like the ones that the engine makes, and returns its id.
func (d *docker) run(ctx context.Context) (string, error) {
	answer, err := d.call(ctx, http.MethodPost, "/containers/create", map[string]any{"Image": image, "Labels": map[string]string{"skerry.node": nodeName},
		"HostConfig": map[string]any{"Init": true, "LogConfig": map[string]any{"Type": "json-file", "Config": map[string]string{"max-size": "10m", "max-file": "3"}}}})
	if err != nil {
		return "", err
	}
	id := fmt.Sprint(answer["Id"])
	_, err = d.call(ctx, http.MethodPost, "/containers/"+id+"/start", nil)
	return id, err
}

// events reads Docker's stream of events until ctx ends.
func (d *docker) events(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/v1.41/events", nil)
	if err != nil {
		return err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (d *docker) remove(ctx context.Context, id string) error {
	_, err := d.call(ctx, http.MethodDelete, "/containers/"+id+"?force=1&v=1", nil)
	return err
}

// removeContainers removes what bears the label.
func removeContainers(label string) {
	out, err := exec.Command("docker", "ps", "-aq", "--filter", "label="+label).Output() //nolint:noctx // also after an interrupt
	if ids := strings.Fields(string(out)); err == nil && len(ids) > 0 {
		_ = exec.Command("docker", append([]string{"rm", "-f", "-v"}, ids...)...).Run() //nolint:noctx // also after an interrupt
	}
}

// image is the workload: the demo's web server, made here and in no registry.
const image = "skerry-bench:latest"

// makeImage builds the workload's image.
func (b *bench) makeImage(ctx context.Context) error {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(b.dir, "demo"), "./scripts/demo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the demo (run bench from the top of the repository): %w: %s", err, out)
	}
	tar := exec.CommandContext(ctx, "tar", "-C", b.dir, "-c", "demo")
	load := exec.CommandContext(ctx, "docker", "import", "-c", `ENTRYPOINT ["/demo"]`, "-", image)
	var err error
	if load.Stdin, err = tar.StdoutPipe(); err != nil {
		return err
	}
	return errors.Join(load.Start(), tar.Run(), load.Wait())
}
