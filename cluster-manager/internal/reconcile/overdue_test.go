package reconcile

import (
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

func TestOverdueSaysWhy(t *testing.T) {
	for _, c := range []struct {
		observed *messages.InstanceStatus
		before   string
		code     messages.Code
		want     string
	}{
		{nil, "", messages.Timeout, "web.0.0 on a: its node has not answered for 5s"},
		{&messages.InstanceStatus{State: messages.Pending, Reason: "exited with code 1"}, "", messages.Timeout, "web.0.0 on a is still pending after 5s: exited with code 1"},
		{&messages.InstanceStatus{State: messages.Starting}, "", messages.Timeout, "web.0.0 on a is still starting after 5s"},
		{&messages.InstanceStatus{State: messages.Preparing}, "", messages.Timeout, "web.0.0 on a is still preparing after 5s: its image is being brought"},
		{&messages.InstanceStatus{State: messages.Preparing, Progress: &messages.Progress{DoneBytes: 3 << 19, TotalBytes: 20 << 20}}, "", messages.Timeout,
			"web.0.0 on a is still preparing after 5s: 1.5 of 20.0 MiB of its image are there"},
		{&messages.InstanceStatus{State: messages.Running}, "", messages.Unhealthy, "web.0.0 on a is not healthy after 5s"},
		{&messages.InstanceStatus{State: messages.Running, Reason: "GET /: 503"}, "", messages.Unhealthy, "web.0.0 on a is not healthy after 5s: GET /: 503"},
		{&messages.InstanceStatus{State: messages.Running}, "GET /: 503", messages.Unhealthy, "web.0.0 on a is not healthy after 5s; before: GET /: 503"},
		{&messages.InstanceStatus{State: messages.Preparing}, "GET /: 503", messages.Timeout, "web.0.0 on a is still preparing after 5s; before: GET /: 503"},
	} {
		code, got := overdue(&cluster.Placement{Instance: "web.0.0", Node: "a", Observed: c.observed, Complaint: c.before}, messages.Duration(5*time.Second))
		if code != c.code || got != c.want {
			t.Errorf("got %s %q, want %s %q", code, got, c.code, c.want)
		}
	}
}
