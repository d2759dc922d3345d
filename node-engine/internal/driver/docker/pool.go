package docker

import (
	"context"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
)

const (
	// warmPause is how long no workload may have been started before the pool is filled: to start a sandbox costs what a deploy costs.
	warmPause = 300 * time.Millisecond
	// warmAgain is the wait after a sandbox could not be made, or while there is no overlay.
	warmAgain = 10 * time.Second
)

// keepSandboxes puts in order what an earlier process left, then keeps the pool filled until ctx ends.
func (d *Driver) keepSandboxes(ctx context.Context, cli *client.Client) {
	for ctx.Err() == nil {
		err := d.sweep(ctx, cli)
		if err == nil {
			break
		}
		d.log.DebugContext(ctx, "sandboxes not put in order yet", "err", err)
		sleep(ctx, warmPause)
	}
	for ctx.Err() == nil {
		d.pause(ctx, d.fill(ctx, cli))
	}
}

// fill makes one sandbox where the pool lacks one. It returns how long nothing is to be done unless there is news; 0: until then.
func (d *Driver) fill(ctx context.Context, cli *client.Client) time.Duration {
	if d.cfg.Network == nil || d.boxes.missing() <= 0 {
		return 0
	}
	if err := d.cfg.Network.Ready(ctx); err != nil {
		return warmAgain
	}
	if rest := warmPause - d.boxes.idle(); rest > 0 {
		return rest
	}
	b, err := d.makeSandbox(ctx, cli)
	if err != nil {
		if ctx.Err() == nil {
			d.log.WarnContext(ctx, "no sandbox made in advance", "err", err)
		}
		return warmAgain
	}
	d.giveBack(ctx, cli, b)
	return time.Millisecond
}

// pause waits until something has changed, or for wait where that is not 0.
func (d *Driver) pause(ctx context.Context, wait time.Duration) {
	var late <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-d.boxes.news:
	case <-late:
	case <-ctx.Done():
	}
}

func sleep(ctx context.Context, wait time.Duration) {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

// sweep takes over the sandboxes that nobody uses into the pool, and removes those that it has no room for or that are good for
// nothing. It ends the attachments of instances that are no more. The order of its questions matters: an instance is attached
// after its container is made, so what was attached before the containers are listed and has none is left over.
func (d *Driver) sweep(ctx context.Context, cli *client.Client) error {
	var attached []messages.InstanceID
	if d.cfg.Network != nil {
		attached = d.cfg.Network.Attached()
	}
	all, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: d.mine()})
	if err != nil {
		return failure("list containers", err)
	}
	used, there := map[string]bool{}, map[messages.InstanceID]bool{}
	for _, c := range all {
		if box := container.NetworkMode(c.HostConfig.NetworkMode).ConnectedContainer(); box != "" {
			used[box], there[messages.InstanceID(c.Labels[LabelInstance])] = true, true
		}
	}
	for _, c := range all {
		if c.Labels[LabelRole] != roleSandbox || used[c.ID] || d.boxes.known(nameOf(c)) {
			continue
		}
		if err := d.takeOver(ctx, cli, c); err != nil {
			return err
		}
	}
	for _, id := range attached {
		if _, ours := d.boxes.of(id); ours || there[id] {
			continue
		}
		if err := d.cfg.Network.Detach(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// nameOf is the name of a listed container.
func nameOf(c container.Summary) string {
	if len(c.Names) == 0 || len(c.Names[0]) == 0 {
		return ""
	}
	return c.Names[0][1:]
}

// takeOver puts a sandbox of an earlier process into the pool, or removes it.
func (d *Driver) takeOver(ctx context.Context, cli *client.Client, found container.Summary) error {
	ref, _, err := sandboxImage(d.cfg.Arch)
	if err != nil {
		return err
	}
	c, err := complete(cli.ContainerInspect(ctx, found.ID))
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return failure("inspect sandbox", err)
	}
	if d.cfg.Network != nil && c.Config.Image == ref {
		if b, err := d.ofSandbox(c); err == nil && untouched(b.pid) && d.boxes.keep(b) {
			return nil
		}
	}
	settled, cancel := settle(ctx)
	defer cancel()
	return failure("remove sandbox", endSandbox(settled, cli, c))
}
