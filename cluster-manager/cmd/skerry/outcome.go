package main

import (
	"fmt"
	"slices"

	"skerry.internal/messages"
)

// outcome says how a command has ended, from what the job's status says long after; nil: it has not, or that cannot be told.
func outcome(cmd messages.Command, first messages.Result, s *messages.JobStatus) *messages.Result {
	if s == nil {
		if cmd.Command == messages.Delete {
			return &messages.Result{Phase: messages.Done, Message: "the job and its instances are gone"}
		}
		return failedWith(messages.Superseded, "the job has been deleted meanwhile")
	}
	if s.Rev > first.Rev {
		if s.Reason != "" {
			return failedWith(messages.Unhealthy, s.Reason+"; the job went back to what it was before")
		}
		return failedWith(messages.Superseded, "a later command for this job took its place")
	}
	var r *messages.Result
	switch {
	case cmd.Command == messages.Delete:
		r = deleted(cmd, s)
	case s.State == messages.JobFailed:
		r = failedCopy(s)
	case s.State == messages.JobRunning || s.State == messages.JobDone:
		r = reached(cmd, s)
	}
	if r != nil {
		r.Rev, r.Instances = s.Rev, s.Instances
	}
	return r
}

func failedWith(code messages.Code, message string) *messages.Result {
	return &messages.Result{Phase: messages.Failed, Code: code, Message: message}
}

// deleted: done when nothing is left on the nodes that were named.
func deleted(cmd messages.Command, s *messages.JobStatus) *messages.Result {
	for _, i := range s.Instances {
		if len(cmd.Worker) == 0 || slices.Contains(cmd.Worker, i.Node) {
			return nil
		}
	}
	if len(cmd.Worker) == 0 {
		return nil // its status is still to be removed
	}
	return &messages.Result{Phase: messages.Done, Message: "its instances on these nodes are gone"}
}

func failedCopy(s *messages.JobStatus) *messages.Result {
	for _, i := range s.Instances {
		if i.Run && i.State.Terminal() && i.Code != "" {
			return failedWith(i.Code, fmt.Sprintf("%s on %s: %s", i.Instance, i.Node, i.Reason))
		}
	}
	return failedWith(messages.Exited, s.Reason)
}

// reached: every copy is up; after a move it also matters where.
func reached(cmd messages.Command, s *messages.JobStatus) *messages.Result {
	for _, i := range s.Instances {
		if !i.Run {
			return nil // something is still to be stopped
		}
	}
	if cmd.Command != messages.Move {
		return &messages.Result{Phase: messages.Done, Message: fmt.Sprintf("%d of %d copies run", s.Running, s.Replicas)}
	}
	for _, i := range s.Instances {
		away := len(cmd.From) > 0 && !slices.Contains(cmd.From, i.Node)
		there := slices.Contains(cmd.Worker, i.Node)
		if !away && !there {
			return failedWith(messages.Unhealthy, fmt.Sprintf("%s is still on %s", i.Instance, i.Node))
		}
	}
	return &messages.Result{Phase: messages.Done, Message: "moved"}
}
