package docker

import (
	"context"
	"errors"
	"fmt"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// defaultGrace is the contract's, for a Stop that names none.
const defaultGrace = 10 * time.Second

// Stop ends the container of the instance and removes it with its anonymous volumes. Docker's own stop counts in whole seconds and takes
// no signal before API 1.42, so it is done in steps here.
func (d *Driver) Stop(ctx context.Context, id messages.InstanceID, stop messages.Stop) error {
	cli, err := d.api(ctx)
	if err != nil {
		return err
	}
	c, err := d.inspect(ctx, cli, id)
	if errors.Is(err, driver.ErrNotFound) { // the container may have been removed by hand, its sandbox not
		settled, cancel := settle(ctx)
		defer cancel()
		return errors.Join(err, d.leave(settled, cli, id, ""))
	}
	if err != nil {
		return err
	}
	if err := d.end(ctx, cli, c, stop); err != nil || sandboxOf(c) == "" {
		return err
	}
	settled, cancel := settle(ctx)
	defer cancel()
	return d.leave(settled, cli, id, sandboxOf(c))
}

// end stops a container in whatever state it is, and removes it. Its sandbox stays.
func (d *Driver) end(ctx context.Context, cli *client.Client, c container.InspectResponse, stop messages.Stop) error {
	if c.State.Running {
		if err := d.signalAndWait(ctx, cli, c, stop); err != nil {
			return failure("stop "+c.Name, err)
		}
	} else if n := endLeftovers(c.ID); n > 0 {
		d.log.WarnContext(ctx, "ended what a crash of docker had left of a container", "container", c.Name, "processes", n)
	}
	settled, cancel := settle(ctx)
	defer cancel()
	return failure("remove "+c.Name, remove(settled, cli, c.ID))
}

// signalAndWait ends a running container: its signal, its grace, then SIGKILL.
func (d *Driver) signalAndWait(ctx context.Context, cli *client.Client, c container.InspectResponse, stop messages.Stop) error {
	signal, grace := stop.Signal, stop.Grace.Std()
	if signal == "" {
		signal = c.Config.StopSignal
	}
	if signal == "" {
		signal = "SIGTERM"
	}
	if grace <= 0 {
		grace = defaultGrace
	}
	started := clock(c.State.StartedAt)
	if c.State.Paused { // frozen it takes no signal, and one that was frozen on the way to its program loses it
		if err := cli.ContainerUnpause(ctx, c.ID); err != nil {
			d.log.DebugContext(ctx, "unpause", "container", c.Name, "err", err) // somebody may have done it
		}
		started = time.Now()
	}
	awaitHearing(ctx, c.State.Pid, started, signal, grace/2)
	short, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := kill(ctx, cli, c.ID, signal)
	if cerrdefs.IsInvalidArgument(err) { // a signal that this kernel does not know ends nothing: go on to the one that does
		d.log.WarnContext(ctx, "unknown stop signal", "signal", signal, "container", c.Name)
		cancel()
		err = nil
	}
	if err != nil {
		return err
	}
	err = waitUntil(short, cli, c.ID, container.WaitConditionNotRunning)
	if short.Err() == nil || ctx.Err() != nil {
		return err
	}
	if err := kill(ctx, cli, c.ID, "SIGKILL"); err != nil {
		return err
	}
	dying, cancel := context.WithTimeout(ctx, d.limits.kill)
	defer cancel()
	err = waitUntil(dying, cli, c.ID, container.WaitConditionNotRunning)
	if dying.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("it has not ended %s after SIGKILL: one of its processes may wait for a device or a file system of this node, or docker stands still", d.limits.kill)
	}
	return err
}

// kill sends a signal. That the container has ended by then, or is gone, is what a signal is for.
func kill(ctx context.Context, cli *client.Client, id, signal string) error {
	err := cli.ContainerKill(ctx, id, signal)
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	return err
}

// waitUntil waits for a container's condition; one that is gone fulfils each. Exactly one of the channels yields, also when ctx ends.
func waitUntil(ctx context.Context, cli *client.Client, id string, condition container.WaitCondition) error {
	result, errs := cli.ContainerWait(ctx, id, condition)
	select {
	case <-result:
		return nil
	case err := <-errs:
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
}

// remove removes a container and its anonymous volumes; where somebody else is removing it already it waits for that.
func remove(ctx context.Context, cli *client.Client, id string) error {
	err := cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	switch {
	case cerrdefs.IsNotFound(err):
		return nil
	case cerrdefs.IsConflict(err):
		return waitUntil(ctx, cli, id, container.WaitConditionRemoved)
	default:
		return err
	}
}
