package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

const patience = 10 * time.Second // how long a test waits for what must come

// TestMain lets the test binary run itself again as a server that may be ruined.
func TestMain(m *testing.M) {
	if kind := os.Getenv("BROKER_TEST_SERVER"); kind != "" {
		runServer(kind)
		return
	}
	os.Exit(m.Run())
}

// open is a Config that lets everybody do everything.
func open() Config {
	return Config{
		Listeners:    []Listener{{Addr: "127.0.0.1:0"}},
		Authenticate: func(l Login) (Client, error) { return Client{Role: l.Username}, nil },
		Allow:        func(Client, Access, string) bool { return true },
		SysInterval:  -1,
	}
}

// start runs a broker until the test ends.
func start(t testing.TB, cfg Config) (*Broker, string) {
	t.Helper()
	b, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	addr := ""
	if len(cfg.Listeners) > 0 {
		addr = b.Addrs()[0].String()
	}
	eventually(t, "serving", func() bool { b.mu.RLock(); defer b.mu.RUnlock(); return b.serving })
	return b, addr
}

// openHook lets everybody do everything on the stock server.
type openHook struct {
	mqtt.HookBase
	deny string // a topic that nobody may publish to
}

func (*openHook) ID() string { return "open" }
func (*openHook) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (*openHook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (h *openHook) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	return !write || h.deny == "" || topic != h.deny
}

// onStock runs what shows a defect of the stock server.
func onStock(t *testing.T, show func(*testing.T)) {
	t.Helper()
	if !raceOn {
		t.Run("stock", show)
	}
}

// stock runs the library's own server and listener.
func stock(t testing.TB, hook mqtt.Hook) string {
	t.Helper()
	s, addr := newStock(hook)
	t.Cleanup(func() { s.Close() })
	return addr
}

func newStock(hook mqtt.Hook) (*mqtt.Server, string) {
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if hook == nil {
		hook = &openHook{}
	}
	l := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
	if err := errors.Join(s.AddHook(hook, nil), s.AddListener(l), s.Serve()); err != nil {
		panic(err)
	}
	return s, l.Address()
}

// eventually polls until ok, or fails the test.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen in %v: %s", patience, what)
		}
	}
}

// client is an MQTT client without manners: it does what a test says.
type client struct {
	t testing.TB
	net.Conn
	r  *bufio.Reader
	v  byte
	id uint16
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, Conn: conn, r: bufio.NewReaderSize(conn, 64<<10), v: 4}
}

// connect makes the CONNECT of version v.
func connect(v byte, id string) packets.Packet {
	return packets.Packet{
		ProtocolVersion: v, FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: id,
		},
	}
}

// login dials and is admitted; change may alter the CONNECT.
func login(t testing.TB, addr string, v byte, id string, change ...func(*packets.Packet)) *client {
	t.Helper()
	c := dial(t, addr)
	pk := connect(v, id)
	for _, f := range change {
		f(&pk)
	}
	c.v = v
	c.send(pk)
	if ack := c.want(packets.Connack); ack.ReasonCode != 0 {
		t.Fatalf("%s: connack code %#x", id, ack.ReasonCode)
	}
	return c
}

// refused dials and returns the code of the CONNACK.
func refused(t testing.TB, addr string, pk packets.Packet) byte {
	t.Helper()
	c := dial(t, addr)
	c.v = pk.ProtocolVersion
	c.send(pk)
	return c.want(packets.Connack).ReasonCode
}

func withWill(topic, payload string, retain bool) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillQos = true, topic, 1
		pk.Connect.WillPayload, pk.Connect.WillRetain = []byte(payload), retain
	}
}

func unclean(pk *packets.Packet) { pk.Connect.Clean = false }

func encode(pk packets.Packet) []byte {
	var buf bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&buf)
	case packets.Unsubscribe:
		err = pk.UnsubscribeEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	default:
		err = fmt.Errorf("no encoder for %d", pk.FixedHeader.Type)
	}
	if err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func (c *client) send(pk packets.Packet) {
	c.t.Helper()
	c.raw(encode(pk)...)
}

// raw sends bytes; that the other side has closed is no error here.
func (c *client) raw(b ...byte) {
	c.SetWriteDeadline(time.Now().Add(patience))
	_, _ = c.Write(b)
}

// recv reads one packet within d.
func (c *client) recv(d time.Duration) (packets.Packet, error) {
	c.SetReadDeadline(time.Now().Add(d))
	first, err := c.r.ReadByte()
	if err != nil {
		return packets.Packet{}, err
	}
	n, _, err := packets.DecodeLength(c.r)
	if err != nil {
		return packets.Packet{}, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return packets.Packet{}, err
	}
	pk := packets.Packet{ProtocolVersion: c.v}
	pk.FixedHeader = packets.FixedHeader{
		Type: first >> 4, Dup: first&8 != 0, Qos: first >> 1 & 3, Retain: first&1 != 0, Remaining: n,
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

// want reads one packet and fails if it is of another kind.
func (c *client) want(kind byte) packets.Packet {
	c.t.Helper()
	pk, err := c.recv(patience)
	if err != nil {
		c.t.Fatalf("waiting for %s: %v", packets.PacketNames[kind], err)
	}
	if pk.FixedHeader.Type != kind {
		c.t.Fatalf("got %s (code %#x), want %s", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, packets.PacketNames[kind])
	}
	return pk
}

// wantClosed reads until the connection ends and returns the reason of a DISCONNECT, if one came.
func (c *client) wantClosed() byte {
	c.t.Helper()
	var code byte
	for {
		pk, err := c.recv(patience)
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				c.t.Fatal("connection is still open")
			}
			return code
		}
		if pk.FixedHeader.Type == packets.Disconnect {
			code = pk.ReasonCode
		}
	}
}

// silent says that nothing may come; a PINGREQ shows that everything before it was handled.
func (c *client) silent() {
	c.t.Helper()
	c.raw(0xc0, 0)
	c.want(packets.Pingresp)
}

func (c *client) ack(pk packets.Packet) { c.raw(0x40, 2, byte(pk.PacketID>>8), byte(pk.PacketID)) }

func (c *client) nextID() uint16 {
	if c.id++; c.id == 0 {
		c.id = 1
	}
	return c.id
}

// subscribe subscribes and returns the code of the SUBACK.
func (c *client) subscribe(filter string, qos byte) byte {
	c.t.Helper()
	c.send(c.subscription(packets.Subscription{Filter: filter, Qos: qos}))
	for {
		pk, err := c.recv(patience)
		if err != nil {
			c.t.Fatalf("no suback for %s: %v", filter, err)
		}
		if pk.FixedHeader.Type == packets.Suback {
			return pk.ReasonCodes[0]
		}
	}
}

func (c *client) subscription(subs ...packets.Subscription) packets.Packet {
	return packets.Packet{
		ProtocolVersion: c.v, FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1},
		PacketID: c.nextID(), Filters: subs,
	}
}

func (c *client) message(topic, payload string, qos byte, retain bool) packets.Packet {
	pk := packets.Packet{
		ProtocolVersion: c.v, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: retain},
		TopicName: topic, Payload: []byte(payload),
	}
	if qos > 0 {
		pk.PacketID = c.nextID()
	}
	return pk
}

// publish publishes and, for QoS 1, returns the PUBACK.
func (c *client) publish(topic, payload string, qos byte, retain bool) packets.Packet {
	c.t.Helper()
	c.send(c.message(topic, payload, qos, retain))
	if qos == 0 {
		return packets.Packet{}
	}
	return c.want(packets.Puback)
}

// wantMessage reads a publish and acknowledges it.
func (c *client) wantMessage(topic, payload string) packets.Packet {
	c.t.Helper()
	pk := c.want(packets.Publish)
	if pk.TopicName != topic || string(pk.Payload) != payload {
		c.t.Fatalf("got %s %q, want %s %q", pk.TopicName, pk.Payload, topic, payload)
	}
	if pk.FixedHeader.Qos == 1 {
		c.ack(pk)
	}
	return pk
}

// journal collects what an owner's functions were told.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, fmt.Sprintf(format, args...))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.list, " ")
}

// contextUntilEOF ends with standard input.
func contextUntilEOF() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// stockWith is stock with a configured hook.
func stockWith(t testing.TB, hook mqtt.Hook, config any) string {
	t.Helper()
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	l := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
	if err := errors.Join(s.AddHook(hook, config), s.AddListener(l), s.Serve()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return l.Address()
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
