// Package sessiontest is what a session talks to, for tests on real sockets: the manager's side of registrations, a broker that is a
// process of its own, and a client of that broker.
package sessiontest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	socketio "github.com/googollee/go-socket.io"
	"github.com/googollee/go-socket.io/engineio"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"

	"skerry.internal/messages"
)

// Eventually waits for a condition that another goroutine brings about.
func Eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

// Manager is the server side of registrations.
type Manager struct {
	*httptest.Server
	Infos  chan messages.NodeInfo
	Count  atomic.Int32
	answer atomic.Pointer[func(messages.NodeInfo) (event string, payload any)]
}

// Welcomed answers every registration with a Welcome to the brokers.
func Welcomed(brokers ...string) func(messages.NodeInfo) (string, any) {
	return func(info messages.NodeInfo) (string, any) {
		return messages.WelcomeEvent, &messages.Welcome{ID: info.Name, Cluster: "lab", Kind: messages.Spare, Brokers: brokers,
			Username: "node", Password: "secret", TelemetryInterval: messages.Duration(100 * time.Millisecond),
			Clock: messages.At(time.Now().Add(time.Hour))}
	}
}

// NewManager serves registrations on addr, or on a free port where addr is "".
func NewManager(t *testing.T, addr string, answer func(messages.NodeInfo) (string, any)) *Manager {
	t.Helper()
	return serve(t, addr, nil, answer)
}

// NewSecureManager serves registrations on a free port over TLS. It asks for the certificate at each handshake.
func NewSecureManager(t *testing.T, certificate func() tls.Certificate, answer func(messages.NodeInfo) (string, any)) *Manager {
	t.Helper()
	return serve(t, "", &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{certificate()}}, nil
	}}, answer)
}

func serve(t *testing.T, addr string, secured *tls.Config, answer func(messages.NodeInfo) (string, any)) *Manager {
	t.Helper()
	m := &Manager{Infos: make(chan messages.NodeInfo, 100)}
	m.answer.Store(&answer)
	server := socketio.NewServer(&engineio.Options{Transports: []transport.Transport{websocket.Default}})
	server.OnConnect("/", func(socketio.Conn) error { return nil })
	hello := messages.Hello{Cluster: "lab", Protocol: 1, Nonce: "n0"}
	server.OnConnect(messages.Namespace, func(c socketio.Conn) error {
		c.Emit(messages.HelloEvent, hello)
		return nil
	})
	server.OnEvent(messages.Namespace, messages.NodeInfoEvent, func(c socketio.Conn, info messages.NodeInfo) {
		m.Count.Add(1)
		select {
		case m.Infos <- info:
		default:
		}
		if !info.Proved(hello.Cluster, hello.Nonce) {
			c.Emit(messages.RefusedEvent, messages.Refusal{Code: messages.RefusedProof, Message: "no proof"})
			return
		}
		event, payload := (*m.answer.Load())(info)
		c.Emit(event, payload)
	})
	server.OnError("/", func(socketio.Conn, error) {})
	server.OnError(messages.Namespace, func(socketio.Conn, error) {})
	go server.Serve() //nolint:errcheck // it ends with Close
	m.Server = httptest.NewUnstartedServer(server)
	if addr != "" {
		m.Listener.Close() //nolint:errcheck // another takes its place
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		m.Listener = l
	}
	if m.TLS = secured; secured != nil {
		m.Config.ErrorLog = log.New(io.Discard, "", 0)
		m.StartTLS()
	} else {
		m.Start()
	}
	t.Cleanup(func() {
		m.CloseClientConnections()
		m.Close()
		server.Close() //nolint:errcheck // the test is over
	})
	return m
}

// SetAnswer changes what registrations get from now on.
func (m *Manager) SetAnswer(f func(messages.NodeInfo) (string, any)) { m.answer.Store(&f) }

// BrokerProgram is the broker of Debian that these tests use.
const BrokerProgram = "mosquitto" //nolint:misspell // Debian's broker is called so

// Broker is a process of its own: Debian's broker on a free port.
type Broker struct {
	port int
	conf string
	cmd  *exec.Cmd
}

// NewBroker starts a broker that lets anybody in, or one with the given lines in its configuration.
func NewBroker(t *testing.T, more ...string) *Broker {
	t.Helper()
	path, err := exec.LookPath(BrokerProgram)
	if err != nil {
		path = "/usr/sbin/" + BrokerProgram
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatalf("install Debian's package %s", BrokerProgram)
		}
		t.Skipf("needs Debian's package %s", BrokerProgram)
	}
	b := &Broker{port: FreePort(t), conf: filepath.Join(t.TempDir(), "mosquitto.conf")}
	if len(more) == 0 {
		more = []string{"allow_anonymous true"}
	}
	conf := fmt.Sprintf("listener %d 127.0.0.1\nuser root\npersistence false\n%s\n", b.port, strings.Join(more, "\n"))
	if err := os.WriteFile(b.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	b.cmd = exec.CommandContext(t.Context(), path, "-c", b.conf)
	b.Start(t)
	t.Cleanup(b.Kill)
	return b
}

// Start starts the broker again, on its old port.
func (b *Broker) Start(t *testing.T) {
	t.Helper()
	b.cmd = exec.CommandContext(t.Context(), b.cmd.Path, b.cmd.Args[1:]...)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the broker listens", func() bool {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", b.Addr())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Kill ends the broker without warning.
func (b *Broker) Kill() {
	b.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	b.cmd.Wait()         //nolint:errcheck // with the signal
}

// Addr returns host and port.
func (b *Broker) Addr() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }

// URL returns the address as a Welcome names it.
func (b *Broker) URL() string { return "tcp://" + b.Addr() }

// FreePort returns a port that nobody listens on.
func FreePort(t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the port is all that is wanted
	return l.Addr().(*net.TCPAddr).Port
}

// Client is a manager's or operator's MQTT connection: it hears all and says what it is told to.
type Client struct {
	mqtt.Client
	mu    sync.Mutex
	heard []Message
}

// Message is what the client heard.
type Message struct {
	Topic    string
	Payload  []byte
	Retained bool
}

// NewClient connects and listens to all that nodes say.
func NewClient(t *testing.T, addr string) *Client {
	t.Helper()
	c := new(Client)
	opts := mqtt.NewClientOptions().AddBroker("tcp://" + addr).SetClientID("test-client").SetUsername("node").SetPassword("secret")
	opts.SetAutoReconnect(false)
	c.Client = mqtt.NewClient(opts)
	wait := func(token mqtt.Token) {
		t.Helper()
		if token.Wait(); token.Error() != nil {
			t.Fatal(token.Error())
		}
	}
	wait(c.Connect())
	wait(c.Subscribe("nodes/#", 1, func(_ mqtt.Client, m mqtt.Message) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.heard = append(c.heard, Message{m.Topic(), m.Payload(), m.Retained()})
	}))
	t.Cleanup(func() { c.Disconnect(50) })
	return c
}

// Find decodes the newest message on topic that ok takes into v.
func Find[T any](c *Client, topic string, v *T, ok func(*T) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range slices.Backward(c.heard) {
		var got T
		if m.Topic == topic && json.Unmarshal(m.Payload, &got) == nil && ok(&got) {
			*v = got
			return true
		}
	}
	return false
}

// Number counts the messages on a topic.
func (c *Client) Number(topic string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, m := range c.heard {
		if m.Topic == topic {
			n++
		}
	}
	return n
}

// Forget drops what was heard.
func (c *Client) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = nil
}

// Say publishes a payload, encoded where it is none already.
func (c *Client) Say(t *testing.T, topic string, payload any) {
	t.Helper()
	if b, ok := payload.([]byte); !ok {
		payload = messages.Encode(payload)
	} else {
		payload = b
	}
	if token := c.Publish(topic, 1, false, payload); token.WaitTimeout(10*time.Second) && token.Error() != nil {
		t.Fatal(token.Error())
	}
}

// All returns what was heard, oldest first.
func (c *Client) All() []Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.heard)
}
