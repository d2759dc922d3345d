package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"skerry.internal/messages"
)

// measureDeploy takes the time from publishing a deploy until the node's report "running" is back at the client, in turn with the Docker
// API's own create and start of the same container.
func measureDeploy(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.makeImage(ctx); err != nil {
		return nil, err
	}
	m, err := b.manager(ctx)
	if err != nil {
		return nil, err
	}
	c, err := b.connect(m)
	if err != nil {
		return nil, err
	}
	node, err := b.node(ctx, m, c, "")
	if err != nil {
		return nil, err
	}
	d := newDocker()
	one, err := b.deploys(ctx, c, d, node, 1, b.runs)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := errors.Join(b.profile(ctx, node, "profile", "engine-deploys"), b.profile(ctx, node, "heap", "engine-heap")); err != nil {
			fmt.Fprintln(b.log, "  ", err)
		}
	})
	many, err := b.deploys(ctx, c, d, node, 20, max(b.runs/2, 5))
	if err != nil {
		return nil, err
	}
	return []figure{
		of("command published → container running", "ms", "≤ 1.10×", one.own).over("Docker API create + start", one.own, one.floor),
		of("20 commands at once → 20 containers running", "ms", "≤ 1.15×", many.own).over("20 × Docker API create + start at once", many.own, many.floor),
		of("node engine with these 20, peak memory", "MB", "", many.peak).over("the same engine before them", many.peak, many.rest),
	}, nil
}

// deploySamples are what deploys takes of each run.
type deploySamples struct {
	own, floor []float64 // milliseconds
	rest, peak []float64 // memory of the engine before it and at most, in MB
}

// deploys takes n deploys at once and their floor, in turn.
func (b *bench) deploys(ctx context.Context, c *client, d *docker, node *daemon, n, runs int) (s deploySamples, err error) {
	for run := range runs + 1 { // the first is to warm up
		if err := forgetPeak(node.cmd.Process.Pid); err != nil {
			return s, err
		}
		before, err := usageOf(node.cmd.Process.Pid)
		if err != nil {
			return s, err
		}
		own, err := b.ownDeploys(ctx, c, n, run, "")
		if err != nil {
			return s, err
		}
		after, err := usageOf(node.cmd.Process.Pid)
		if err != nil {
			return s, err
		}
		floor, err := floorDeploys(ctx, d, n)
		if err != nil {
			return s, err
		}
		if run > 0 {
			s.own, s.floor, s.rest, s.peak = append(s.own, own), append(s.floor, floor), append(s.rest, before.rssMB), append(s.peak, after.peakMB)
		}
	}
	return s, nil
}

// ownDeploys takes n deploys at once on the node with this suffix, in milliseconds, and deletes what they have made.
func (b *bench) ownDeploys(ctx context.Context, c *client, n, run int, suffix string) (float64, error) {
	var names []messages.JobName
	start := time.Now()
	for i := range n {
		name := messages.JobName(fmt.Sprintf("b%d-%d-%d%s", n, run, i, suffix))
		names = append(names, name)
		cmd := deployOn(suffix, job(name, 1))
		c.mqtt.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: messages.Deploy}.String(), 1, false, messages.Encode(cmd))
	}
	var last time.Time
	for _, name := range names {
		id := messages.NewInstanceID(name, 0, 0)
		err := eventually(ctx, string(id)+" running", func() bool { _, ok := c.upSince(id); return ok })
		if err != nil {
			return 0, err
		}
		if at, _ := c.upSince(id); at.After(last) {
			last = at
		}
	}
	for _, name := range names {
		if err := c.do(ctx, remove(name)); err != nil {
			return 0, err
		}
	}
	return milliseconds(last.Sub(start)), nil
}

// measureOverlay takes deploys on a node in the overlay in turn with the same on one without.
func measureOverlay(ctx context.Context, b *bench) ([]figure, error) {
	m, c, _, err := b.small(ctx)
	if err != nil {
		return nil, err
	}
	const suffix = "-overlay"
	if _, err := b.overlayNode(ctx, m, c, suffix); err != nil {
		return nil, err
	}
	both := func(n int) (with, without, more []float64, err error) {
		for run := range max(b.runs, 5) + 1 { // the first is to warm up
			own, err := b.ownDeploys(ctx, c, n, run, suffix)
			if err != nil {
				return nil, nil, nil, err
			}
			plain, err := b.ownDeploys(ctx, c, n, run, "")
			if err != nil {
				return nil, nil, nil, err
			}
			if run > 0 {
				with, without, more = append(with, own), append(without, plain), append(more, (own-plain)/float64(n))
			}
		}
		return with, without, more, nil
	}
	const floor = "the same on Docker's network"
	with, without, more, err := both(1)
	if err != nil {
		return nil, err
	}
	withMany, withoutMany, moreOfMany, err := both(20)
	if err != nil {
		return nil, err
	}
	return []figure{
		of("command published → container running, on the overlay", "ms", "", with).over(floor, with, without),
		of("what the overlay adds to a deploy", "ms", "≤ 15", more),
		of("20 commands at once → 20 containers running, on the overlay", "ms", "", withMany).over(floor, withMany, withoutMany),
		of("what the overlay adds to each of 20 deploys at once", "ms", "≤ 15", moreOfMany),
	}, nil
}

func floorDeploys(ctx context.Context, d *docker, n int) (float64, error) {
	ids, errs := make([]string, n), make([]error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() { ids[i], errs[i] = d.run(ctx) })
	}
	wg.Wait()
	took := milliseconds(time.Since(start))
	for i, id := range ids {
		if errs[i] != nil {
			return 0, errs[i]
		}
		if err := d.remove(ctx, id); err != nil {
			return 0, err
		}
	}
	return took, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
