package instance

import (
	"context"
	"errors"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// errNoTechnology says that this node has no driver for what the spec asks for.
var errNoTechnology = errors.New("no such technology on this node")

// task is what a step works towards.
type task struct {
	run      bool
	spec     driver.Spec
	progress func(messages.Progress)
}

// step makes at most one call to d and returns the status that follows. Where the call failed the status is the old one. d is nil
// where the node does not have the technology.
func step(ctx context.Context, d driver.Driver, t task, s messages.InstanceStatus) (messages.InstanceStatus, error) {
	if !t.run {
		return stop(ctx, d, t, s)
	}
	if d == nil {
		return s, errNoTechnology
	}
	switch s.State {
	case messages.Pending:
		s.State, s.Code, s.Reason, s.NextAt = messages.Preparing, "", "", messages.Time{}
	case messages.Preparing:
		if err := d.Prepare(ctx, t.spec, t.progress); err != nil {
			return s, &stepError{"prepare", err}
		}
		s.State, s.Progress, s.Code, s.Reason = messages.Starting, nil, "", ""
	case messages.Starting:
		w, err := d.Start(ctx, t.spec)
		if err != nil {
			return s, &stepError{"start", err}
		}
		s = runs(s, w)
		s.Healthy = t.spec.Health == nil
	}
	return s, nil
}

// stop ends the workload, of which nothing is left then.
func stop(ctx context.Context, d driver.Driver, t task, s messages.InstanceStatus) (messages.InstanceStatus, error) {
	if d != nil {
		if err := d.Stop(ctx, t.spec.Instance, t.spec.Stop); err != nil && !errors.Is(err, driver.ErrNotFound) {
			return s, &stepError{"stop", err}
		}
	}
	s = halted(s)
	s.State, s.Code, s.Reason, s.Workload = messages.Stopped, "", "", ""
	return s, nil
}

// runs is the status of an instance whose workload runs, but for its health.
func runs(s messages.InstanceStatus, w driver.Workload) messages.InstanceStatus {
	s.State, s.Code, s.Reason, s.Progress, s.NextAt = messages.Running, "", "", nil, messages.Time{}
	s.Workload, s.ImageID, s.Ports, s.StartedAt, s.Address = w.ID, w.ImageID, nil, messages.At(w.StartedAt), ""
	s.Network, s.Names = w.Network, w.Names
	if len(w.Ports) > 0 {
		s.Ports = w.Ports
	}
	if w.Address.IsValid() {
		s.Address = w.Address.String()
	}
	return s
}

// halted takes from a status what only a running workload has.
func halted(s messages.InstanceStatus) messages.InstanceStatus {
	s.Healthy, s.Address, s.Network, s.Names, s.Ports, s.Progress, s.NextAt = false, "", "", nil, nil, nil, messages.Time{}
	return s
}

// nextAttempt is the status of an instance that begins again.
func nextAttempt(s messages.InstanceStatus) messages.InstanceStatus {
	s = halted(s)
	s.State, s.Code, s.Reason = messages.Pending, "", ""
	s.Attempt++
	return s
}
