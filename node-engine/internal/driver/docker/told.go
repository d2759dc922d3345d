package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/client"

	"skerry.internal/node-engine/internal/driver"
)

// A container that Docker told to end ends with whatever code its program likes, often 0: a dockerd that is stopped tells all of them, one that
// comes back after a crash tells those that lived on, and a person may. None of it is the program's own end. Docker's events say so: `kill`
// comes before `die`, as both are written while the container is locked. What was missed is in the last 256 events, which dockerd keeps for
// as long as it lives; so an end that these should hold and do not was before this dockerd's time, by the end of the one before it.

// remembered is how many events dockerd keeps.
const remembered = 256

// signals are numbers by name; Docker's events have the number, a container's own stop signal may be either.
var signals = map[string]string{"HUP": "1", "INT": "2", "QUIT": "3", "ABRT": "6", "KILL": "9", "USR1": "10", "USR2": "12", "ALRM": "14",
	"TERM": "15", "WINCH": "28", "PWR": "30", "RTMIN+3": "37"}

// told remembers by container which signal Docker has sent to it, while it runs. A removed container leaves it with its `die`.
type told map[string]string

// note takes over an event, and returns for a `die` which signal was sent before.
func (t told) note(e events.Message) (signal string) {
	id := e.Actor.ID
	switch e.Action {
	case events.ActionKill:
		if !ends(t[id], "") { // what comes after the signal to end does not take that back
			t[id] = e.Actor.Attributes["signal"]
		}
	case events.ActionStart:
		delete(t, id)
	case events.ActionDie:
		signal = t[id]
		delete(t, id)
	}
	return signal
}

// ends reports whether a signal is to end a container. Others make programs read their configuration anew.
func ends(signal, stopSignal string) bool {
	own := strings.TrimPrefix(strings.ToUpper(stopSignal), "SIG")
	if n, ok := signals[own]; ok {
		own = n
	}
	return slices.Contains([]string{"2", "3", "6", "9", "15"}, signal) || (signal != "" && signal == own)
}

// judge completes how the containers of a listing ended by what dockerd remembers. The containers were looked at before, so that what ended
// them is in its memory.
func (d *Driver) judge(ctx context.Context, cli *client.Client, all []container.InspectResponse, ends []*driver.Exit) error {
	var known []events.Message
	for i, c := range all {
		if ends[i] == nil {
			continue
		}
		if known == nil {
			var err error
			if known, err = memory(ctx, cli); err != nil {
				return err
			}
		}
		ends[i].Interrupted = interrupted(known, c.ID, c.Config.StopSignal, ends[i].At)
	}
	return nil
}

// memory returns the events that dockerd remembers, never nil.
func memory(ctx context.Context, cli *client.Client) ([]events.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, errs := cli.Events(ctx, events.ListOptions{Since: "1", Until: stamp(time.Now())})
	past := make([]events.Message, 0, remembered)
	for {
		select {
		case e := <-stream:
			past = append(past, e)
		case err := <-errs:
			if errors.Is(err, io.EOF) {
				return past, nil
			}
			return nil, failure("docker events", err)
		}
	}
}

// interrupted reports whether an end was not the program's own, as far as the past says.
func interrupted(past []events.Message, id, stopSignal string, at time.Time) bool {
	t, found, signal := told{}, false, ""
	for _, e := range past {
		if e.Actor.ID != id {
			continue
		}
		sent := t.note(e)
		switch e.Action {
		case events.ActionDie:
			found, signal = true, sent
		case events.ActionStart:
			found = false
		}
	}
	if found {
		return ends(signal, stopSignal)
	}
	return len(past) < remembered || time.Unix(0, past[0].TimeNano).Before(at)
}

// leavingWait is how long an engine may take to say that it stays.
const leavingWait = 2 * time.Second

// leaving returns an error where the engine is on its way out: from the first moment of its end it takes no new connection, while it still
// answers on those that it has, for seconds where a container does not end at once.
func (d *Driver) leaving(ctx context.Context) error {
	cli, err := d.newClient()
	if err != nil {
		return err
	}
	defer d.closeIdle(cli)
	err = pingWithin(ctx, cli, leavingWait)
	if errors.Is(err, context.DeadlineExceeded) { // a busy board, or systemd keeps the connection for the next engine: then old ones do better
		d.mu.Lock()
		old := d.cli
		d.mu.Unlock()
		if old == nil || pingWithin(ctx, old, leavingWait) != nil {
			return nil
		}
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("the engine takes no new connection: %w", err)
	}
	return nil
}

func pingWithin(ctx context.Context, cli *client.Client, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err := cli.Ping(ctx)
	return err
}
