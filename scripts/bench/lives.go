package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"skerry.internal/messages"
)

// measureIdle takes what a manager and a node engine with one instance use while nothing happens.
func measureIdle(ctx context.Context, b *bench) ([]figure, error) {
	m, c, n, err := b.small(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.do(ctx, deploy(job("idle", 1))); err != nil {
		return nil, err
	}
	select { // what was started has come to rest
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sent, err := b.uplink(ctx, m)
	if err != nil {
		return nil, err
	}
	const span = 10 * time.Second
	before, err := usageOf(n.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	nodeCPU, nodeRSS, err := n.watch(ctx, 5, span)
	if err != nil {
		return nil, err
	}
	managerCPU, managerRSS, err := m.watch(ctx, 5, span)
	if err != nil {
		return nil, err
	}
	after, err := usageOf(n.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	helpers, err := children(n.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	withOverlay, err := b.idleOverlay(ctx, m, c)
	if err != nil {
		return nil, err
	}
	return []figure{
		of("node engine idle, memory", "MB", "≤ 25", nodeRSS),
		of("node engine idle with the overlay and one instance on it, memory", "MB", "≤ 25", withOverlay),
		of("node engine idle, processor", "% of one", "≤ 0.2", percent(nodeCPU)),
		of("node engine idle, written to disk", "bytes/h", "0", []float64{(after.written - before.written) * float64(time.Hour) / float64(10*span)}),
		of("node engine idle, uplink", "kbit/s", "≤ 0.5", []float64{sent}),
		of("manager with broker idle, memory", "MB", "≤ 40", managerRSS),
		of("manager with broker idle, processor", "% of one", "", percent(managerCPU)),
		of("helper processes per workload", "", "0", []float64{float64(helpers)}),
	}, nil
}

// idleOverlay takes what a second node engine uses that is in the overlay, with one instance.
func (b *bench) idleOverlay(ctx context.Context, m *manager, c *client) ([]float64, error) {
	const suffix = "-overlay"
	n, err := b.overlayNode(ctx, m, c, suffix)
	if err != nil {
		return nil, err
	}
	if err := c.do(ctx, deployOn(suffix, job("idle-overlay", 1))); err != nil {
		return nil, err
	}
	_, rss, err := n.watch(ctx, 5, 5*time.Second)
	return rss, err
}

func percent(cores []float64) []float64 {
	p := make([]float64, len(cores))
	for i, c := range cores {
		p[i] = 100 * c
	}
	return p
}

// children counts the processes that a process has started and that run.
func children(pid int) (int, error) {
	out, err := exec.Command("sh", "-c", "cat /proc/"+strconv.Itoa(pid)+"/task/*/children").Output() //nolint:noctx // a moment
	return len(strings.Fields(string(out))), err
}

// uplink listens for a minute to all that the node publishes and returns its payload and topic bits a second.
func (b *bench) uplink(ctx context.Context, m *manager) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	host, port, _ := strings.Cut(m.mqtt, ":")
	var out strings.Builder
	cmd := exec.CommandContext(ctx, "mosquitto_sub", "-h", host, "-p", port, "-R", "-t", "nodes/"+nodeName+"/presence", "-t", "nodes/"+nodeName+"/job", "-t", "nodes/"+nodeName+"/information", "-v")
	cmd.Stdout = &out
	start := time.Now()
	_ = cmd.Run() // ended by ctx
	if ctx.Err() != nil && time.Since(start) < 50*time.Second {
		return 0, ctx.Err()
	}
	return float64(8*out.Len()) / time.Since(start).Seconds() / 1000, nil
}

// small starts a manager, a client and one real node.
func (b *bench) small(ctx context.Context, flags ...string) (*manager, *client, *daemon, error) {
	if err := b.makeImage(ctx); err != nil {
		return nil, nil, nil, err
	}
	m, err := b.manager(ctx, flags...)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := b.connect(m)
	if err != nil {
		return nil, nil, nil, err
	}
	n, err := b.node(ctx, m, c, "")
	return m, c, n, err
}

// measureBoot kills the manager and the engine, stops ten containers, and takes the time from the engine's start until all ten run again,
// in turn with ten `docker start` by the API.
func measureBoot(ctx context.Context, b *bench) ([]figure, error) {
	const count = 10
	m, c, n, err := b.small(ctx)
	if err != nil {
		return nil, err
	}
	j := job("boot", count)
	// The containers end without a reboot, so the policy's pause would be measured: after a reboot there is none.
	j.Restart = messages.Restart{Backoff: messages.Duration(time.Millisecond), MaxBackoff: messages.Duration(time.Millisecond)}
	if err := c.do(ctx, deploy(j)); err != nil {
		return nil, err
	}
	m.kill()
	n.kill()
	d := newDocker()
	ids := strings.Fields(output(ctx, "docker", "ps", "-aq", "--no-trunc", "--filter", "label=skerry.node="+nodeName))
	var own, floor []float64
	for range max(b.runs/2, 5) {
		took, err := b.bootOnce(ctx, m, d, ids)
		if err != nil {
			return nil, err
		}
		own = append(own, took)
		if took, err = startAll(ctx, d, ids); err != nil {
			return nil, err
		}
		floor = append(floor, took)
	}
	return []figure{of("cold boot without a manager, ten containers back", "ms", "≤ 1.2×", own).over("ten docker start at once", own, floor)}, nil
}

func (b *bench) bootOnce(ctx context.Context, m *manager, d *docker, ids []string) (float64, error) {
	if err := stopAll(ctx, d, ids); err != nil {
		return 0, err
	}
	start := time.Now()
	n, err := b.engine(m, nodeName)
	if err != nil {
		return 0, err
	}
	err = eventually(ctx, "all containers running", func() bool { return running(ctx, d, ids) == len(ids) })
	took := milliseconds(time.Since(start))
	n.kill()
	return took, err
}

// running counts the containers that run.
func running(ctx context.Context, d *docker, ids []string) int {
	count := 0
	for _, id := range ids {
		answer, err := d.call(ctx, http.MethodGet, "/containers/"+id+"/json", nil)
		state, _ := answer["State"].(map[string]any)
		if err == nil && state["Running"] == true {
			count++
		}
	}
	return count
}

func stopAll(ctx context.Context, d *docker, ids []string) error {
	for _, id := range ids {
		if _, err := d.call(ctx, http.MethodPost, "/containers/"+id+"/kill", nil); err != nil && running(ctx, d, []string{id}) > 0 {
			return err
		}
	}
	return eventually(ctx, "all containers stopped", func() bool { return running(ctx, d, ids) == 0 })
}

func startAll(ctx context.Context, d *docker, ids []string) (float64, error) {
	if err := stopAll(ctx, d, ids); err != nil {
		return 0, err
	}
	errs := make(chan error, len(ids))
	start := time.Now()
	for _, id := range ids {
		go func() {
			_, err := d.call(ctx, http.MethodPost, "/containers/"+id+"/start", nil)
			errs <- err
		}()
	}
	for range ids {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	return milliseconds(time.Since(start)), nil
}

// measureRecover kills a manager of a hundred nodes and takes the time from its start until each node is online again, and a command to
// each is done.
func measureRecover(ctx context.Context, b *bench) ([]figure, error) {
	const count, prefix = 100, "rec-"
	m, err := b.manager(ctx)
	if err != nil {
		return nil, err
	}
	c, err := b.connect(m)
	if err != nil {
		return nil, err
	}
	if _, err := b.simulate(ctx, m, 0, count, prefix); err != nil {
		return nil, err
	}
	if err := eventually(ctx, "every node online", func() bool { return c.count() == count }); err != nil {
		return nil, err
	}
	var samples []float64
	for range max(b.runs/2, 5) {
		m.kill()
		c.forget()
		start := time.Now()
		if err := b.restart(ctx, m); err != nil {
			return nil, err
		}
		if err := eventually(ctx, "every node online again", func() bool { return c.count() == count }); err != nil {
			return nil, err
		}
		samples = append(samples, milliseconds(time.Since(start)))
	}
	f := of("manager killed → every node under control again", "ms", "≤ 3,000", samples)
	f.Note = fmt.Sprintf("%d nodes", count)
	return []figure{f}, nil
}

// measureMove moves a service between two nodes while a client keeps asking it, and counts the requests that no copy answered.
func measureMove(ctx context.Context, b *bench) ([]figure, error) {
	m, c, _, err := b.small(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.node(ctx, m, c, "-2"); err != nil {
		return nil, err
	}
	j := job("move", 1)
	j.Ports = []messages.Port{{Container: 8080}}
	j.Health = &messages.Health{HTTP: &messages.HTTPCheck{Port: 8080, Path: "/healthz"}}
	if err := c.do(ctx, deploy(j)); err != nil {
		return nil, err
	}
	ask, cancel := context.WithCancel(ctx)
	defer cancel()
	counts := make(chan [2]int, 1)
	go func() { counts <- asking(ask, c, "move") }()
	from, to := nodeName, nodeName+"-2"
	if c.job("move").Instances[0].Node != messages.NodeID(from) {
		from, to = to, from
	}
	for range max(b.runs/2, 5) {
		cmd := messages.Command{Command: messages.Move, Job: messages.Job{Name: "move"}, From: []messages.NodeID{messages.NodeID(from)}, Worker: []messages.NodeID{messages.NodeID(to)}}
		if err := c.do(ctx, cmd); err != nil {
			return nil, err
		}
		from, to = to, from
	}
	cancel()
	count := <-counts
	f := of("requests that failed during moves", "", "0", []float64{float64(count[1])})
	f.Note = fmt.Sprintf("%d requests, %d moves", count[0], max(b.runs/2, 5))
	return []figure{f}, nil
}

// asking requests whichever copy is healthy until ctx ends, and returns how many requests there were and how many failed.
func asking(ctx context.Context, c *client, name messages.JobName) (count [2]int) {
	web := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		ok := false
		for _, i := range c.job(name).Instances {
			if !i.Healthy || i.State != messages.Running || len(i.Ports) == 0 || ok {
				continue
			}
			ok = get(ctx, web, i.Ports[0].Host) == nil
		}
		if ctx.Err() != nil {
			return count
		}
		count[0]++
		if !ok {
			count[1]++
		}
	}
	return count
}

func get(ctx context.Context, web *http.Client, port int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+"/", nil)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// measureLoss kills the engine of one of two nodes for good and takes the time, beyond lost_after, until its instance runs on the other.
func measureLoss(ctx context.Context, b *bench) ([]figure, error) {
	const lostAfter = 2 * time.Second
	m, c, n, err := b.small(ctx, "--lost-after", lostAfter.String())
	if err != nil {
		return nil, err
	}
	name, other := nodeName, nodeName+"-2"
	second, err := b.node(ctx, m, c, "-2")
	if err != nil {
		return nil, err
	}
	engines := map[string]*daemon{name: n, other: second}
	if err := c.do(ctx, deploy(job("loss", 1))); err != nil {
		return nil, err
	}
	var samples []float64
	for generation := 1; len(samples) < max(b.runs/2, 5); generation++ {
		on := string(c.job("loss").Instances[0].Node)
		start := time.Now()
		engines[on].kill()
		id := messages.NewInstanceID("loss", 0, generation)
		if err := eventually(ctx, string(id)+" running", func() bool { _, ok := c.upSince(id); return ok }); err != nil {
			return nil, err
		}
		at, _ := c.upSince(id)
		samples = append(samples, milliseconds(at.Sub(start)-lostAfter))
		if engines[on], err = b.node(ctx, m, c, strings.TrimPrefix(on, nodeName)); err != nil {
			return nil, err
		}
		err := eventually(ctx, "one copy", func() bool { s := c.job("loss"); return s.State == messages.JobRunning && len(s.Instances) == 1 })
		if err != nil {
			return nil, err
		}
	}
	return []figure{of("node lost → its instance runs elsewhere, beyond lost_after", "ms", "≤ 2,000", samples)}, nil
}
