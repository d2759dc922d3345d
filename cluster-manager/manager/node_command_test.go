package manager

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/cluster-manager/internal/register"
	"skerry.internal/messages"
)

// wire is a whole manager with clients on real MQTT.
type wire struct {
	t *testing.T
	m *Manager
}

func newWire(t *testing.T) *wire {
	t.Helper()
	m, err := New(t.Context(), Config{Cluster: "lab", HTTP: "127.0.0.1:0", MQTT: "127.0.0.1:0", Data: t.TempDir(), LostAfter: 30 * time.Second,
		TelemetryInterval: time.Second, Version: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return &wire{t, m}
}

// caller is an MQTT client that keeps what it hears.
type caller struct {
	mqtt.Client
	mu    sync.Mutex // guards heard
	heard map[string][][]byte
}

// dial returns a client, or the error of its CONNECT.
func (w *wire) dial(id, user, password string) (*caller, error) {
	c := &caller{heard: map[string][][]byte{}}
	o := mqtt.NewClientOptions().AddBroker("tcp://" + w.m.MQTTAddr()).SetClientID(id).SetUsername(user).SetPassword(password).
		SetAutoReconnect(false).SetProtocolVersion(4)
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.heard[m.Topic()] = append(c.heard[m.Topic()], m.Payload())
	})
	c.Client = mqtt.NewClient(o)
	token := c.Connect()
	if !token.WaitTimeout(10 * time.Second) {
		w.t.Fatal("CONNECT is not answered")
	}
	w.t.Cleanup(func() { c.Disconnect(0) })
	return c, token.Error()
}

func (w *wire) must(c *caller, err error) *caller {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *wire) done(token mqtt.Token) {
	w.t.Helper()
	if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		w.t.Fatal(token.Error())
	}
}

// of returns what was heard on a topic.
func (c *caller) of(topic string) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.heard[topic])
}

func (w *wire) until(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waited too long for %s", what)
		}
	}
}

// register admits a board with a key, as /init does once it has proved it.
func (w *wire) register(id messages.NodeID, key string) (messages.Welcome, error) {
	return w.m.admit(w.t.Context(), messages.NodeInfo{Name: id, Key: key, Arch: "amd64", CPU: messages.CPUInfo{Cores: 1}, MemoryMB: 100,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}, register.Origin{Proved: true})
}

// board registers and connects a node that says it is there.
func (w *wire) board(id messages.NodeID, key string) (*caller, messages.Welcome) {
	w.t.Helper()
	welcome, err := w.register(id, key)
	if err != nil {
		w.t.Fatal(err)
	}
	c := w.must(w.dial("node-"+string(id), welcome.Username, welcome.Password))
	w.done(c.Subscribe(messages.NodeControlFilter(id), 1, nil))
	w.done(c.Publish(messages.Topic{Kind: messages.PresenceTopic, Node: id}.String(), 1, true, messages.Encode(messages.Presence{Online: true, Epoch: welcome.Epoch, Digest: messages.Digest(nil)})))
	return c, welcome
}

// results publishes a command about a node and returns its Results once the last is there.
func (w *wire) results(c *caller, verb messages.Verb, id messages.NodeID, request string) []messages.Result {
	w.t.Helper()
	topic := messages.Topic{Kind: messages.ResultTopic, Request: request}.String()
	w.done(c.Subscribe(topic, 1, nil))
	w.done(c.Publish(messages.Topic{Kind: messages.NodeCommandTopic, Verb: verb}.String(), 1, false,
		messages.Encode(messages.NodeCommand{Command: verb, Node: id, RequestID: request})))
	var all []messages.Result
	w.until("the last Result of "+request, func() bool {
		all = nil
		for _, payload := range c.of(topic) {
			var r messages.Result
			if err := json.Unmarshal(payload, &r); err != nil {
				w.t.Fatal(err)
			}
			all = append(all, r)
		}
		return len(all) > 0 && all[len(all)-1].Last()
	})
	return all
}

func (w *wire) wantDone(c *caller, verb messages.Verb, id messages.NodeID, request string) {
	w.t.Helper()
	all := w.results(c, verb, id, request)
	if len(all) != 2 || all[0].Phase != messages.Accepted || all[1].Phase != messages.Done || all[1].Node != id || all[1].Command != verb {
		w.t.Fatalf("%s: got %+v, want accepted and done", verb, all)
	}
}

func TestNodeCommandsOverMQTT(t *testing.T) {
	w := newWire(t)
	old, welcome := w.board("board-1", "key 1")
	operator := w.must(w.dial("op", "", ""))
	w.done(operator.Subscribe("nodes/board-1/+", 1, nil))
	count := 1
	deploy := messages.Encode(messages.Command{Command: messages.Deploy, Job: messages.Job{Name: "web", Replicas: &count, Spec: messages.Spec{Image: "x"}}, RequestID: "d"})
	w.until("a placement", func() bool {
		w.done(operator.Publish("control/deploy", 1, false, deploy))
		return len(old.of("nodes/board-1/control/deploy")) > 0
	})
	if _, err := w.register("board-1", "key 2"); err == nil {
		t.Fatal("another key is admitted under a name that is taken")
	}
	if r := w.results(operator, messages.Remove, "board-1", "n0"); r[0].Phase != messages.Refused || r[0].Code != messages.NotAllowed {
		t.Errorf("remove of a node that is online: got %+v", r)
	}

	w.wantDone(operator, messages.Replace, "board-1", "n1")
	w.until("the end of the old board's session", func() bool { return !old.IsConnected() })
	if _, err := w.dial("node-board-1", welcome.Username, welcome.Password); err == nil {
		t.Error("the old password is still good")
	}
	replaced, fresh := w.board("board-1", "key 2")
	if fresh.Epoch != welcome.Epoch+1 {
		t.Errorf("got epoch %d, want %d", fresh.Epoch, welcome.Epoch+1)
	}
	var s messages.Sync
	w.until("the new board's sync", func() bool { return len(replaced.of("nodes/board-1/control/sync")) > 0 })
	if err := messages.DecodeFromManager(replaced.of("nodes/board-1/control/sync")[0], &s); err != nil || len(s.Assignments) != 1 || s.Epoch != fresh.Epoch ||
		s.Assignments[0].Instance != "web.0.0" || !s.Assignments[0].Run {
		t.Errorf("got %+v, %v", s, err)
	}

	replaced.Disconnect(0)
	w.until("its end", func() bool {
		return w.results(operator, messages.Remove, "board-1", "n2-"+time.Now().Format("150405.000"))[0].Phase == messages.Accepted
	})
	late := w.must(w.dial("late", "", ""))
	w.done(late.SubscribeMultiple(map[string]byte{"nodes/#": 1, "cluster/status": 1}, nil))
	w.until("what is retained", func() bool { return len(late.of("cluster/status")) > 0 })
	for _, topic := range []string{"nodes/board-1/status", "nodes/board-1/presence"} {
		if left := late.of(topic); len(left) > 0 {
			t.Errorf("%s is still retained: %s", topic, left[0])
		}
	}
}

func TestNodeCommandRights(t *testing.T) {
	w := newWire(t)
	node, _ := w.board("board-1", "key 1")
	viewer := w.must(w.dial("look", viewerName, ""))
	if r := w.results(viewer, messages.Replace, "board-1", "v1"); len(r) != 1 || r[0].Code != messages.NotAllowed || r[0].Node != "board-1" {
		t.Errorf("a viewer: got %+v, want not_allowed", r)
	}
	operator := w.must(w.dial("op", "", ""))
	w.done(operator.Subscribe("#", 1, nil))
	// MQTT 3.1.1 has no way to refuse a publish: it is acknowledged or the session is ended, and nothing comes of it.
	node.Publish("control/node/replace", 1, false, messages.Encode(messages.NodeCommand{Command: messages.Replace, Node: "board-1", RequestID: "x1"})).
		WaitTimeout(5 * time.Second)
	r := w.results(operator, messages.Replace, "board-9", "o1")
	if len(r) != 1 || r[0].Code != messages.UnknownNode {
		t.Errorf("got %+v, want unknown_node", r)
	}
	if len(operator.of("control/results/x1")) > 0 {
		t.Error("a node's command was answered")
	}
	if len(operator.of("control/node/replace")) > 0 {
		t.Error("commands are passed on to who subscribes to all")
	}
	if _, err := w.register("board-1", "key 2"); err == nil {
		t.Error("the name was given away by a viewer or a node")
	}
}
