package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"skerry.internal/broker"
	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
)

// fakeManager is what a node engine talks to, in the hands of a test: it admits everybody, sends what the test wants, and notes what
// the node says. Its broker is ours, without rights.
type fakeManager struct {
	url    string
	broker *broker.Broker
	addr   string
	// requests has room for what clients ask for; a test that does not read them loses some.
	requests chan []byte

	mu       sync.Mutex // guards what follows
	welcome  func(messages.NodeInfo) [][]byte
	presence *messages.Presence
	revs     map[messages.InstanceID]uint64 // the newest that was reported
	statuses map[messages.InstanceID]messages.InstanceStatus
}

func newFakeManager(t *testing.T) *fakeManager {
	t.Helper()
	return newFakeManagerOn(t, nil)
}

// newFakeManagerOn makes one on the loopback of a host; nil is this machine.
func newFakeManagerOn(t *testing.T, host *nettest.Host) *fakeManager {
	t.Helper()
	listen := new(net.ListenConfig).Listen
	if host != nil {
		listen = func(_ context.Context, network, addr string) (net.Listener, error) {
			return host.Listen(network, addr), nil
		}
	}
	m := &fakeManager{requests: make(chan []byte, 16), revs: map[messages.InstanceID]uint64{}, statuses: map[messages.InstanceID]messages.InstanceStatus{}}
	var err error
	m.broker, err = broker.New(broker.Config{
		Listeners: []broker.Listener{{Addr: "127.0.0.1:0"}}, Listen: listen, MaxPacket: 8 << 20, SysInterval: -1, OnPublish: m.hear,
		Authenticate: func(broker.Login) (broker.Client, error) { return broker.Client{}, nil },
		Allow:        func(broker.Client, broker.Access, string) bool { return true },
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.broker.Run(ctx) })
	m.addr = m.broker.Addrs()[0].String()
	server := httptest.NewUnstartedServer(http.HandlerFunc(m.init))
	server.Listener.Close()
	if server.Listener, err = listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	server.Start()
	m.url = server.URL
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		server.CloseClientConnections()
		server.Close()
	})
	return m
}

// init is the manager's side of a registration over Engine.IO 3.
func (m *fakeManager) init(w http.ResponseWriter, r *http.Request) {
	ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return // the answer has been written
	}
	defer ws.Close()
	say := func(text string) { _ = ws.WriteMessage(websocket.TextMessage, []byte(text)) }
	say(`0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":60000}`)
	say("40")
	for {
		_, packet, err := ws.ReadMessage()
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(packet, []byte("40/init")):
			say("40/init")
			say(`42/init,["sc1",{"hello-edge":"please send your node info","cluster":"lab","protocol":1,"nonce":"n"}]`)
		case bytes.HasPrefix(packet, []byte("42/init,")):
			var info messages.NodeInfo
			if json.Unmarshal(packet[len("42/init,"):], &[]any{new(string), &info}) != nil {
				return
			}
			for _, answer := range m.answers(info) {
				_ = ws.WriteMessage(websocket.TextMessage, answer)
			}
		case string(packet) == "2":
			say("3")
		}
	}
}

func (m *fakeManager) answers(info messages.NodeInfo) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.welcome != nil {
		return m.welcome(info)
	}
	w := messages.Welcome{ID: info.Name, Cluster: "lab", Kind: messages.Spare, Brokers: []string{"tcp://" + m.addr}, Username: "x", Password: "x"}
	return [][]byte{fmt.Appendf(nil, `42/init,["sc2",%s]`, messages.Encode(w))}
}

func (m *fakeManager) hear(_ broker.Client, msg broker.Message) error {
	t, err := messages.ParseTopic(msg.Topic)
	if err != nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch t.Kind {
	case messages.CommandTopic, messages.LogsRequestTopic, messages.TraceRequestTopic:
		select {
		case m.requests <- msg.Payload:
		default:
		}
	case messages.PresenceTopic:
		var p messages.Presence
		if json.Unmarshal(msg.Payload, &p) == nil && p.Online {
			m.presence = &p
		}
	case messages.NodeJobTopic:
		var s messages.InstanceStatus
		if json.Unmarshal(msg.Payload, &s) == nil {
			m.revs[s.Instance] = max(m.revs[s.Instance], s.Rev)
			m.statuses[s.Instance] = s
		}
	}
	return nil
}

// online returns the node's last presence, nil for none.
func (m *fakeManager) online() *messages.Presence {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.presence
}

// reported returns, by instance, the newest rev that the node has reported: it is on the node's disk.
func (m *fakeManager) reported() map[messages.InstanceID]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.revs)
}

func (m *fakeManager) status(id messages.InstanceID) messages.InstanceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.statuses[id]
}

// assign publishes an assignment as a manager does.
func (m *fakeManager) assign(t *testing.T, node messages.NodeID, a messages.Assignment) {
	t.Helper()
	verb := messages.Deploy
	if !a.Run {
		verb = messages.Delete
	}
	err := m.broker.Publish(broker.Message{Topic: messages.Topic{Kind: messages.NodeControlTopic, Node: node, Verb: verb}.String(), QoS: 1, Payload: messages.Encode(a)})
	if err != nil {
		t.Error(err)
	}
}

// engineOf starts a node engine for a fake manager.
func (l *lab) engineOf(m *fakeManager, name, data string, flags ...string) *process {
	l.t.Helper()
	args := append([]string{"--manager", m.url, "--name", string(l.id(name)), "--data", data}, flags...)
	p := l.start(name, exec.Command(program("node-engine"), args...))
	l.nodes[l.id(name)] = p
	return p
}
