package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/broker"
	"skerry.internal/messages"
)

// Whatever a broker holds or says, the operator's command does not crash or hang, and shows what makes sense among it.
func TestHostileToSkerry(t *testing.T) {
	t.Parallel()
	l := emptyLab(t)
	m := newFakeManager(t)
	l.mqtt = m.addr
	l.buildSkerry()
	publish := func(topic messages.Topic, payload []byte, retain bool) {
		if err := m.broker.Publish(broker.Message{Topic: topic.String(), Payload: payload, QoS: 1, Retain: retain}); err != nil {
			t.Error(err)
		}
	}
	var spoilt []messages.Topic
	for _, kind := range append(between(theManager, theClient), messages.NetStatusTopic) {
		for i, payload := range hostileOn(kind, "") {
			name := fmt.Sprintf("x%d", i)
			topic := messages.Topic{Kind: kind, Request: name, Job: messages.JobName(name), Node: messages.NodeID(name), Event: messages.InstanceState}
			publish(topic, payload, kind != messages.ResultTopic && kind != messages.EventTopic)
			spoilt = append(spoilt, topic)
		}
	}
	// What makes sense among it.
	good := messages.Job{Name: "good", Spec: messages.Spec{Image: "i"}}
	report := messages.InstanceReport{Node: "good", Run: true, InstanceStatus: messages.InstanceStatus{Instance: "good.0.0", Job: "good", State: messages.Running, Healthy: true, Network: messages.Overlay, Address: "10.160.0.2"}}
	publish(messages.Topic{Kind: messages.JobStatusTopic, Job: "good"}, messages.Encode(messages.JobStatus{Job: "good", State: messages.JobRunning, Replicas: 1, Running: 1, Healthy: 1, Spec: &good,
		Instances: []messages.InstanceReport{report}}), true)
	publish(messages.Topic{Kind: messages.NodeStatusTopic, Node: "good"}, messages.Encode(messages.NodeStatus{Node: "good", Kind: messages.Core, State: messages.NodeOnline,
		Overlay: &messages.OverlayStatus{State: messages.OverlayUp, Blocks: []string{"10.160.0.0/26"}}}), true)
	publish(messages.Topic{Kind: messages.ServiceTopic, Job: "good"}, messages.Encode(messages.ServiceEntry{Job: "good", RoundRobin: "10.172.0.0", Closest: "10.172.0.1"}), true)
	publish(messages.Topic{Kind: messages.NetworkTopic}, messages.Encode(messages.NetworkStatus{Network: "10.160.0.0/12", Guests: []messages.Guest{{Guest: "good", PublicKey: somebodysKey}}}), true)

	run := func(during func(), args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		var out strings.Builder
		cmd := exec.CommandContext(ctx, filepath.Join(l.dir, "skerry"), append([]string{"--broker", "tcp://" + m.addr}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		during()
		err := cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); (ok && exit.ExitCode() != 1) || (err != nil && !ok) || ctx.Err() != nil || strings.Contains(out.String(), "goroutine ") {
			t.Errorf("%v: %v: …%s", args, err, out.String()[max(0, out.Len()-2000):])
		}
		return out.String()
	}
	idle := func() {}
	for _, line := range []string{"job list", "job list --json", "job status good", "node list", "node list --json", "node status good", "network status", "network status good", "network services", "network services good",
		"network guest list"} {
		if out := run(idle, strings.Fields(line)...); !strings.Contains(out, "good") {
			t.Errorf("%s does not show what makes sense: …%s", line, out[max(0, len(out)-2000):])
		}
	}
	for _, name := range []string{"x0", "x17", "x40", "x100"} {
		run(idle, "job", "status", name)
		run(idle, "node", "status", name)
		run(idle, "network", "services", name)
	}
	for _, flags := range [][]string{nil, {"--json"}} {
		hostileEvents(t, publish, exec.Command(filepath.Join(l.dir, "skerry"), append(flags, "events", "--broker", "tcp://"+m.addr)...), flags != nil)
	}
	for i, payload := range hostileOn(messages.InformationTopic, "") {
		if i%64 == 1 { // two programs each
			publish(messages.Topic{Kind: messages.InformationTopic, Node: "good"}, payload, true)
			run(idle, "node", "status", "good", "--telemetry")
			out := run(idle, "node", "status", "good", "--telemetry", "--json")
			if i := strings.Index(out, `{"node":"good"`); i < 0 || json.NewDecoder(strings.NewReader(out[i:])).Decode(new(messages.NodeStatus)) != nil {
				t.Errorf("with the telemetry %.100q: …%s", payload, out[max(0, len(out)-2000):])
			}
		}
	}
	answer := func(kind messages.Kind, last any) func() {
		return func() {
			var asked struct {
				RequestID string `json:"request_id"`
			}
			select {
			case request := <-m.requests:
				if err := json.Unmarshal(request, &asked); err != nil {
					t.Error(err)
				}
			case <-time.After(soon / 4):
				t.Errorf("nothing was asked that %T answers", last)
				return
			}
			topic := messages.Topic{Kind: kind, Request: asked.RequestID, Node: "good", Instance: "good.0.0"}
			own := func(payload []byte) []byte {
				return []byte(strings.ReplaceAll(string(payload), `"request_id":"r"`, `"request_id":"`+asked.RequestID+`"`))
			}
			for _, payload := range hostileOn(kind, "") {
				publish(topic, own(payload), false)
			}
			publish(topic, own(messages.Encode(last)), false)
		}
	}
	// Who is to be asked is read from statuses, all of which have to make sense for that; what is answered need not.
	for _, topic := range spoilt {
		publish(topic, nil, true)
	}
	publish(messages.Topic{Kind: messages.ClusterTopic}, messages.Encode(messages.ClusterStatus{Cluster: "lab"}), true)
	run(answer(messages.ResultTopic, messages.Result{RequestID: "r", Command: messages.Delete, Job: "good", Phase: messages.Done}), "job", "delete", "good")
	run(answer(messages.LogsTopic, messages.LogChunk{RequestID: "r", Instance: "good.0.0", N: 1 << 30, Last: true}), "job", "logs", "good.0.0")
	run(answer(messages.TraceAnswerTopic, messages.TraceAnswer{RequestID: "r", Kind: messages.TracePing, N: 1 << 30, Last: true, Name: "good.skerry.internal"}), "network", "ping", "good.0.0", "good")
	for i, payload := range hostileOn(messages.NetworkTopic, "") {
		if i%4 == 0 { // a program each
			publish(messages.Topic{Kind: messages.NetworkTopic}, payload, true)
			run(idle, "network", "guest", "list")
		}
	}
}

// hostileEvents publishes events that make no sense, and one that does, until the command has shown that twice.
func hostileEvents(t *testing.T, publish func(messages.Topic, []byte, bool), cmd *exec.Cmd, programs bool) {
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	topic := messages.Topic{Kind: messages.EventTopic, Event: messages.InstanceState}
	payloads := append(hostileOn(messages.EventTopic, ""), messages.Encode(messages.Event{Kind: messages.InstanceState, Job: "good", Instance: "good.0.0", State: messages.Running, Message: "good.0.0"}))
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		good := 0
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<22)
		for s.Scan() {
			if programs && !json.Valid(s.Bytes()) {
				t.Errorf("no JSON: %.100q", s.Text())
			}
			if strings.Contains(s.Text(), "good.0.0") {
				if good++; good == 2 {
					_ = cmd.Process.Signal(os.Interrupt)
				}
			}
		}
	}()
	for again := true; again; {
		for _, payload := range payloads {
			publish(topic, payload, false)
		}
		select {
		case <-shown:
			again = false
		case <-time.After(50 * time.Millisecond): // it may not have subscribed yet
		}
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 130 || !strings.Contains(problems.String(), "an event cannot be understood") {
		t.Errorf("events: %s: …%s", cmd.ProcessState, problems.String()[max(0, problems.Len()-2000):])
	}
}
