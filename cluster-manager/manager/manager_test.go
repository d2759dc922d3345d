package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// A command is acknowledged once it is on disk, and answered then.
func TestPubackAfterCommit(t *testing.T) {
	g := &gate{}
	v := serveWith(t, g)
	v.join("a")
	c := v.connect("c", "", "", "control/results/+")
	entered, open := g.close()
	defer open()
	token := c.Publish("control/deploy", 1, false, messages.Encode(deployment("web", "r1")))
	<-entered
	// The other client's command waits for the next commit; what needs none goes on.
	other := v.connect("viewer", viewerName, "", "cluster/status")
	other.await("cluster status", func(m mqtt.Message) bool { return m.Topic() == "cluster/status" })
	select {
	case <-token.Done():
		t.Error("acknowledged before the commit")
	default:
	}
	if topics := c.topics(); len(topics) > 0 {
		t.Errorf("answered before the commit: %v", topics)
	}
	open()
	c.wait(token)
	if r := c.result("r1", anyResult); r.Phase != messages.Accepted {
		t.Errorf("got %+v", r)
	}
}

// While the disk refuses, who can be told is told, and who cannot gets no acknowledgement.
func TestStoreFails(t *testing.T) {
	s := &store.Memory{}
	var broken atomic.Bool
	s.Fail = func([]store.Change) error {
		if broken.Load() {
			return errors.New("no space left on device")
		}
		return nil
	}
	v := serveWith(t, s)
	v.join("a")
	c := v.connect("c", "", "", "control/results/+")
	broken.Store(true)
	c.send("control/deploy", deployment("web", "r1"), false)
	if r := c.result("r1", anyResult); r.Phase != messages.Refused || r.Code != messages.Unavailable {
		t.Errorf("got %+v", r)
	}
	silent := v.connect("silent", "", "")
	token := silent.Publish("control/deploy", 1, false, messages.Encode(deployment("web", "")))
	if token.WaitTimeout(patience) && token.Error() == nil && silent.IsConnectionOpen() {
		t.Error("acknowledged though it is not on disk")
	}
	broken.Store(false)
	deadline := time.Now().Add(patience)
	for i := 2; ; i++ {
		id := fmt.Sprint("r", i)
		c.send("control/deploy", deployment("web", id), false)
		if c.result(id, anyResult).Phase == messages.Accepted {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("never taken again")
		}
	}
}

// A job's life over the wire: status retained, assignment to the node, last Result, and nothing retained once it is deleted.
func TestJobOverTheWire(t *testing.T) {
	v := serveWith(t, &store.Memory{})
	node := v.join("a")
	c := v.connect("c", "", "", "control/results/+", "jobs/+/status")
	c.send("control/deploy", deployment("web", "r1"), false)
	var a messages.Assignment
	node.await("assignment", func(m mqtt.Message) bool {
		return m.Topic() == "nodes/a/control/deploy" && messages.DecodeFromManager(m.Payload(), &a) == nil
	})
	status := messages.InstanceStatus{Instance: a.Instance, Job: "web", Rev: a.Rev, Seq: 1, State: messages.Running, Healthy: true}
	node.send("nodes/a/job", status, false)
	if r := c.result("r1", func(r messages.Result) bool { return r.Last() }); r.Phase != messages.Done {
		t.Errorf("got %+v", r)
	}
	late := v.connect("late", viewerName, "", "jobs/+/status", "nodes/+/status", "cluster/status")
	for _, topic := range []string{"jobs/web/status", "nodes/a/status", "cluster/status"} {
		if m := late.await(topic, func(m mqtt.Message) bool { return m.Topic() == topic }); !m.Retained() {
			t.Errorf("%s is not retained", topic)
		}
	}
	c.send("control/delete", messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}, RequestID: "r2"}, false)
	node.await("delete", func(m mqtt.Message) bool {
		return m.Topic() == "nodes/a/control/delete" && messages.DecodeFromManager(m.Payload(), &a) == nil
	})
	status.Rev, status.Seq, status.State, status.Healthy = a.Rev, 2, messages.Stopped, false
	node.send("nodes/a/job", status, false)
	if r := c.result("r2", func(r messages.Result) bool { return r.Last() }); r.Phase != messages.Done {
		t.Errorf("got %+v", r)
	}
	after := v.connect("after", "", "", "jobs/+/status", "cluster/status")
	after.await("cluster status", func(m mqtt.Message) bool { return m.Topic() == "cluster/status" })
	if slices.Contains(after.topics(), "jobs/web/status") {
		t.Error("a deleted job's status is still retained")
	}
}

// A viewer's command is answered and does nothing; a node can neither command nor speak or hear for another.
func TestRightsOverTheWire(t *testing.T) {
	v := serveWith(t, &store.Memory{})
	a := v.join("a")
	ab := v.join("ab")
	viewer := v.connect("viewer", viewerName, "", "#")
	viewer.send("control/deploy", deployment("web", "r1"), false)
	if r := viewer.result("r1", anyResult); r.Code != messages.NotAllowed {
		t.Errorf("got %+v", r)
	}
	refused := a.Subscribe("nodes/ab/#", 1, nil)
	a.wait(refused)
	if code := refused.(*mqtt.SubscribeToken).Result()["nodes/ab/#"]; code != 0x80 {
		t.Errorf("node a subscribed to what is ab's: code %#x", code)
	}
	a.send("nodes/ab/presence", messages.Presence{}, false)
	a.send("control/deploy", deployment("web", "r2"), false)
	a.send("nodes/a/control/deploy", messages.Assignment{Instance: "web.0.0", Rev: 99, Epoch: 99}, false)
	operator := v.connect("operator", "", "", "#")
	operator.send("nodes/ab/control/deploy", messages.Assignment{Instance: "web.0.0", Rev: 99, Epoch: 99}, false)
	operator.send("jobs/web/status", messages.JobStatus{Job: "web"}, true)
	operator.send("control/deploy", deployment("web", "r3"), true) // retained
	both := deployment("web", "r4")
	two := 2
	both.Job.Replicas = &two
	operator.send("control/deploy", both, false)
	operator.result("r4", anyResult)
	for id, c := range map[string]*client{"a": a, "ab": ab} {
		c.await("assignment of "+id, func(m mqtt.Message) bool { return strings.HasSuffix(m.Topic(), "/control/deploy") })
		for _, m := range c.all() {
			if !strings.HasPrefix(m.Topic(), "nodes/"+id+"/") || bytes.Contains(m.Payload(), []byte(`"epoch":99`)) {
				t.Errorf("node %s heard %s %s", id, m.Topic(), m.Payload())
			}
		}
	}
	for who, c := range map[string]*client{"viewer": viewer, "operator": operator} {
		for _, topic := range c.topics() {
			if strings.HasPrefix(topic, "control/") && topic != "control/results/r1" && topic != "control/results/r4" || strings.Contains(topic, "/control/") {
				t.Errorf("the %s heard %s", who, topic)
			}
		}
	}
	if slices.Contains(viewer.topics(), "control/results/r4") {
		t.Error("the viewer heard the operator's Result")
	}
	viewer.send("control/delete", deployment("web", "r4"), false) // its refusal would be taken for the operator's
	viewer.send("control/deploy", deployment("web", "r5"), false)
	viewer.result("r5", anyResult)
	for _, m := range operator.all() {
		if m.Topic() == "control/results/r4" && bytes.Contains(m.Payload(), []byte(messages.NotAllowed)) {
			t.Errorf("the operator is told %s", m.Payload())
		}
	}
}

func TestStrangersAreNotAdmitted(t *testing.T) {
	v := serveWith(t, &store.Memory{})
	v.join("a")
	for _, c := range []struct{ id, user, password string }{
		{"node-a", "a", "guess"}, {"node-a", "a", ""}, {"node-a", "", ""}, {"node-b", "b", ""}, {"node-", "", ""}, {"node-a", "b", "x"},
	} {
		o := mqtt.NewClientOptions().AddBroker("tcp://" + v.MQTTAddr()).SetClientID(c.id).SetUsername(c.user).SetPassword(c.password).SetAutoReconnect(false)
		token := mqtt.NewClient(o).Connect()
		if token.WaitTimeout(patience) && token.Error() == nil {
			t.Errorf("%+v was admitted", c)
		}
	}
}

// An MQTT 5 client gets its Results at its Response Topic with its correlation data, and cannot have the manager speak to nodes.
func TestResponseTopicOverTheWire(t *testing.T) {
	v := serveWith(t, &store.Memory{})
	node := v.join("a")
	r := v.dial()
	r.hello("five", "alice")
	r.packet(0x82, []byte{0, 1, 0}, text("alice/replies"), []byte{1})
	if head, _ := r.read(); head != 0x90 {
		t.Fatalf("SUBACK: %x", head)
	}
	other := v.connect("other", "bob", "", "alice/replies", "cluster/status")
	props := slices.Concat([]byte{8}, text("alice/replies"), []byte{9}, text("corr"))
	r.publish(7, "control/deploy", props, messages.Encode(deployment("web", "")))
	var acked, answered bool
	for !acked || !answered {
		switch head, body := r.read(); head & 0xf0 {
		case 0x40:
			acked = true
		case 0x30:
			answered = bytes.Contains(body, []byte("corr")) && bytes.Contains(body, []byte(`"phase":"accepted"`))
		}
	}
	for _, topic := range []string{"nodes/a/control/deploy", "nodes/a/control/sync", "$SYS/x"} {
		r.publish(8, "control/delete", slices.Concat([]byte{8}, text(topic)), messages.Encode(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "none"}}))
		for {
			head, body := r.read()
			if head&0xf0 == 0x40 {
				if len(body) < 3 || body[2] < 0x80 {
					t.Errorf("response topic %s: PUBACK % x, want a refusal", topic, body)
				}
				break
			}
		}
	}
	node.await("the assignment", func(m mqtt.Message) bool { return m.Topic() == "nodes/a/control/deploy" })
	if topics := other.topics(); slices.Contains(topics, "alice/replies") {
		t.Errorf("bob heard alice's Result")
	}
	for _, m := range node.topics() {
		if m == "nodes/a/control/sync" {
			t.Error("the manager was made to speak to a node")
		}
	}
}

// Whatever is published on whatever topic, the manager goes on.
func TestHostilePayloads(t *testing.T) {
	v := serveWith(t, &store.Memory{})
	node := v.join("a")
	c := v.connect("c", "", "", "control/results/+", "cluster/status")
	c.await("cluster status", func(mqtt.Message) bool { return true })
	payloads := [][]byte{nil, []byte("{"), []byte("null"), []byte("[]"), []byte("{}"), []byte("\xff\xfe"), bytes.Repeat([]byte("["), 200_000),
		bytes.Repeat([]byte(" "), messages.MaxPayload+1), []byte(`{"command":"deploy","job":{"name":"web","image":"x","replicas":-1}}`),
		[]byte(`{"command":"deploy","job":{"name":"../web","image":"x"}}`), []byte(`{"instance":"web.0.0","job":"web","seq":-1,"state":"running"}`),
		[]byte(`{"instance":"ghost.0.0","job":"ghost","rev":18446744073709551615,"seq":18446744073709551615,"state":"running"}`),
		[]byte(`{"online":true,"epoch":18446744073709551615,"rev":18446744073709551615}`), []byte(`{"online":"yes"}`)}
	for _, payload := range payloads {
		for _, topic := range []string{"control/deploy", "control/delete", "control/move", "control/replicate", "control/nonsense", "jobs/web/status",
			"nodes/a/control/logs", "cluster/status", "x", strings.Repeat("x/", 60)} {
			c.wait(c.Publish(topic, 1, false, payload))
		}
		for _, topic := range []string{"nodes/a/presence", "nodes/a/job", "nodes/a/information", "nodes/a/net/endpoints", "nodes/a/logs/web.0.0", "nodes/a/nonsense"} {
			node.wait(node.Publish(topic, 1, false, payload))
		}
	}
	node.send("nodes/a/presence", messages.Presence{Online: true}, true)
	c.send("control/deploy", deployment("web", "r1"), false)
	if r := c.result("r1", anyResult); r.Phase != messages.Accepted {
		t.Errorf("after all that: %+v", r)
	}
	node.await("assignment", func(m mqtt.Message) bool {
		return m.Topic() == "nodes/a/control/deploy" && bytes.Contains(m.Payload(), []byte("web.0.0"))
	})
}

// A New that fails gives everything back: ports and directory can be taken at once.
func TestNewReleases(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"http": {func(c *Config) { c.HTTP = taken.Addr().String() }, "--http"},
		"mqtt": {func(c *Config) { c.MQTT = taken.Addr().String() }, "--mqtt"},
		"data": {func(c *Config) {
			c.Data = filepath.Join(c.Data, "file")
			if err := os.WriteFile(c.Data, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "data directory"},
		"config": {func(c *Config) { c.Cluster = "" }, "--cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			free, err := net.Listen("tcp", "127.53.0.1:0") // nobody's connections come from there
			if err != nil {
				t.Fatal(err)
			}
			cfg.HTTP = free.Addr().String()
			free.Close()
			bad := cfg
			c.change(&bad)
			before := runtime.NumGoroutine()
			if _, err := New(t.Context(), bad, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want it to name %s", err, c.says)
			}
			awaitGoroutines(t, before)
			m, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatalf("afterwards: %v", err)
			}
			if err := m.release(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("data in use", func(t *testing.T) {
		cfg := testConfig(t)
		m, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
		if err := m.release(); err != nil {
			t.Error(err)
		}
	})
}

// awaitGoroutines waits until no more than before are left.
func awaitGoroutines(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// Run ends with clients connected and requests under way, and leaves no goroutine.
func TestRunEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	v := serveWith(t, &store.Memory{})
	node := v.join("a")
	c := v.connect("c", "", "", "#")
	half, err := net.Dial("tcp", v.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	fmt.Fprint(half, "GET /healthz HTTP/1.1\r\n")
	r := v.dial()
	r.hello("five", "")
	resp, err := http.Get("http://" + v.HTTPAddr() + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v %v", resp, err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err := v.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := net.Dial("tcp", v.MQTTAddr()); err == nil {
		t.Error("the broker still listens")
	}
	node.Disconnect(0)
	c.Disconnect(0)
	r.Close()
	awaitGoroutines(t, before)
}

// unreadable is a store that fails for good.
type unreadable struct {
	store.Memory
	broken atomic.Bool
}

func (u *unreadable) Load(ctx context.Context, each func(store.Bucket, string, []byte) error) error {
	if u.broken.Load() {
		return os.ErrInvalid
	}
	return u.Memory.Load(ctx, each)
}

// A store that cannot be read any more ends the manager, whoever waits for it.
func TestRunEndsWithStore(t *testing.T) {
	s := &unreadable{}
	s.Fail = func([]store.Change) error {
		if s.broken.Load() {
			return os.ErrInvalid
		}
		return nil
	}
	m, err := newManager(t.Context(), testConfig(t), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(t.Context()) }()
	v := &served{Manager: m, t: t}
	var clients []*client
	for i := range 8 {
		clients = append(clients, v.connect(fmt.Sprint("c", i), "", ""))
	}
	s.broken.Store(true)
	for i, c := range clients {
		for j := range 20 {
			c.Publish("control/deploy", 1, false, messages.Encode(deployment("web", fmt.Sprint("r", i, "-", j))))
		}
	}
	// No node has registered, so that a deploy is refused and writes nothing: a registration does.
	go func() { _, _ = m.loop.Register(context.Background(), messages.NodeInfo{Name: "a", Key: "k"}, true) }()
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrInvalid) {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run does not end")
	}
}

// The log is JSON lines with the addresses that were taken.
func TestListeningLine(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig(t)
	m, err := New(t.Context(), cfg, slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var line struct{ Msg, HTTP, MQTT, Cluster string }
	if err := json.NewDecoder(&log).Decode(&line); err != nil || line.Msg != "listening" || line.HTTP != m.HTTPAddr() || line.MQTT != m.MQTTAddr() || line.Cluster != "lab" {
		t.Errorf("got %+v, %v", line, err)
	}
}

// counted is a listener of the owner's own, of connections that are not TCP's.
type counted struct {
	net.Listener
	conns *atomic.Int32
}

func (l counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.conns.Add(1)
	return struct{ net.Conn }{conn}, nil
}

// HTTP and MQTT are served on the listeners that the owner binds.
func TestListen(t *testing.T) {
	var listeners []net.Listener
	var conns atomic.Int32
	cfg := testConfig(t)
	cfg.Listen = func(ctx context.Context, network, addr string) (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(ctx, network, addr)
		listeners = append(listeners, l)
		return counted{l, &conns}, err
	}
	m, err := newManager(t.Context(), cfg, &store.Memory{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v := run(t, m)
	v.join("a")
	resp, err := http.Get("http://" + v.HTTPAddr() + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("healthz: %v %v", resp, err)
	}
	resp.Body.Close()
	if len(listeners) != 2 || conns.Load() != 2 {
		t.Errorf("%d listeners were bound and accepted %d connections, want 2 and 2", len(listeners), conns.Load())
	}
}

// Who connects finds the statuses retained, however soon after the start it comes: here it has said all before the manager runs.
func TestNobodyBeforeTheStatuses(t *testing.T) {
	s := &store.Memory{}
	first := serveWith(t, s)
	for i := range 500 { // so many that it takes a while to publish them
		if _, err := first.loop.Register(t.Context(), messages.NodeInfo{Name: messages.NodeID(fmt.Sprint("n", i)), Key: fmt.Sprint("k", i)}, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.end(); err != nil {
		t.Fatal(err)
	}
	m, err := newManager(t.Context(), testConfig(t), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Manager: m, t: t}
	r := v.dial()
	r.sayHello("five", viewerName)
	r.packet(0x82, []byte{0, 1, 0}, text("cluster/status"), []byte{1})
	run(t, m)
	r.admitted()
	if head, _ := r.read(); head != 0x90 {
		t.Fatalf("got %x, want a SUBACK", head)
	}
	if head, _ := r.read(); head != 0x33 { // PUBLISH, QoS 1, retained
		t.Errorf("got %x: the first status is not a retained one", head)
	}
}
