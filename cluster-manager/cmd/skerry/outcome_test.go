package main

import (
	"testing"

	"skerry.internal/messages"
)

func on(node messages.NodeID, run bool, state messages.State, code messages.Code) messages.InstanceReport {
	return messages.InstanceReport{Node: node, Run: run, InstanceStatus: messages.InstanceStatus{Instance: "web.0.0", State: state, Code: code}}
}

func TestOutcome(t *testing.T) {
	status := func(state messages.JobState, rev uint64, i ...messages.InstanceReport) *messages.JobStatus {
		return &messages.JobStatus{Job: "web", State: state, Rev: rev, Instances: i}
	}
	up, failed, leaving := on("a", true, messages.Running, ""), on("a", true, messages.FailedState, messages.ImageNotFound), on("a", false, messages.Running, "")
	reverted := status(messages.JobRunning, 6, up)
	reverted.Reason = "web.0.1 did not get healthy"
	for _, tt := range []struct {
		what   string
		cmd    messages.Command
		status *messages.JobStatus
		phase  messages.Phase // "": cannot be told
		code   messages.Code
	}{
		{"deployed", messages.Command{Command: messages.Deploy}, status(messages.JobRunning, 5, up), messages.Done, ""},
		{"batch", messages.Command{Command: messages.Deploy}, status(messages.JobDone, 5), messages.Done, ""},
		{"under way", messages.Command{Command: messages.Deploy}, status(messages.JobPending, 5, up), "", ""},
		{"an old one still goes", messages.Command{Command: messages.Deploy}, status(messages.JobRunning, 5, up, leaving), "", ""},
		{"failed", messages.Command{Command: messages.Deploy}, status(messages.JobFailed, 5, failed), messages.Failed, messages.ImageNotFound},
		{"taken back", messages.Command{Command: messages.Deploy}, reverted, messages.Failed, messages.Unhealthy},
		{"overtaken", messages.Command{Command: messages.Deploy}, status(messages.JobRunning, 6, up), messages.Failed, messages.Superseded},
		{"deleted by others", messages.Command{Command: messages.Deploy}, nil, messages.Failed, messages.Superseded},
		{"deleted", messages.Command{Command: messages.Delete}, nil, messages.Done, ""},
		{"deleting", messages.Command{Command: messages.Delete}, status(messages.JobDeleting, 5, leaving), "", ""},
		{"deleted on b", messages.Command{Command: messages.Delete, Worker: []messages.NodeID{"b"}}, status(messages.JobRunning, 5, up), messages.Done, ""},
		{"still on a", messages.Command{Command: messages.Delete, Worker: []messages.NodeID{"a"}}, status(messages.JobRunning, 5, leaving), "", ""},
		{"moved away", messages.Command{Command: messages.Move, From: []messages.NodeID{"b"}}, status(messages.JobRunning, 5, up), messages.Done, ""},
		{"moved there", messages.Command{Command: messages.Move, Worker: []messages.NodeID{"a"}}, status(messages.JobRunning, 5, up), messages.Done, ""},
		{"not moved", messages.Command{Command: messages.Move, From: []messages.NodeID{"a"}}, status(messages.JobRunning, 5, up), messages.Failed, messages.Unhealthy},
	} {
		r := outcome(tt.cmd, messages.Result{Rev: 5}, tt.status)
		if (r == nil) != (tt.phase == "") || (r != nil && (r.Phase != tt.phase || r.Code != tt.code)) {
			t.Errorf("%s: got %+v, want %s %s", tt.what, r, tt.phase, tt.code)
		}
	}
}
