package manager

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/cluster-manager/internal/register"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

const patience = 20 * time.Second // for what happens at once on a machine that has time

// served is a Manager that runs, with sockets on free ports.
type served struct {
	*Manager
	t   *testing.T
	end func() error // ends it and returns what Run returned; may be called again
}

func testConfig(t *testing.T) Config {
	return Config{Cluster: "lab", HTTP: "127.0.0.1:0", MQTT: "127.0.0.1:0", Data: t.TempDir(), LostAfter: 30 * time.Second, TelemetryInterval: 5 * time.Second}
}

func serveWith(t *testing.T, s store.Store) *served {
	t.Helper()
	m, err := newManager(t.Context(), testConfig(t), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return run(t, m)
}

// run runs m until the test ends.
func run(t *testing.T, m *Manager) *served {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	v := &served{Manager: m, t: t, end: sync.OnceValue(func() error { cancel(); return <-ended })}
	t.Cleanup(func() {
		if err := v.end(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return v
}

// client is a client of MQTT 3.1.1 with what it was sent.
type client struct {
	mqtt.Client
	t    *testing.T
	mu   sync.Mutex // guards got and news
	got  []mqtt.Message
	news chan struct{} // closed at the next message
}

func (v *served) connect(id, user, password string, filters ...string) *client {
	v.t.Helper()
	c := &client{t: v.t, news: make(chan struct{})}
	o := mqtt.NewClientOptions().AddBroker("tcp://" + v.MQTTAddr()).SetClientID(id).SetUsername(user).SetPassword(password).
		SetAutoReconnect(false).SetConnectTimeout(patience).SetDefaultPublishHandler(c.take)
	c.Client = mqtt.NewClient(o)
	c.wait(c.Connect())
	v.t.Cleanup(func() { c.Disconnect(0) })
	for _, f := range filters {
		c.wait(c.Subscribe(f, 1, nil))
	}
	return c
}

func (c *client) wait(token mqtt.Token) {
	c.t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		c.t.Fatalf("not answered: %v", token.Error())
	}
}

func (c *client) take(_ mqtt.Client, m mqtt.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, m)
	close(c.news)
	c.news = make(chan struct{})
}

// await returns the first message for which ok is true, of all since the client has connected.
func (c *client) await(what string, ok func(mqtt.Message) bool) mqtt.Message {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		i, news := slices.IndexFunc(c.got, ok), c.news
		var m mqtt.Message
		if i >= 0 {
			m = c.got[i]
		}
		c.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-news:
		case <-deadline:
			c.t.Fatalf("never came: %s", what)
		}
	}
}

// all returns what came.
func (c *client) all() []mqtt.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// topics returns the topics of all that came.
func (c *client) topics() []string {
	var topics []string
	for _, m := range c.all() {
		topics = append(topics, m.Topic())
	}
	return topics
}

// result awaits a Result of the request.
func (c *client) result(id string, ok func(messages.Result) bool) messages.Result {
	c.t.Helper()
	var r messages.Result
	c.await("Result of "+id, func(m mqtt.Message) bool {
		return m.Topic() == "control/results/"+id && json.Unmarshal(m.Payload(), &r) == nil && ok(r)
	})
	return r
}

func anyResult(messages.Result) bool { return true }

// join registers a node as /init does, and connects it.
func (v *served) join(id messages.NodeID, filters ...string) *client {
	v.t.Helper()
	w, err := v.admit(v.t.Context(), messages.NodeInfo{Name: id, Key: "key of " + string(id), CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}, register.Origin{Proved: true})
	if err != nil {
		v.t.Fatal(err)
	}
	c := v.connect("node-"+string(id), w.Username, w.Password, append(filters, messages.NodeControlFilter(id))...)
	c.send(messages.Topic{Kind: messages.PresenceTopic, Node: id}.String(), messages.Presence{Online: true, Epoch: w.Epoch, Digest: messages.Digest(nil)}, true)
	return c
}

func (c *client) send(topic string, payload any, retain bool) {
	c.t.Helper()
	c.wait(c.Publish(topic, 1, retain, messages.Encode(payload)))
}

func deployment(name messages.JobName, request string) messages.Command {
	return messages.Command{Command: messages.Deploy, Job: messages.Job{Name: name, Spec: messages.Spec{Image: "x"}}, RequestID: request}
}

// gate is a store whose commits wait while it is shut.
type gate struct {
	store.Memory
	mu      sync.Mutex // guards what follows
	shut    chan struct{}
	entered chan struct{}
}

func (g *gate) close() (entered <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.entered = make(chan struct{}), make(chan struct{})
	return g.entered, sync.OnceFunc(func() { close(g.shut) })
}

func (g *gate) Commit(ctx context.Context, changes []store.Change) error {
	g.mu.Lock()
	shut, entered := g.shut, g.entered
	g.entered = nil
	g.mu.Unlock()
	if entered != nil {
		close(entered)
	}
	if shut != nil {
		<-shut
	}
	return g.Memory.Commit(ctx, changes)
}

// raw speaks MQTT 5 in bytes: what paho does not know, and what nobody should send.
type raw struct {
	net.Conn
	t *testing.T
}

func (v *served) dial() *raw {
	v.t.Helper()
	conn, err := net.Dial("tcp", v.MQTTAddr())
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		v.t.Fatal(err)
	}
	return &raw{conn, v.t}
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func varint(n int) []byte {
	var b []byte
	for {
		digit := byte(n & 0x7f)
		if n >>= 7; n == 0 {
			return append(b, digit)
		}
		b = append(b, digit|0x80)
	}
}

func (r *raw) packet(head byte, parts ...[]byte) {
	r.t.Helper()
	body := slices.Concat(parts...)
	if _, err := r.Write(slices.Concat([]byte{head}, varint(len(body)), body)); err != nil {
		r.t.Fatal(err)
	}
}

// hello connects with MQTT 5 under the client id.
func (r *raw) hello(id, user string) {
	r.t.Helper()
	r.sayHello(id, user)
	r.admitted()
}

func (r *raw) sayHello(id, user string) {
	r.t.Helper()
	r.packet(0x10, text("MQTT"), []byte{5, 0x82, 0, 60, 0}, text(id), text(user))
}

// admitted reads the CONNACK.
func (r *raw) admitted() {
	r.t.Helper()
	if kind, body := r.read(); kind != 0x20 || body[1] != 0 {
		r.t.Fatalf("CONNACK % x % x", kind, body)
	}
}

// read returns the next packet.
func (r *raw) read() (head byte, body []byte) {
	r.t.Helper()
	b := make([]byte, 1)
	get := func() byte {
		if _, err := io.ReadFull(r, b); err != nil {
			r.t.Fatal(err)
		}
		return b[0]
	}
	head = get()
	n, shift := 0, 0
	for {
		d := get()
		n |= int(d&0x7f) << shift
		if shift += 7; d&0x80 == 0 {
			break
		}
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		r.t.Fatal(err)
	}
	return head, body
}

// publish sends a PUBLISH of QoS 1 with properties.
func (r *raw) publish(id uint16, topic string, props, payload []byte) {
	r.t.Helper()
	r.packet(0x32, text(topic), binary.BigEndian.AppendUint16(nil, id), varint(len(props)), props, payload)
}
