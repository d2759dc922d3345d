package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skerry.internal/messages"
)

// measureIdle takes what a manager and node engines with one instance use while nothing happens, all over the same spans, and beside them what a
// program uses that has as many connections and does nothing with them.
func measureIdle(ctx context.Context, b *bench) ([]figure, error) {
	m, c, n, err := b.small(ctx)
	if err != nil {
		return nil, err
	}
	const suffix = "-overlay"
	on, err := b.overlayNode(ctx, m, c, suffix)
	if err != nil {
		return nil, err
	}
	rest, err := b.restingProgram(ctx, m)
	if err != nil {
		return nil, err
	}
	bare, err := b.bareManager(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.connect(bare); err != nil {
		return nil, err
	}
	if err := errors.Join(c.do(ctx, deployOn("", job("idle", 1))), c.do(ctx, deployOn(suffix, job("idle-overlay", 1)))); err != nil {
		return nil, err
	}
	select { // what was started has come to rest
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	all, err := watchAll(ctx, 5, 30*time.Second, n, on, rest, m.daemon, bare.daemon)
	if err != nil {
		return nil, err
	}
	engine, overlay, resting, manager, broker := all[0], all[1], all[2], all[3], all[4]
	const does, alone = "a Go program with an MQTT session and Docker's events", "the MQTT library's broker alone"
	return []figure{
		of("node engine idle, memory", "MB", "≤ 25", engine.rss).over(does, engine.rss, resting.rss),
		of("node engine idle with the overlay and one instance on it, memory", "MB", "≤ 25", overlay.rss).over(does, overlay.rss, resting.rss),
		of("node engine idle, processor", "% of one", "≤ 0.2", percent(engine.cores)).over(does, percent(engine.cores), percent(resting.cores)),
		of("node engine idle, written to disk", "bytes/h", "0", engine.written).over(does, engine.written, resting.written),
		of("node engine idle, uplink", "kbit/s", "≤ 0.5", engine.uplink).over(does, engine.uplink, resting.uplink),
		of("helper processes per workload", "", "0", engine.helpers).over(does, engine.helpers, resting.helpers),
		of("manager with broker idle, memory", "MB", "≤ 40", manager.rss).over(alone, manager.rss, broker.rss),
		of("manager with broker idle, processor", "% of one", "", percent(manager.cores)).over(alone, percent(manager.cores), percent(broker.cores)),
	}, nil
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

// measureRecover kills a manager of a hundred nodes and takes the time from its start until each node is online again, in turn with the same
// for the MQTT library's broker.
func measureRecover(ctx context.Context, b *bench) ([]figure, error) {
	const count = 100
	managers := make([]*manager, 2)
	clients := make([]*client, 2)
	for i, start := range []func(context.Context, ...string) (*manager, error){b.manager, b.bareManager} {
		var err error
		if managers[i], err = start(ctx); err != nil {
			return nil, err
		}
		if clients[i], err = b.connect(managers[i]); err != nil {
			return nil, err
		}
		if _, err := b.simulate(ctx, managers[i], 0, count, "rec-"); err != nil {
			return nil, err
		}
	}
	samples := make([][]float64, 2)
	for range max(b.runs/2, 5) {
		for i, m := range managers {
			took, err := b.recoverOnce(ctx, m, clients[i], count)
			if err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], took)
		}
	}
	f := of("manager killed → every node under control again", "ms", "≤ 3,000", samples[0]).over("the MQTT library's broker killed → every node connected again", samples[0], samples[1])
	f.Note = fmt.Sprintf("%d nodes", count)
	return []figure{f}, nil
}

// recoverOnce kills a manager once all its nodes are online, and returns the milliseconds from its start until they are again.
func (b *bench) recoverOnce(ctx context.Context, m *manager, c *client, count int) (float64, error) {
	if err := eventually(ctx, "every node online", func() bool { return c.count() == count }); err != nil {
		return 0, err
	}
	m.kill()
	c.forget()
	start := time.Now()
	if err := b.restart(ctx, m); err != nil {
		return 0, err
	}
	err := eventually(ctx, "every node online again", func() bool { return c.count() == count })
	return milliseconds(time.Since(start)), err
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
	var asked asked
	var wg sync.WaitGroup
	wg.Go(func() { asked.ask(ask, c, "move") })
	var requests, failed []float64
	from, to := nodeName, nodeName+"-2"
	if c.job("move").Instances[0].Node != messages.NodeID(from) {
		from, to = to, from
	}
	for range max(b.runs/2, 5) {
		cmd := messages.Command{Command: messages.Move, Job: messages.Job{Name: "move"}, From: []messages.NodeID{messages.NodeID(from)}, Worker: []messages.NodeID{messages.NodeID(to)}}
		beforeAll, beforeFailed := asked.all.Load(), asked.failed.Load()
		if err := c.do(ctx, cmd); err != nil {
			return nil, err
		}
		requests = append(requests, float64(asked.all.Load()-beforeAll))
		failed = append(failed, float64(asked.failed.Load()-beforeFailed))
		from, to = to, from
	}
	cancel()
	wg.Wait()
	return []figure{of("requests during a move", "", "", requests), of("requests that failed during a move", "", "0", failed)}, nil
}

// asked counts requests.
type asked struct{ all, failed atomic.Int64 }

// ask requests whichever copy is healthy until ctx ends.
func (a *asked) ask(ctx context.Context, c *client, name messages.JobName) {
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
			return
		}
		a.all.Add(1)
		if !ok {
			a.failed.Add(1)
		}
	}
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
	d := newDocker()
	var samples, floor []float64
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
		plain, err := floorDeploys(ctx, d, 1)
		if err != nil {
			return nil, err
		}
		floor = append(floor, plain)
		if engines[on], err = b.node(ctx, m, c, strings.TrimPrefix(on, nodeName)); err != nil {
			return nil, err
		}
		err = eventually(ctx, "one copy", func() bool { s := c.job("loss"); return s.State == messages.JobRunning && len(s.Instances) == 1 })
		if err != nil {
			return nil, err
		}
	}
	return []figure{of("node lost → its instance runs elsewhere, beyond lost_after", "ms", "≤ 2,000", samples).over("Docker API create + start", samples, floor)}, nil
}
