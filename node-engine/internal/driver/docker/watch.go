package docker

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Watch follows Docker's events. What has happened is asked of the container itself, so an event only says where to look.
func (d *Driver) Watch(ctx context.Context, ready func(), changed func(driver.Workload)) error {
	cli, err := d.api(ctx)
	if err == nil {
		err = d.follow(ctx, cli, ready, changed)
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // a Watch that its ctx ended has done its work, whatever else ended at the same time
	}
	if cli != nil {
		d.forget(cli)
	}
	return err
}

func (d *Driver) follow(ctx context.Context, cli *client.Client, ready func(), changed func(driver.Workload)) error {
	// The goroutine inside the client ends with this.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	want := d.mine()
	want.Add("type", string(events.ContainerEventType))
	for _, a := range []events.Action{events.ActionStart, events.ActionKill, events.ActionDie, events.ActionOOM} {
		want.Add("event", string(a))
	}
	// Docker answers before it has subscribed; with a start in the past it hands over what fell in between.
	stream, errs := cli.Events(ctx, events.ListOptions{Since: stamp(time.Now()), Filters: want})
	select {
	case err := <-errs:
		return ended(err)
	default:
		ready()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.keepSandboxes(ctx, cli) })
	wg.Go(func() { d.tend(ctx, cli) })
	mute := make(chan error, 1)
	wg.Go(func() { mute <- d.listen(ctx, cli) })
	attached := make(chan driver.Workload)
	wg.Go(func() { d.reattach(ctx, cli, attached) })
	p := past{newShortage(), told{}}
	for {
		ready, next := p.short.due(time.Now())
		for _, w := range ready {
			changed(w)
		}
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case e := <-stream:
			if err := d.report(ctx, cli, e, p, changed); err != nil {
				return err
			}
		case <-due:
		case w := <-attached:
			changed(w)
		case err := <-errs:
			return ended(err)
		case err := <-mute:
			return ended(err)
		}
	}
}

// listen asks the engine from time to time whether it is there, and returns an error once it does not answer: its stream of events would not tell.
func (d *Driver) listen(ctx context.Context, cli *client.Client) error {
	for {
		sleep(ctx, d.limits.pulse)
		if err := pingWithin(ctx, cli, d.limits.pulse); err != nil {
			return fmt.Errorf("no answer to a ping: %w", err)
		}
	}
}

// stamp is a moment as Docker wants it.
func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// past is what a Watch remembers of the containers it looks at.
type past struct {
	short *shortage
	told  told
}

// ended is the error of a stream that should not have ended.
func ended(err error) error {
	return fmt.Errorf("docker events: %w: %w", driver.ErrUnavailable, err)
}

// maxShort bounds what is remembered of containers that live on though a process in them was ended for want of memory.
const maxShort = 4096

// report turns one event into what changed.
func (d *Driver) report(ctx context.Context, cli *client.Client, e events.Message, p past, changed func(driver.Workload)) error {
	if e.Action == events.ActionDie {
		if err := d.leaving(ctx); err != nil {
			return ended(err) // it takes all containers along: what they are begun again with must wait for the next one
		}
	}
	if e.Actor.Attributes[LabelRole] == roleSandbox {
		if e.Action == events.ActionDie {
			d.sandboxEnded(ctx, cli, e.Actor.ID, changed)
		}
		return nil
	}
	id, signal := e.Actor.ID, p.told.note(e)
	switch e.Action {
	case events.ActionKill:
		return nil
	case events.ActionOOM:
		if w, ended := p.short.oom(id); ended {
			changed(w)
			return nil
		}
	}
	c, err := complete(cli.ContainerInspect(ctx, id))
	var w driver.Workload
	switch {
	case cerrdefs.IsNotFound(err):
		w = fromEvent(e)
	case err != nil:
		return ended(err) // a Watch with a gap is no Watch: its caller begins anew and lists
	default:
		w = d.look(ctx, cli, c)
	}
	switch {
	case w.Instance.Validate() != nil:
		return nil
	case w.Running && e.Action == events.ActionOOM, w.Exit != nil && e.Action == events.ActionStart:
		return nil // its end is another event, which tells more of it
	case w.Exit != nil && c.Config != nil:
		w.Exit.Interrupted = ends(signal, c.Config.StopSignal)
	case w.Exit != nil:
		w.Exit.Interrupted = ends(signal, "")
	}
	if w.Running {
		p.short.begun(id)
	} else if !p.short.ended(id, w, limited(c), time.Now()) {
		return nil // said a little later
	}
	changed(w)
	return nil
}

// sandboxEnded looks after a sandbox that somebody else has ended. A container that runs in it goes on, but could never be started again
// as it is: it is said not to run, so that its next start puts everything right.
func (d *Driver) sandboxEnded(ctx context.Context, cli *client.Client, id string, changed func(driver.Workload)) {
	instance, ok := d.boxes.owner(id)
	if !ok {
		d.boxes.look()
		return
	}
	c, err := d.inspect(ctx, cli, instance)
	if err != nil || !c.State.Running || sandboxOf(c) != id {
		return // its own end is an event of its own
	}
	if w := d.look(ctx, cli, c); !w.Running {
		changed(w)
	}
}

// limited reports whether the container has a limit of memory that it can exceed.
func limited(c container.InspectResponse) bool {
	return c.ContainerJSONBase != nil && c.HostConfig != nil && c.HostConfig.Memory > 0
}

// fromEvent is what an event alone tells of a container that has been removed since.
func fromEvent(e events.Message) driver.Workload {
	w := driver.Workload{Instance: messages.InstanceID(e.Actor.Attributes[LabelInstance]), ID: e.Actor.ID}
	if code, err := strconv.Atoi(e.Actor.Attributes["exitCode"]); err == nil {
		w.Exit = &driver.Exit{Code: code, At: time.Unix(0, e.TimeNano)}
	}
	return w
}
