package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/gorilla/websocket"

	"skerry.internal/messages"
)

// board is a simulated node: it registers over the wire, and answers its assignments as the image of the job says.
type board struct {
	t       *testing.T
	name    messages.NodeID
	key     ed25519.PrivateKey
	welcome messages.Welcome
	client  mqtt.Client
	orders  chan mqtt.Message
	tunnel  string // its public key of WireGuard; "": it has none

	step chan struct{} // each value lets an image "gated" go one step further; closed: all of them

	mu   sync.Mutex // guards what follows
	seq  map[messages.InstanceID]uint64
	held map[messages.InstanceID]messages.Assignment
}

// register goes through /init by hand: Engine.IO 4 over WebSocket, Socket.IO namespace /init.
func (b *board) register(httpAddr string) {
	b.t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+httpAddr+"/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, p, err := c.ReadMessage()
		if err != nil {
			b.t.Fatalf("%s: registration: %v", b.name, err)
		}
		switch {
		case p[0] == '0':
			c.WriteMessage(websocket.TextMessage, []byte("40/init,"))
		case p[0] == '2':
			c.WriteMessage(websocket.TextMessage, []byte("3"))
		case bytes.HasPrefix(p, []byte("42/init,")):
			if b.registered(c, p[len("42/init,"):]) {
				return
			}
		}
	}
}

func (b *board) registered(c *websocket.Conn, event []byte) bool {
	var parts []json.RawMessage
	if err := json.Unmarshal(event, &parts); err != nil || len(parts) != 2 {
		b.t.Fatalf("%s: event %s: %v", b.name, event, err)
	}
	switch name := string(bytes.Trim(parts[0], `"`)); name {
	case messages.HelloEvent:
		var h messages.Hello
		if err := messages.DecodeFromManager(parts[1], &h); err != nil {
			b.t.Fatal(err)
		}
		info := messages.NodeInfo{Name: b.name, Key: base64.StdEncoding.EncodeToString(b.key.Public().(ed25519.PublicKey)), Proof: messages.Prove(b.key, h),
			Protocol: messages.Protocol, Version: "test", Arch: "amd64", OS: "linux", CPU: messages.CPUInfo{Model: "simulated", Cores: 4}, MemoryMB: 1024,
			Technologies: []messages.TechnologyInfo{{Name: "docker", Version: "0"}}, Labels: map[string]string{"site": "roof"},
			Sensors: []messages.SensorInfo{{Kind: "w1", Path: "/sys/bus/w1/devices/28-0", Name: "cellar"}}}
		if b.tunnel != "" {
			info.Overlay = &messages.OverlayInfo{PublicKey: b.tunnel, Endpoints: []string{"192.0.2.1:51820"}}
		}
		c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `42/init,["cs1",%s]`, messages.Encode(info)))
		return false
	case messages.WelcomeEvent:
		if err := messages.DecodeFromManager(parts[1], &b.welcome); err != nil {
			b.t.Fatal(err)
		}
		return true
	default:
		b.t.Fatalf("%s: %s %s", b.name, name, parts[1])
		return false
	}
}

// connect takes up the MQTT session of the node.
func (b *board) connect(mqttAddr string) {
	b.t.Helper()
	presence := messages.Topic{Kind: messages.PresenceTopic, Node: b.name}.String()
	o := mqtt.NewClientOptions().AddBroker("tcp://" + mqttAddr).SetClientID("node-" + string(b.name)).SetUsername(b.welcome.Username)
	o.SetPassword(b.welcome.Password).SetAutoReconnect(false).SetProtocolVersion(4)
	o.SetBinaryWill(presence, messages.Encode(messages.Presence{}), 1, true)
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { b.orders <- m })
	b.client = mqtt.NewClient(o)
	b.done(b.client.Connect())
	b.done(b.client.Subscribe(messages.NodeControlFilter(b.name), 1, nil))
	b.mu.Lock()
	p := messages.Presence{Online: true, BootID: "1", Epoch: b.welcome.Epoch, Digest: messages.Digest(slices.Collect(maps.Values(b.held)))}
	b.mu.Unlock()
	b.done(b.client.Publish(presence, 1, true, messages.Encode(p)))
}

func (b *board) done(token mqtt.Token) {
	b.t.Helper()
	if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		b.t.Fatalf("%s: %v", b.name, token.Error())
	}
}

// vanish cuts the connection, as a power cut does.
func (b *board) vanish() { b.client.Disconnect(0) }

// newBoard starts a node that lasts as long as the test.
func newBoard(t *testing.T, c *testCluster, name messages.NodeID) *board {
	return newTunnelBoard(t, c, name, "")
}

// newTunnelBoard starts a node that is part of the network.
func newTunnelBoard(t *testing.T, c *testCluster, name messages.NodeID, tunnel string) *board {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &board{t: t, name: name, key: key, tunnel: tunnel, orders: make(chan mqtt.Message, 1000), step: make(chan struct{}),
		seq: map[messages.InstanceID]uint64{}, held: map[messages.InstanceID]messages.Assignment{}}
	b.register(c.m.HTTPAddr())
	b.connect(c.m.MQTTAddr())
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case m := <-b.orders:
				b.obey(m, ended, &wg)
			case <-ended:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(ended)
		wg.Wait()
		b.client.Disconnect(0)
	})
	c.waitNode(t, name, messages.NodeOnline)
	return b
}

func (b *board) obey(m mqtt.Message, ended chan struct{}, wg *sync.WaitGroup) {
	topic, err := messages.ParseTopic(m.Topic())
	if err != nil {
		return
	}
	switch topic.Kind {
	case messages.NodeControlTopic:
		var a messages.Assignment
		if messages.DecodeFromManager(m.Payload(), &a) == nil {
			wg.Go(func() { b.apply(a, ended) })
		}
	case messages.SyncTopic:
		var s messages.Sync
		if messages.DecodeFromManager(m.Payload(), &s) == nil {
			for _, a := range s.Assignments {
				wg.Go(func() { b.apply(a, ended) })
			}
		}
	case messages.TraceRequestTopic:
		var r messages.TraceRequest
		if messages.Decode(m.Payload(), &r) == nil {
			b.trace(r)
		}
	case messages.LogsRequestTopic:
		var r messages.LogsRequest
		if messages.Decode(m.Payload(), &r) == nil {
			wg.Go(func() { b.logs(r, ended) })
		}
	}
}

// apply makes one assignment true.
func (b *board) apply(a messages.Assignment, ended chan struct{}) {
	b.mu.Lock()
	old, known := b.held[a.Instance]
	if known && !a.Newer(&old) {
		b.mu.Unlock()
		return
	}
	b.held[a.Instance] = a
	b.mu.Unlock()
	if !a.Run {
		b.say(a, messages.InstanceStatus{State: messages.Stopped})
		return
	}
	b.live(a, ended)
}

// live plays the life that the image stands for.
func (b *board) live(a messages.Assignment, ended chan struct{}) {
	switch a.Spec.Image {
	case "silent":
		return
	case "missing":
		b.say(a, messages.InstanceStatus{State: messages.Preparing})
		b.say(a, messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageNotFound, Reason: "the registry has no image missing"})
		return
	case "crash":
		code := 3
		for attempt := range 6 {
			b.say(a, messages.InstanceStatus{State: messages.Running, Attempt: attempt})
			b.say(a, messages.InstanceStatus{State: messages.Pending, Attempt: attempt + 1, ExitCode: &code, Code: messages.Exited, Reason: "exited with code 3"})
		}
		b.say(a, messages.InstanceStatus{State: messages.FailedState, Attempt: 6, ExitCode: &code, Code: messages.Exited, Reason: "exited with code 3 too often"})
		return
	case "gated":
		for done := range 5 {
			b.say(a, messages.InstanceStatus{State: messages.Preparing, Progress: &messages.Progress{DoneBytes: int64(done) * 10e6, TotalBytes: 40e6}})
			select {
			case <-b.step:
			case <-ended:
				return
			}
		}
	default:
		b.say(a, messages.InstanceStatus{State: messages.Preparing})
	}
	b.say(a, messages.InstanceStatus{State: messages.Starting})
	s := messages.InstanceStatus{State: messages.Running, Healthy: true, Address: "172.17.0.2", StartedAt: messages.At(time.Now()), Ports: a.Spec.Ports}
	if b.tunnel != "" {
		s.Address, s.Network = "10.160.0.77", messages.Overlay
	}
	b.say(a, s)
}

// say reports the status of an instance, unless it has been told otherwise meanwhile.
func (b *board) say(a messages.Assignment, s messages.InstanceStatus) {
	b.mu.Lock()
	if held := b.held[a.Instance]; held.Newer(&a) {
		b.mu.Unlock()
		return
	}
	b.seq[a.Instance]++
	s.Seq = b.seq[a.Instance]
	b.mu.Unlock()
	s.Instance, s.Rev, s.At = a.Instance, a.Rev, messages.At(time.Now())
	s.Job, _, s.Generation, _ = a.Instance.Split()
	b.client.Publish(messages.Topic{Kind: messages.NodeJobTopic, Node: b.name}.String(), 1, false, messages.Encode(s)).WaitTimeout(10 * time.Second)
}

// logs answers with three lines, and goes on for each step where it is to follow.
func (b *board) logs(r messages.LogsRequest, ended chan struct{}) {
	n := uint64(0)
	send := func(stream, text string, last bool) {
		c := messages.LogChunk{RequestID: r.RequestID, Instance: r.Instance, N: n, Stream: stream, Text: text, Last: last}
		n++
		b.client.Publish(messages.Topic{Kind: messages.LogsTopic, Node: b.name, Instance: r.Instance}.String(), 0, false, messages.Encode(c)).WaitTimeout(10 * time.Second)
	}
	send("stdout", "one\ntwo\n", false)
	send("stderr", "oops\n", !r.Follow)
	if !r.Follow {
		return
	}
	for i := 0; ; i++ {
		select {
		case _, open := <-b.step:
			if !open {
				send("", "", true)
				return
			}
			send("stdout", fmt.Sprintf("step %d\n", i), false)
		case <-ended:
			return
		}
	}
}
