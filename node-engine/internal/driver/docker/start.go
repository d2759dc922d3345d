package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// errLostGPUs says that a container that has ended must be made anew to run again.
var errLostGPUs = errors.New("another container has its graphics processors")

// Start makes the container of the instance run. Where there is none yet that is three calls: create, start and inspect. So it does not
// look first; that the name is taken says that there is one.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Workload, error) {
	cli, err := d.api(ctx)
	if err != nil {
		return driver.Workload{}, err
	}
	p, err := d.plan(ctx, cli, spec)
	if err != nil {
		return driver.Workload{}, err
	}
	if p.overlay {
		d.boxes.begin()
		defer d.boxes.end()
	}
	// A round ends all but where the container comes or goes in between: Docker gives a name away a moment before its container can be
	// seen, and takes it back a moment after.
	for wait := 5 * time.Millisecond; wait < 5*time.Second; wait *= 2 {
		w, done, err := d.try(ctx, cli, spec, p)
		if err != nil || done {
			return w, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return driver.Workload{}, ctx.Err()
		}
	}
	return driver.Workload{}, fmt.Errorf("start %s: the container %s comes and goes by somebody else's hand", spec.Instance, p.name)
}

// try makes a new container and starts it, or deals with the one that has its name. done is false where that one was in the way.
func (d *Driver) try(ctx context.Context, cli *client.Client, spec driver.Spec, p plan) (w driver.Workload, done bool, err error) {
	var b sandbox
	if p.overlay {
		warm := false
		if b, warm = d.warmSandbox(ctx, cli); !warm { // to make one takes so long that it pays to look first
			if w, done, err := d.takeUp(ctx, cli, spec, p); err != nil || done {
				return w, done, err
			}
			if b, err = d.makeSandbox(ctx, cli); err != nil {
				return driver.Workload{}, false, err
			}
		}
		p.host.NetworkMode = container.NetworkMode("container:" + b.id)
	}
	id, err := d.create(ctx, cli, spec, p)
	if err == nil {
		w, err := d.startNew(ctx, cli, spec, id, b)
		return w, true, err
	}
	if p.overlay {
		d.giveBack(ctx, cli, b)
	}
	if !cerrdefs.IsConflict(err) {
		return driver.Workload{}, false, err
	}
	return d.takeUp(ctx, cli, spec, p)
}

// create makes the container. It is not cut short: Docker would make it all the same, and nobody would know.
func (d *Driver) create(ctx context.Context, cli *client.Client, spec driver.Spec, p plan) (string, error) {
	settled, cancel := settle(ctx)
	defer cancel()
	if n := spec.Resources.GPUs; n > 0 {
		d.gpus.Lock()
		defer d.gpus.Unlock()
		if err := d.takeGPUs(settled, cli, p, n); err != nil {
			return "", err
		}
	}
	made, err := cli.ContainerCreate(settled, p.cfg, p.host, nil, nil, p.name)
	if err != nil {
		return "", d.startFailure(ctx, spec, "create", err)
	}
	if ctx.Err() != nil {
		d.undo(settled, cli, made.ID)
		return "", ctx.Err()
	}
	for _, w := range made.Warnings {
		d.log.WarnContext(ctx, "docker warns about a container", "instance_id", spec.Instance, "warning", w)
	}
	return made.ID, nil
}

// startNew starts a container that was just made, on the overlay where it has a sandbox, and removes both where that fails.
func (d *Driver) startNew(ctx context.Context, cli *client.Client, spec driver.Spec, id string, b sandbox) (w driver.Workload, err error) {
	settled, cancel := settle(ctx)
	defer cancel()
	if b.id != "" {
		_, err = d.join(settled, cli, b, driver.Attachment{Instance: spec.Instance, Ports: spec.Ports})
		err = d.startFailure(ctx, spec, "start", err)
	}
	if err == nil {
		err = ctx.Err() // it is not wanted any more
	}
	if err == nil {
		w, err = d.run(ctx, cli, spec, id)
	}
	if err == nil || w.Running {
		return w, err
	}
	d.undo(settled, cli, id)
	if b.id != "" {
		if err := d.leave(settled, cli, spec.Instance, b.id); err != nil {
			d.log.WarnContext(ctx, "sandbox of a failed start left behind", "instance_id", spec.Instance, "err", err)
		}
		d.boxes.release(b.name)
	}
	return w, err
}

// run starts a container and says what has become of it. With an error, Running says whether it was started nevertheless.
func (d *Driver) run(ctx context.Context, cli *client.Client, spec driver.Spec, id string) (driver.Workload, error) {
	settled, cancel := settle(ctx)
	defer cancel()
	if err := cli.ContainerStart(settled, id, container.StartOptions{}); err != nil {
		return driver.Workload{}, d.startFailure(ctx, spec, "start", err)
	}
	c, err := complete(cli.ContainerInspect(settled, id))
	if err != nil {
		return driver.Workload{Running: true}, failure("inspect "+string(spec.Instance), err)
	}
	w := workload(c)
	if j, ok := d.boxes.of(spec.Instance); ok && j.id == sandboxOf(c) {
		w = onOverlay(w, j)
	}
	return w, nil
}

// takeUp deals with the container that has the instance's name already: it is left alone where it runs, started where it does not,
// and removed where it is of another spec. done is false where the way is free for a new one.
func (d *Driver) takeUp(ctx context.Context, cli *client.Client, spec driver.Spec, p plan) (driver.Workload, bool, error) {
	c, err := complete(cli.ContainerInspect(ctx, p.name))
	switch {
	case cerrdefs.IsNotFound(err):
		return driver.Workload{}, false, nil
	case err != nil:
		return driver.Workload{}, false, failure("inspect "+string(spec.Instance), err)
	case !d.owns(c, spec.Instance):
		return driver.Workload{}, false, fmt.Errorf("start %s: a container that is not Skerry's has the name %s: rename or remove it", spec.Instance, p.name)
	case c.Config.Labels[LabelSpec] == p.hash && c.State.Running:
		w, err := d.describe(ctx, cli, c)
		if err == nil || !errors.Is(err, errNoSandbox) {
			return w, err == nil, err
		}
		return driver.Workload{}, false, d.clear(ctx, cli, c, spec.Stop)
	case c.Config.Labels[LabelSpec] == p.hash && (sandboxOf(c) != "") == p.overlay &&
		(c.State.Status == container.StateCreated || c.State.Status == container.StateExited):
		w, err := d.resume(ctx, cli, spec, c)
		if errors.Is(err, errNoSandbox) || errors.Is(err, errLostGPUs) {
			return driver.Workload{}, false, d.clear(ctx, cli, c, spec.Stop)
		}
		if cerrdefs.IsNotFound(err) { // removed in between
			return driver.Workload{}, false, nil
		}
		if stuck(err) {
			d.log.WarnContext(ctx, "container cannot be started any more and is made anew", "instance_id", spec.Instance, "err", err)
			return driver.Workload{}, false, d.clear(ctx, cli, c, spec.Stop)
		}
		return w, true, err
	default:
		return driver.Workload{}, false, d.clear(ctx, cli, c, spec.Stop)
	}
}

// clear removes a container that is to be made anew, with its sandbox. The instance keeps its addresses.
func (d *Driver) clear(ctx context.Context, cli *client.Client, c container.InspectResponse, stop messages.Stop) error {
	if err := d.end(ctx, cli, c, stop); err != nil || sandboxOf(c) == "" {
		return err
	}
	settled, cancel := settle(ctx)
	defer cancel()
	return d.removeSandbox(settled, cli, sandboxOf(c))
}

// resume starts a container that does not run.
func (d *Driver) resume(ctx context.Context, cli *client.Client, spec driver.Spec, c container.InspectResponse) (driver.Workload, error) {
	if spec.Resources.GPUs > 0 {
		d.gpus.Lock()
		defer d.gpus.Unlock()
		if lost, err := d.lostGPUs(ctx, cli, c); err != nil || lost {
			return driver.Workload{}, cmp.Or(err, errLostGPUs)
		}
	}
	if sandboxOf(c) != "" {
		if _, err := d.rejoin(ctx, cli, spec, c); err != nil {
			return driver.Workload{}, err
		}
	}
	return d.run(ctx, cli, spec, c.ID)
}

// stuck reports whether a container can never be started again: dockerd was killed while it was being started, or its program ended while
// dockerd was away, and containerd still holds a task, a shim or a folder under its id.
func stuck(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return (strings.Contains(text, "task") && strings.Contains(text, "already exists")) || strings.Contains(text, "id already in use") ||
		(strings.Contains(text, "failed to start shim") && strings.Contains(text, "file exists"))
}

// undo removes a container that must not stay.
func (d *Driver) undo(ctx context.Context, cli *client.Client, id string) {
	if err := remove(ctx, cli, id); err != nil {
		d.log.WarnContext(ctx, "container of a failed start left behind", "container", id, "err", err)
	}
}

// startFailure sorts the errors of create and start.
func (d *Driver) startFailure(ctx context.Context, spec driver.Spec, step string, err error) error {
	if err == nil || errors.Is(err, driver.ErrPortInUse) {
		return err
	}
	what := step + " " + string(spec.Instance)
	text := plain(err)
	if port, ok := portConflict(spec, text); ok {
		return fmt.Errorf("%s: %w: port %s is taken by another program or container on this node", what, driver.ErrPortInUse, port)
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return failure(what, err)
	case cerrdefs.IsInvalidArgument(err), strings.Contains(text, "error gathering device information"):
		return fmt.Errorf("%s: %w: %s", what, driver.ErrInvalid, text)
	case !away(err) && d.leaving(ctx) != nil: // it says all kinds of things in its last seconds
		return fmt.Errorf("%s: %w: docker is ending: %s", what, driver.ErrUnavailable, text)
	default:
		return failure(what, err)
	}
}
