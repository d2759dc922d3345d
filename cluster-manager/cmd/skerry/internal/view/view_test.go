package view

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

func now() time.Time { return time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC) }

func TestAges(t *testing.T) {
	s := Style{Now: now()}
	for ago, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", time.Minute: "1m00s", 61 * time.Minute: "1h01m", 49 * time.Hour: "2d01h",
		-time.Hour: "0s"} {
		if got := s.Age(messages.At(now().Add(-ago))); got != want {
			t.Errorf("%s: got %s, want %s", ago, got, want)
		}
	}
	if got := s.Age(messages.Time{}); got != "-" {
		t.Errorf("no time: got %s", got)
	}
}

// TestNamesAreWhole wants the longest names uncut, and columns aligned below their titles.
func TestNamesAreWhole(t *testing.T) {
	long := strings.Repeat("n", 63)
	nodes := []messages.NodeStatus{{Node: messages.NodeID(long), Kind: "core", State: messages.NodeOnline}, {Node: "b", Kind: "spare", State: messages.NodeLost,
		MemoryMB: 2048, CPU: messages.CPUInfo{Cores: 4}, Reserved: messages.Resources{CPUs: 0.5, MemoryMB: 64, GPUs: 1}}}
	lines := strings.Split(Style{Now: now()}.Nodes(nodes), "\n")
	if !strings.Contains(lines[1], long) || strings.Index(lines[0], "KIND") != strings.Index(lines[2], "spare") {
		t.Errorf("got\n%s", strings.Join(lines, "\n"))
	}
	if !strings.Contains(lines[2], "0.5 cpus, 64 MiB, 1 gpus") {
		t.Errorf("reserved: got %s", lines[2])
	}
}

// TestTextFromTheNetworkCommandsNoTerminal gives every text of every status an escape sequence.
func TestTextFromTheNetworkCommandsNoTerminal(t *testing.T) {
	const evil = "\x1b]0;owned\x07\x1b[2J\x9bH\rx"
	i := messages.InstanceReport{Node: evil, InstanceStatus: messages.InstanceStatus{Instance: evil, State: evil, Reason: evil, Address: evil, Ports: []messages.Port{{Name: evil, Protocol: evil}}}}
	j := messages.JobStatus{Job: evil, State: evil, Image: evil, Reason: evil, Instances: []messages.InstanceReport{i}, Worker: []messages.NodeID{evil},
		Waiting: []messages.WaitingCopy{{Code: evil, Reason: evil, Nodes: []messages.Passed{{Node: evil, Code: evil, Reason: evil}}}}}
	n := messages.NodeStatus{Node: evil, Kind: evil, State: evil, Arch: evil, OS: evil, Labels: map[string]string{evil: evil}, Instances: []messages.InstanceID{evil},
		Sensors: []messages.SensorInfo{{Kind: evil, Path: evil, Name: evil}}, GPUs: []messages.GPUInfo{{Model: evil}}}
	tele := &messages.Telemetry{Sensors: []messages.SensorReading{{Name: evil, Unit: evil}}, Instances: []messages.InstanceUse{{Instance: evil}}}
	whole := &messages.NetworkStatus{Network: evil, Network6: evil, Services: evil, Guests: []messages.Guest{{Guest: evil, Address: evil, Address6: evil, Gateway: evil}}}
	net := []NetNode{{Status: messages.NodeStatus{Node: evil, State: messages.NodeOnline, Overlay: &messages.OverlayStatus{State: evil, Reason: evil, Blocks: []string{evil}, NAT: evil, Endpoints: []string{evil}}},
		Measured: &messages.NetStatus{State: evil, Reason: evil, NoNames: evil, NoIPv6: evil, Dropped: map[string]int64{evil: 1}, OverlayUse: messages.OverlayUse{Peers: []messages.PeerUse{{Node: evil, Path: evil, Endpoint: evil}},
			Flows: []messages.FlowUse{{From: evil, Service: evil, Node: evil}}}}}}
	e := messages.ServiceEntry{Job: evil, RoundRobin: evil, Closest: evil, Policy: evil, Allow: []messages.JobName{evil}, Ports: []messages.Port{{Name: evil, Protocol: evil}},
		Instances: []messages.ServiceInstance{{Service: evil, Address: evil, Node: evil}}}
	a := messages.TraceAnswer{Name: evil, Addresses: []string{evil}, Service: evil, Policy: evil, Instance: evil, Address: evil, Node: evil, Path: evil, Endpoint: evil}
	r := messages.Result{Command: evil, Job: evil, Phase: messages.Failed, Code: evil, Message: evil, Instances: j.Instances}
	for _, s := range []Style{{Now: now()}, {Now: now(), Color: true}} {
		var c Changes
		for what, text := range map[string]string{"jobs": s.Jobs([]messages.JobStatus{j}), "job": s.Job(j), "nodes": s.Nodes([]messages.NodeStatus{n}), "node": s.Node(n, tele),
			"sentence": Sentence(r), "failure": s.Failure(r), "refusal": s.Refusal(j.Waiting[0].Nodes), "event": s.Event(messages.Event{Kind: evil, Message: evil}),
			"network": s.Network(whole, net), "services": s.Services([]messages.ServiceEntry{e}), "service": s.Service(e), "resolved": s.Resolved(Resolution{Name: evil}), "guests": s.Guests(whole.Guests, nil),
			"trace": s.Trace(evil, a), "ping": s.Ping(a), "ping lost": s.Ping(messages.TraceAnswer{Error: evil}),
			"changes": strings.Join(c.Next(s, j), "\n"), "live": strings.Join(s.Live(j, 0, 0), "\n"), "result": s.Result(messages.Result{Command: evil, Job: evil, Phase: messages.Accepted})} {
			for _, bad := range []string{"\x1b]", "\x1b[2J", "\x07", "\r", "\u009b"} {
				if strings.Contains(text, bad) || !strings.Contains(text, "owned") {
					t.Errorf("%s (colour %v): got %q, with %q", what, s.Color, text, bad)
				}
			}
		}
	}
}

func report(name string, state messages.State, p *messages.Progress) messages.InstanceReport {
	return messages.InstanceReport{Node: "a", Run: true, InstanceStatus: messages.InstanceStatus{Instance: messages.InstanceID(name), State: state, Progress: p}}
}

func TestChanges(t *testing.T) {
	var c Changes
	s := Style{Now: now()}
	at := func(done int64) messages.JobStatus {
		return messages.JobStatus{Instances: []messages.InstanceReport{report("web.0.0", messages.Preparing, &messages.Progress{DoneBytes: done, TotalBytes: 100})}}
	}
	for _, tt := range []struct {
		status messages.JobStatus
		want   string
	}{
		{at(0), "[web.0.0  a  preparing  pulled 0 B of 100 B (0 %)]"},
		{at(10), "[]"}, // less than a quarter is not worth a line
		{at(30), "[web.0.0  a  preparing  pulled 30 B of 100 B (30 %)]"},
		{messages.JobStatus{Instances: []messages.InstanceReport{report("web.0.0", messages.Running, nil)}}, "[web.0.0  a  running, not healthy]"},
		{messages.JobStatus{Waiting: []messages.WaitingCopy{{Ordinal: 1, Reason: "full"}}}, "[web.0.0  gone copy 1  waits for a node  full]"},
		{messages.JobStatus{Waiting: []messages.WaitingCopy{{Ordinal: 1, Reason: "full"}}}, "[]"},
	} {
		if got := fmt.Sprint(c.Next(s, tt.status)); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

// TestLiveFits wants no more lines than the terminal has, and none wider than it.
func TestLiveFits(t *testing.T) {
	j := messages.JobStatus{Job: "web"}
	for i := range 100 {
		j.Instances = append(j.Instances, report(fmt.Sprintf("web.%d.0", i), messages.Preparing, &messages.Progress{DoneBytes: 5, TotalBytes: 10}))
	}
	lines := Style{Now: now(), Color: true}.Live(j, time.Minute, 10)
	if len(lines) != 10 || !strings.Contains(lines[9], "and 92 more") {
		t.Errorf("got %d lines, %q", len(lines), lines[len(lines)-1])
	}
	for _, l := range lines {
		if cut := Cut(l, 30); Width(cut) > 30 {
			t.Errorf("got %d columns: %q", Width(cut), cut)
		}
	}
	if all := (Style{}).Live(j, 0, 0); len(all) != 101 {
		t.Errorf("without a bound: got %d lines", len(all))
	}
}

func TestProgressOfAnySize(t *testing.T) {
	for _, p := range []messages.Progress{{}, {DoneBytes: 5}, {DoneBytes: 20, TotalBytes: 10}, {DoneBytes: -5, TotalBytes: 10}, {DoneBytes: 1 << 62, TotalBytes: 1 << 62},
		{DoneBytes: -1 << 63, TotalBytes: 1}, {DoneBytes: 5, TotalBytes: -1}} {
		if got := bar(p); got != "" && len(got) != barWidth+3 {
			t.Errorf("%+v: got %q", p, got)
		}
		if got := pulled(p); got == "" {
			t.Errorf("%+v: nothing", p)
		}
	}
}
