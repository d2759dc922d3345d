package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestWill(t *testing.T) {
	cfg := open()
	var j journal
	cfg.OnPublish = func(c Client, m Message) error {
		j.add("%s:%s=%s,will=%v", c.ID, m.Topic, m.Payload, m.Will)
		if string(m.Payload) == "unwanted" {
			return ErrRefused
		}
		return nil
	}
	cfg.OnDisconnect = func(c Client) { j.add("gone:%s", c.ID) }
	b, addr := start(t, cfg)
	sub := login(t, addr, 4, "sub")
	sub.subscribe("w/#", 1)

	login(t, addr, 4, "closes", withWill("w/1", "closed", false)).Close()
	sub.wantMessage("w/1", "closed")

	quiet := login(t, addr, 4, "quiet", withWill("w/2", "timeout", true), func(pk *packets.Packet) { pk.Connect.Keepalive = 1 })
	sub.wantMessage("w/2", "timeout")
	quiet.wantClosed()

	clean := login(t, addr, 4, "clean", withWill("w/3", "never", false))
	clean.raw(0xe0, 0)
	clean.wantClosed()

	login(t, addr, 5, "asks", withWill("w/4", "on purpose", false)).raw(0xe0, 1, 4)
	sub.wantMessage("w/4", "on purpose")

	login(t, addr, 4, "breaks", withWill("w/5", "malformed", false)).raw(0x00, 0x00)
	sub.wantMessage("w/5", "malformed")

	login(t, addr, 5, "panics", withWill("w/6", "panic", false)).raw(poison...)
	sub.wantMessage("w/6", "panic")

	kicked := login(t, addr, 5, "kicked", withWill("w/7", "kicked", false))
	b.Disconnect("kicked")
	if code := kicked.wantClosed(); code != 0x98 {
		t.Errorf("reason for the kicked: %#x", code)
	}
	sub.wantMessage("w/7", "kicked")

	login(t, addr, 4, "refused", withWill("w/8", "unwanted", false)).Close()
	login(t, addr, 4, "empty", withWill("w/2", "", true)).Close() // the stock server refuses an empty will
	sub.wantMessage("w/2", "")
	eventually(t, "all gone", func() bool { return b.Stats().Clients == 1 })
	sub.silent()
	log := j.String()
	for who, will := range map[string]string{
		"closes": "w/1=closed", "quiet": "w/2=timeout", "refused": "w/8=unwanted", "panics": "w/6=panic",
	} {
		sent, gone := strings.Index(log, who+":"+will+",will=true"), strings.Index(log, "gone:"+who)
		if sent < 0 || gone < sent {
			t.Errorf("%s: will at %d, gone at %d in %s", who, sent, gone, log)
		}
	}
	if strings.Contains(log, "never") || !strings.Contains(log, "gone:clean") {
		t.Errorf("after a clean goodbye: %s", log)
	}
	if b.Stats().Retained != 0 {
		t.Error("an empty retained will did not clear its topic")
	}
}

func TestWillDelay(t *testing.T) {
	cfg := open()
	cfg.SessionExpiry = time.Minute
	_, addr := start(t, cfg)
	sub := login(t, addr, 4, "sub")
	sub.subscribe("w/#", 1)
	late := func(topic string) func(*packets.Packet) {
		return func(pk *packets.Packet) {
			withWill(topic, "gone", false)(pk)
			pk.Connect.Clean = false
			pk.Connect.WillProperties.WillDelayInterval = 1
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 30, true
		}
	}
	began := time.Now()
	login(t, addr, 5, "back", late("w/back")).Close()
	login(t, addr, 5, "away", late("w/away")).Close()
	login(t, addr, 5, "back", late("w/back"))
	sub.wantMessage("w/away", "gone")
	if d := time.Since(began); d < time.Second {
		t.Errorf("came after %v", d)
	}
	sub.silent()
}

// What an old connection leaves behind must come before what the new one says: a node that came back is online.
func TestTakeOver(t *testing.T) {
	cfg := open()
	var j journal
	cfg.OnConnect = func(c Client) { j.add("+%s", c.Username) }
	cfg.OnDisconnect = func(c Client) { j.add("-%s", c.Username) }
	b, addr := start(t, cfg)
	sub := login(t, addr, 4, "sub")
	sub.subscribe("p", 1)
	j.list = nil
	user := func(n int) func(*packets.Packet) {
		return func(pk *packets.Packet) { pk.Connect.UsernameFlag, pk.Connect.Username = true, fmt.Append(nil, n) }
	}
	var old *client
	var want []string
	for i := range 30 {
		c := login(t, addr, 5, "node", withWill("p", "offline", true), user(i))
		c.publish("p", "online", 1, true)
		if old != nil {
			sub.wantMessage("p", "offline")
			if code := old.wantClosed(); code != packets.ErrSessionTakenOver.Code {
				t.Errorf("reason: %#x", code)
			}
			want = append(want, fmt.Sprint("-", i-1))
		}
		want = append(want, fmt.Sprint("+", i))
		sub.wantMessage("p", "online")
		old = c
	}
	if st := b.Stats(); st.Clients != 2 {
		t.Errorf("clients: %d, want 2", st.Clients)
	}
	if got := j.String(); got != strings.Join(want, " ") {
		t.Errorf("got  %s\nwant %s", got, strings.Join(want, " "))
	}
}

func TestTakeOverAtOnce(t *testing.T) {
	b, addr := start(t, open())
	var wg sync.WaitGroup
	var answers atomic.Int32
	for range 20 {
		wg.Go(func() {
			c := dial(t, addr)
			c.send(connect(4, "same"))
			_, err := c.recv(patience) // or closed by the next before it was answered
			if err == nil {
				answers.Add(1)
			} else if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("neither answered nor closed")
			}
		})
	}
	wg.Wait()
	if answers.Load() == 0 {
		t.Error("nobody was admitted")
	}
	eventually(t, "one is left", func() bool { return b.Stats().Clients == 1 && b.core.Clients.Len() == 1 })
	login(t, addr, 4, "same").publish("t", "x", 1, false)
}

func TestOnPublishDecides(t *testing.T) {
	cfg := open()
	var calls atomic.Int32
	cfg.OnPublish = func(_ Client, m Message) error {
		calls.Add(1)
		switch string(m.Payload) {
		case "refused":
			return fmt.Errorf("%w: not today", ErrRefused)
		case "bad":
			return fmt.Errorf("%w: not JSON", ErrBadPayload)
		case "broken":
			return errors.New("disk full")
		case "panic":
			panic("owner")
		}
		return nil
	}
	b, addr := start(t, cfg)
	sub := login(t, addr, 4, "sub")
	sub.subscribe("t", 0)
	five, three := login(t, addr, 5, "five"), login(t, addr, 4, "three")
	for payload, want := range map[string]byte{"refused": 0x87, "bad": 0x99} {
		ack := five.publish("t", payload, 1, false)
		if ack.ReasonCode != want || !strings.Contains(ack.Properties.ReasonString, "not") {
			t.Errorf("%s: code %#x, %q", payload, ack.ReasonCode, ack.Properties.ReasonString)
		}
		three.publish("t", payload, 1, false)
		five.send(five.message("t", payload, 2, false))
		if ack := five.want(packets.Pubrec); ack.ReasonCode != want {
			t.Errorf("QoS 2 %s: code %#x", payload, ack.ReasonCode)
		}
	}
	three.publish("t", "broken", 0, false)
	three.publish("t", "good", 1, false)
	sub.wantMessage("t", "good")
	// Both in one write: the second must not overtake the one that failed.
	three.raw(append(encode(three.message("t", "broken", 1, false)), encode(three.message("t", "after", 1, false))...)...)
	if _, err := three.recv(patience); err == nil {
		t.Error("an answer came for what the owner could not take")
	}
	five.send(five.message("t", "panic", 1, false))
	five.wantClosed()
	sub.silent()
	eventually(t, "the panic is counted, which comes after the end of its connection", func() bool { return b.Stats().Panics == 1 })
	if st := b.Stats(); st.Refused != 6 {
		t.Errorf("%+v", st)
	}
	if n := calls.Load(); n != 10 {
		t.Errorf("OnPublish was called %d times, want 10", n)
	}
}

func TestPubackComesAfterOnPublish(t *testing.T) {
	cfg := open()
	gate := make(chan struct{})
	var order []string
	cfg.OnPublish = func(_ Client, m Message) error {
		<-gate
		order = append(order, string(m.Payload)) // one client: one goroutine
		return nil
	}
	_, addr := start(t, cfg)
	c := login(t, addr, 4, "c")
	for i := range 3 {
		c.send(c.message("t", fmt.Sprint(i), 1, false))
	}
	if pk, err := c.recv(100 * time.Millisecond); err == nil {
		t.Fatalf("acknowledged before OnPublish returned: %+v", pk.FixedHeader)
	}
	close(gate)
	for i := range 3 {
		if pk := c.want(packets.Puback); pk.PacketID != uint16(i+1) {
			t.Errorf("PUBACK %d, want %d", pk.PacketID, i+1)
		}
	}
	if !slices.Equal(order, []string{"0", "1", "2"}) {
		t.Errorf("order %v", order)
	}
}

func TestPublishBeforeWhileAndAfterRun(t *testing.T) {
	b, err := New(open(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(Message{Topic: "t", Payload: []byte("before"), Retain: true, QoS: 1}); err != nil {
		t.Errorf("before: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	c := login(t, b.Addrs()[0].String(), 5, "c", withWill("gone", "x", true))
	c.subscribe("#", 1)
	c.wantMessage("t", "before")
	if err := b.Publish(Message{Topic: "t", Payload: []byte("while")}); err != nil {
		t.Errorf("while: %v", err)
	}
	c.wantMessage("t", "while")
	for _, m := range []Message{
		{}, {Topic: "a/#"}, {Topic: "a\xff"}, {Topic: "t", QoS: 3}, {Topic: "t", Payload: make([]byte, 2<<20)},
		{Topic: "t", ResponseTopic: "+"}, {Topic: "t", CorrelationData: make([]byte, 1<<16)},
	} {
		if err := b.Publish(m); err == nil {
			t.Errorf("taken: %.60v", m)
		}
	}
	cancel()
	if code := c.wantClosed(); code != packets.ErrServerShuttingDown.Code {
		t.Errorf("reason %#x", code)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := b.Publish(Message{Topic: "t"}); !errors.Is(err, ErrClosed) {
		t.Errorf("after: %v", err)
	}
	if err := b.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
	if b.retained.get("gone") != nil {
		t.Error("a will was sent for a client that the broker has left")
	}
}

func TestLogin(t *testing.T) {
	cfg := open()
	cfg.MaxClients = 2
	var mu sync.Mutex
	var seen []Login
	cfg.Authenticate = func(l Login) (Client, error) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, l)
		if string(l.Password) == "wrong" {
			return Client{}, errors.New("wrong password")
		}
		return Client{ID: "ignored", Role: "operator", Value: 42}, nil
	}
	clients := make(chan Client, 10)
	cfg.OnConnect = func(c Client) { clients <- c }
	_, addr := start(t, cfg)
	for v, want := range map[byte]byte{4: 5, 5: 0x87} {
		pk := connect(v, "c")
		pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte("u")
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("wrong")
		if code := refused(t, addr, pk); code != want {
			t.Errorf("version %d: code %#x, want %#x", v, code, want)
		}
	}
	for v, want := range map[byte]byte{4: 2, 5: 0x85} {
		for _, id := range []string{"inline", strings.Repeat("x", 257)} {
			if code := refused(t, addr, connect(v, id)); code != want {
				t.Errorf("version %d, %.8s: code %#x, want %#x", v, id, code, want)
			}
		}
	}
	if code := refused(t, addr, func() packets.Packet { pk := connect(4, ""); pk.Connect.Clean = false; return pk }()); code != 2 {
		t.Errorf("no id and a session: code %#x, want 2", code)
	}
	c := dial(t, addr)
	c.v = 5
	c.send(connect(5, ""))
	ack := c.want(packets.Connack)
	got := <-clients
	if ack.Properties.AssignedClientID == "" || got.ID != ack.Properties.AssignedClientID {
		t.Errorf("assigned %q, the owner sees %q", ack.Properties.AssignedClientID, got.ID)
	}
	if got.Role != "operator" || got.Value != 42 || got.Protocol != 5 || got.Remote != c.LocalAddr().String() {
		t.Errorf("client %+v", got)
	}
	if ack.Properties.MaximumPacketSize != 1<<20 || ack.Properties.TopicAliasMaximum != 0 {
		t.Errorf("connack %+v", ack.Properties)
	}
	login(t, addr, 4, "second")
	login(t, addr, 4, "second") // taking over is no third
	for v, want := range map[byte]byte{4: 3, 5: 0x89} {
		if code := refused(t, addr, connect(v, "third")); code != want {
			t.Errorf("full, version %d: code %#x, want %#x", v, code, want)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if l := seen[0]; l.ClientID != "c" || l.Username != "u" || l.Listener != "tcp" || l.TLS != nil || l.Remote == nil {
		t.Errorf("login %+v", l)
	}
}

func TestKeepAlive(t *testing.T) {
	_, addr := start(t, open())
	// 43,691 s and half of it are 0 in 16 bits: the stock server closes such a client at once.
	alive := func(addr string) bool {
		c := dial(t, addr)
		pk := connect(4, "c")
		pk.Connect.Keepalive = 43691
		c.send(pk)
		c.recv(patience)
		c.raw(0xc0, 0)
		_, err := c.recv(patience)
		return err == nil
	}
	if !raceOn && alive(stock(t, nil)) {
		t.Error("the stock server computes the keep-alive: this defect is gone")
	}
	if !alive(addr) {
		t.Error("closed at once with a keep-alive of 43691 s")
	}
	c := dial(t, addr)
	c.v = 5
	pk := connect(5, "c5")
	pk.Connect.Keepalive = 0
	c.send(pk)
	if ack := c.want(packets.Connack); ack.Properties.ServerKeepAlive != 300 {
		t.Errorf("server keep-alive %d", ack.Properties.ServerKeepAlive)
	}
}

func TestOwnerHearsOfMQTT5Requests(t *testing.T) {
	cfg := open()
	var b *Broker
	cfg.OnPublish = func(_ Client, m Message) error {
		if m.ResponseTopic == "" {
			return nil
		}
		return b.Publish(Message{Topic: m.ResponseTopic, Payload: []byte("done"), QoS: 1, CorrelationData: m.CorrelationData})
	}
	b, addr := start(t, cfg)
	c := login(t, addr, 5, "c")
	c.subscribe("answers/1", 1)
	pk := c.message("commands", "do", 1, false)
	pk.Properties.ResponseTopic, pk.Properties.CorrelationData = "answers/1", []byte{0, 1, 255}
	pk.Mods.AllowResponseInfo = true
	c.send(pk)
	got := c.wantMessage("answers/1", "done")
	if string(got.Properties.CorrelationData) != "\x00\x01\xff" {
		t.Errorf("correlation data %x", got.Properties.CorrelationData)
	}
	c.want(packets.Puback)
}

func TestSubscriptionOptions(t *testing.T) {
	b, addr := start(t, open())
	_ = b.Publish(Message{Topic: "r", Payload: []byte("kept"), Retain: true})
	c := login(t, addr, 5, "c")
	sub := c.subscription(
		packets.Subscription{Filter: "own", Qos: 1, NoLocal: true},
		packets.Subscription{Filter: "as/+", Qos: 1, RetainAsPublished: true},
		packets.Subscription{Filter: "r", RetainHandling: 2},
	)
	sub.Properties.SubscriptionIdentifier = []int{7}
	c.send(sub)
	c.want(packets.Suback)
	c.publish("own", "echo", 1, false)
	_ = b.Publish(Message{Topic: "as/1", Payload: []byte("x"), Retain: true, QoS: 2})
	pk := c.wantMessage("as/1", "x")
	if !pk.FixedHeader.Retain || pk.FixedHeader.Qos != 1 || !slices.Equal(pk.Properties.SubscriptionIdentifier, []int{7}) {
		t.Errorf("%+v %v", pk.FixedHeader, pk.Properties.SubscriptionIdentifier)
	}
	once := c.subscription(packets.Subscription{Filter: "r", RetainHandling: 1})
	c.send(once)
	c.want(packets.Suback)
	c.silent() // the subscription existed
	c.send(packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: c.nextID(), Filters: packets.Subscriptions{{Filter: "r"}}})
	c.want(packets.Unsuback)
	c.send(once)
	c.want(packets.Suback)
	c.wantMessage("r", "kept")
}

func TestSharedSubscription(t *testing.T) {
	b, addr := start(t, open())
	members := []*client{login(t, addr, 5, "m1"), login(t, addr, 5, "m2")}
	for _, m := range members {
		m.subscribe("$share/g/jobs/+", 1)
	}
	for i := range 100 {
		if err := b.Publish(Message{Topic: "jobs/1", Payload: fmt.Append(nil, i), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	var counts []int
	for _, m := range members {
		m.raw(0xc0, 0)
		n := 0
		for pk := m.mustRecv(); pk.FixedHeader.Type != packets.Pingresp; pk = m.mustRecv() {
			n++
		}
		counts = append(counts, n)
	}
	if counts[0]+counts[1] != 100 || counts[0] == 0 || counts[1] == 0 {
		t.Errorf("shares %v", counts)
	}
}

func (c *client) mustRecv() packets.Packet {
	c.t.Helper()
	pk, err := c.recv(patience)
	if err != nil {
		c.t.Fatal(err)
	}
	return pk
}

func TestQoS2(t *testing.T) {
	_, addr := start(t, open())
	sub := login(t, addr, 4, "sub")
	sub.subscribe("t", 2)
	pub := login(t, addr, 4, "pub")
	m := pub.message("t", "once", 2, false)
	for range 3 { // repeated before PUBREL: one message
		pub.send(m)
		pub.want(packets.Pubrec)
	}
	for range 2 {
		pub.raw(0x62, 2, byte(m.PacketID>>8), byte(m.PacketID))
		pub.want(packets.Pubcomp)
	}
	got := sub.want(packets.Publish)
	sub.raw(0x50, 2, byte(got.PacketID>>8), byte(got.PacketID))
	if rel := sub.want(packets.Pubrel); rel.PacketID != got.PacketID {
		t.Errorf("PUBREL %d, want %d", rel.PacketID, got.PacketID)
	}
	sub.raw(0x70, 2, byte(got.PacketID>>8), byte(got.PacketID))
	sub.silent()
	pub.send(m) // the id is free again
	pub.want(packets.Pubrec)
	sub.want(packets.Publish)
}

// In the stock server both directions share one table of packet ids.
func TestPacketIDsOfBothDirectionsAreApart(t *testing.T) {
	code := func(addr string) byte {
		c := login(t, addr, 5, "c")
		c.subscribe("t", 1)
		login(t, addr, 5, "p").publish("t", "x", 1, false)
		pk := c.want(packets.Publish)
		c.id = pk.PacketID - 1
		return c.subscribe("other", 0)
	}
	if !raceOn && code(stock(t, nil)) != packets.ErrPacketIdentifierInUse.Code {
		t.Error("the stock server keeps them apart: this defect is gone")
	}
	_, addr := start(t, open())
	if c := code(addr); c != 0 {
		t.Errorf("suback code %#x", c)
	}
}

func TestOrderPerTopic(t *testing.T) {
	const publishers, each = 8, 2000
	_, addr := start(t, open())
	sub := login(t, addr, 4, "sub")
	sub.subscribe("o/+", 1)
	var wg sync.WaitGroup
	for p := range publishers {
		c := login(t, addr, 4, fmt.Sprint("p", p))
		wg.Go(func() {
			for i := range each {
				c.send(c.message(fmt.Sprint("o/", p), fmt.Sprint(i), 1, false))
			}
			for range each {
				c.want(packets.Puback)
			}
		})
	}
	next := map[string]int{}
	for range publishers * each {
		pk := sub.want(packets.Publish)
		sub.ack(pk)
		if string(pk.Payload) != fmt.Sprint(next[pk.TopicName]) {
			t.Fatalf("%s: got %s, want %d", pk.TopicName, pk.Payload, next[pk.TopicName])
		}
		next[pk.TopicName]++
	}
	wg.Wait()
}

func TestUnacknowledgedHasABound(t *testing.T) {
	cfg := open()
	cfg.WriteBuffer = 256 << 10
	cfg.SessionExpiry = time.Minute
	b, addr := start(t, cfg)
	stay := login(t, addr, 4, "stay", unclean) // reads, never acknowledges
	stay.subscribe("t", 1)
	away := login(t, addr, 4, "away", unclean)
	away.subscribe("t", 1)
	away.Close()
	eventually(t, "away", func() bool { return b.Stats().Sessions == 1 })
	go func() {
		for {
			if _, err := stay.recv(patience); err != nil {
				return
			}
		}
	}()
	for range 1000 {
		if err := b.Publish(Message{Topic: "t", Payload: make([]byte, 1000), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "closed", func() bool { return b.Stats().Clients == 0 })
	back := login(t, addr, 4, "away", unclean)
	n := 0
	for back.raw(0xc0, 0); back.mustRecv().FixedHeader.Type == packets.Publish; n++ {
	}
	if n < 200 || n > 240 {
		t.Errorf("%d messages of 1 KiB were kept within 256 KiB", n)
	}
}
