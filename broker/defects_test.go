package broker

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/mochi-mqtt/server/v2/system"
)

// The tests of this file are one for each defect of the stock server that README.md lists. Each shows the defect first.

// poison is a SUBSCRIBE of MQTT 5 whose last filter has no options.
var poison = []byte{0x82, 0x05, 0x00, 0x01, 0x00, 0x00, 0x00}

func TestMalformedSubscribeEndsOneClientOnly(t *testing.T) {
	onStock(t, func(t *testing.T) {
		addr, _, ended := child(t, "stock")
		login(t, addr, 5, "bad").raw(poison...)
		select {
		case out := <-ended:
			if !strings.Contains(out, "panic") {
				t.Errorf("ended otherwise: %s", out)
			}
		case <-time.After(patience):
			t.Error("the stock server has survived: this defect is gone")
		}
	})
	b, addr := start(t, open())
	good := login(t, addr, 5, "good")
	bad := login(t, addr, 5, "bad")
	bad.subscribe("x", 1)
	bad.raw(poison...)
	bad.wantClosed()
	good.publish("x", "1", 1, false)
	eventually(t, "one client left, and the panic counted", func() bool { return b.Stats().Clients == 1 && b.Stats().Panics == 1 })
	if st := b.Stats(); st.Subscriptions != 0 || st.Pending != 0 {
		t.Errorf("after the panic: %+v", st)
	}
	login(t, addr, 5, "bad").publish("x", "2", 1, false)
}

func TestSubscriberThatNeverReads(t *testing.T) {
	const messages, size = 600, 64 << 10 // 38 MiB, more than any kernel buffers on loopback
	payload := strings.Repeat("x", size)
	// flood returns how many publishes were acknowledged before the publisher was stopped for two seconds.
	flood := func(t *testing.T, addr string) int {
		lazy := login(t, addr, 4, "lazy")
		lazy.Conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		lazy.subscribe("t", 1)
		pub := login(t, addr, 4, "pub")
		for i := range messages {
			pub.send(pub.message("t", payload, 1, false))
			if _, err := pub.recv(2 * time.Second); err != nil {
				return i
			}
		}
		return messages
	}
	onStock(t, func(t *testing.T) {
		if n := flood(t, stock(t, nil)); n == messages {
			t.Error("the publisher was not blocked: this defect is gone")
		}
	})
	b, addr := start(t, open())
	other := login(t, addr, 4, "other")
	other.subscribe("t", 0)
	var got int
	var wg sync.WaitGroup
	wg.Go(func() {
		for got < messages {
			if pk, err := other.recv(patience); err != nil || pk.FixedHeader.Type != packets.Publish {
				return
			}
			got++
		}
	})
	if n := flood(t, addr); n != messages {
		t.Errorf("publisher stopped after %d of %d", n, messages)
	}
	wg.Wait()
	if got != messages {
		t.Errorf("the other subscriber got %d of %d", got, messages)
	}
	if st := b.Stats(); st.SlowConsumers != 1 {
		t.Errorf("slow consumers: %d, want 1", st.SlowConsumers)
	}
	eventually(t, "lazy is closed", func() bool { return b.Stats().Clients == 2 })
}

func TestTooManyOpenFilesDoesNotEndAccepting(t *testing.T) {
	answers := func(t *testing.T, kind string) bool {
		addr, pid, _ := child(t, kind, "BROKER_TEST_FILES=1")
		var crowd []net.Conn
		for range 120 {
			if c, err := net.Dial("tcp", addr); err == nil {
				crowd = append(crowd, c)
			}
		}
		eventually(t, "no file is left to the server", func() bool {
			files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			return len(files) >= fewFiles
		})
		for _, c := range crowd {
			c.Close()
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			c := dial(t, addr)
			c.send(connect(4, "after"))
			if pk, err := c.recv(time.Second); err == nil && pk.FixedHeader.Type == packets.Connack {
				return true
			}
		}
		return false
	}
	onStock(t, func(t *testing.T) {
		if answers(t, "stock") {
			t.Error("the stock server still accepts: this defect is gone")
		}
	})
	if !answers(t, "ours") {
		t.Error("no client is accepted after the crowd has gone")
	}
}

func TestHalfOpenConnectionsAreDropped(t *testing.T) {
	parts := [][]byte{{}, {0x10}, {0x10, 0x80}, {0x10, 0x20, 0x00, 0x04, 'M', 'Q'}}
	cfg := open()
	cfg.ConnectTimeout = 200 * time.Millisecond
	b, addr := start(t, cfg)
	for _, part := range parts {
		ours := dial(t, addr)
		ours.raw(part...)
		ours.wantClosed()
	}
	onStock(t, func(t *testing.T) {
		theirs := dial(t, stock(t, nil))
		theirs.raw(0x10)
		if _, err := theirs.recv(3 * cfg.ConnectTimeout); !os.IsTimeout(err) {
			t.Errorf("the stock server has closed (%v): this defect is gone", err)
		}
	})
	if st := b.Stats(); st.ConnectTimeouts != uint64(len(parts)) {
		t.Errorf("connect timeouts: %d, want %d", st.ConnectTimeouts, len(parts))
	}
}

func TestDeclaredLengthCostsNothing(t *testing.T) {
	// spent is what a declared length of n makes the server allocate.
	spent := func(t *testing.T, addr string, length ...byte) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 8 {
			c := dial(t, addr)
			c.raw(append([]byte{0x10}, length...)...)
			c.recv(100 * time.Millisecond)
			c.Close() // the stock server waits for it when it is closed
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	huge, large := []byte{0xff, 0xff, 0xff, 0x7f}, []byte{0x80, 0x80, 0x0f} // 256 MiB, 240 KiB
	onStock(t, func(t *testing.T) {
		if n := spent(t, stock(t, nil), huge...); n < 1<<30 {
			t.Errorf("the stock server allocated %d bytes: this defect is gone", n)
		}
	})
	_, addr := start(t, open())
	for _, length := range [][]byte{huge, large} {
		if n := spent(t, addr, length...); n > 2<<20 { // the test's own clients take 64 KiB each
			t.Errorf("allocated %d bytes for a declared length of %x", n, length)
		}
	}
}

func TestBurstOfQoS1Arrives(t *testing.T) {
	const publishers, each = 200, 100
	// burst returns how many arrive at a subscriber that acknowledges late.
	burst := func(t *testing.T, addr string) int {
		sub := login(t, addr, 4, "sub")
		sub.subscribe("burst/#", 1)
		var wg sync.WaitGroup
		for p := range publishers {
			c := login(t, addr, 4, fmt.Sprint("pub", p))
			wg.Go(func() {
				var out []byte
				for i := range each {
					out = append(out, encode(c.message(fmt.Sprint("burst/", p), fmt.Sprint(i), 1, false))...)
				}
				c.raw(out...)
				for range each {
					c.want(packets.Puback)
				}
			})
		}
		wg.Wait()
		n, next := 0, map[string]int{}
		var unacked []packets.Packet
		for n < publishers*each {
			pk, err := sub.recv(time.Second)
			if err != nil {
				break
			}
			if fmt.Sprint(next[pk.TopicName]) == string(pk.Payload) {
				next[pk.TopicName]++
			} else if t.Name() == "TestBurstOfQoS1Arrives" {
				t.Fatalf("%s: got %s, want %d", pk.TopicName, pk.Payload, next[pk.TopicName])
			}
			n++
			if unacked = append(unacked, pk); len(unacked) == 5000 {
				for _, pk := range unacked {
					sub.ack(pk)
				}
				unacked = nil
			}
		}
		return n
	}
	onStock(t, func(t *testing.T) {
		n := burst(t, stock(t, nil))
		t.Logf("the stock server delivered %d of %d", n, publishers*each)
		if n == publishers*each {
			t.Error("this defect is gone")
		}
	})
	b, addr := start(t, open())
	if n := burst(t, addr); n != publishers*each {
		t.Errorf("got %d of %d: %+v", n, publishers*each, b.Stats())
	}
}

func TestReceiveMaximum(t *testing.T) {
	const window, messages = 10, 60
	small := func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = window }
	prepare := func(t *testing.T, addr string) *client {
		sub := login(t, addr, 5, "sub", small)
		sub.subscribe("t", 1)
		pub := login(t, addr, 4, "pub")
		for i := range messages {
			pub.publish("t", fmt.Sprint(i), 1, false)
		}
		return sub
	}
	onStock(t, func(t *testing.T) {
		sub := prepare(t, stock(t, nil))
		for i := range messages {
			pk, err := sub.recv(time.Second)
			if err != nil || string(pk.Payload) != fmt.Sprint(i) {
				return // stalled, or out of order
			}
			sub.ack(pk)
		}
		t.Error("all came in order: this defect is gone")
	})
	_, addr := start(t, open())
	sub := prepare(t, addr)
	var held []packets.Packet
	for range window {
		held = append(held, sub.want(packets.Publish))
	}
	sub.silent() // no eleventh
	for _, pk := range held {
		sub.ack(pk)
	}
	for i := window; i < messages; i++ {
		sub.wantMessage("t", fmt.Sprint(i))
	}
}

func TestQueuedMessagesKeepTheirOrder(t *testing.T) {
	const messages = 200
	away := func(t *testing.T, addr string) *client {
		sub := login(t, addr, 4, "sub", unclean)
		sub.subscribe("t", 1)
		sub.raw(0xe0, 0)
		sub.wantClosed()
		pub := login(t, addr, 4, "pub")
		for i := range messages {
			pub.publish("t", fmt.Sprint(i), 1, false)
		}
		return login(t, addr, 4, "sub", unclean)
	}
	onStock(t, func(t *testing.T) {
		sub := away(t, stock(t, nil))
		for i := range messages {
			if pk := sub.want(packets.Publish); string(pk.Payload) != fmt.Sprint(i) {
				return
			}
		}
		t.Error("all came in order: this defect is gone")
	})
	cfg := open()
	cfg.SessionExpiry = time.Hour
	b, addr := start(t, cfg)
	sub := away(t, addr)
	for i := range messages {
		pk := sub.want(packets.Publish)
		if string(pk.Payload) != fmt.Sprint(i) || pk.FixedHeader.Dup {
			t.Fatalf("got %s (dup %v), want %d", pk.Payload, pk.FixedHeader.Dup, i)
		}
		if i < messages/2 {
			sub.ack(pk)
		}
	}
	sub.silent()
	sub.Close()
	eventually(t, "away", func() bool { return b.Stats().Sessions == 1 })
	sub = login(t, addr, 4, "sub", unclean)
	for i := messages / 2; i < messages; i++ {
		if pk := sub.wantMessage("t", fmt.Sprint(i)); !pk.FixedHeader.Dup {
			t.Fatalf("%d is not marked as a repetition", i)
		}
	}
}

func TestWillNeedsTheRightToPublish(t *testing.T) {
	onStock(t, func(t *testing.T) {
		addr := stock(t, &openHook{deny: "secret"})
		sub := login(t, addr, 4, "sub")
		sub.subscribe("secret", 1)
		login(t, addr, 4, "w", withWill("secret", "boo", false)).Close()
		if pk, err := sub.recv(patience); err != nil || string(pk.Payload) != "boo" {
			t.Error("the will did not come: this defect is gone")
		}
	})
	cfg := open()
	var mu sync.Mutex
	denied := "secret"
	cfg.Allow = func(_ Client, a Access, topic string) bool {
		mu.Lock()
		defer mu.Unlock()
		return a != Publish || topic != denied
	}
	_, addr := start(t, cfg)
	for v, want := range map[byte]byte{4: 5, 5: packets.ErrNotAuthorized.Code} {
		pk := connect(v, "w")
		withWill("secret", "boo", false)(&pk)
		if code := refused(t, addr, pk); code != want {
			t.Errorf("version %d: code %#x, want %#x", v, code, want)
		}
	}
	sub := login(t, addr, 4, "sub")
	sub.subscribe("#", 1)
	w := login(t, addr, 4, "w", withWill("later", "boo", false))
	mu.Lock()
	denied = "later"
	mu.Unlock()
	w.Close()
	login(t, addr, 4, "x", withWill("free", "bye", false)).Close()
	sub.wantMessage("free", "bye")
}

func TestFilterWiderThanTheRight(t *testing.T) {
	onStock(t, func(t *testing.T) {
		h := new(auth.Hook)
		addr := stockWith(t, h, &auth.Options{Ledger: &auth.Ledger{
			Auth: auth.AuthRules{{Allow: true}},
			ACL:  auth.ACLRules{{Filters: auth.Filters{"nodes/+": auth.ReadWrite, "#": auth.Deny}}},
		}})
		if code := login(t, addr, 4, "c").subscribe("nodes/#", 0); code > 2 {
			t.Error("the ledger has refused: this defect is gone")
		}
	})
	cfg := open()
	cfg.Allow = func(c Client, a Access, s string) bool {
		switch a {
		case Subscribe:
			return s == "nodes/+" || s == "wide/#"
		case Deliver:
			return s != "wide/secret"
		}
		return true
	}
	b, addr := start(t, cfg)
	c := login(t, addr, 5, "c")
	for filter, ok := range map[string]bool{
		"nodes/+": true, "wide/#": true, "$share/g/nodes/+": true,
		"nodes/#": false, "#": false, "+/+": false, "$share/g/nodes/#": false, "$SHARE/g/#": false, "$sHaRe/g/+/+": false,
		"$share/g": false, "$share//#": false, "$share/+/#": false, "nodes+": false, "no#": false, "nodes/#/x": false,
		"$SYS/#": false, "$SYS/broker/uptime": false, strings.Repeat("a/", 100): false,
	} {
		if code := c.subscribe(filter, 0); (code <= 2) != ok {
			t.Errorf("%s: code %#x", filter, code)
		}
	}
	for _, retain := range []bool{false, true} { // a delivery, and one of a retained message
		for _, topic := range []string{"wide/secret", "wide/open"} {
			if err := b.Publish(Message{Topic: topic, Payload: []byte("x"), Retain: retain}); err != nil {
				t.Fatal(err)
			}
		}
		c.wantMessage("wide/open", "x")
	}
	late := login(t, addr, 5, "late")
	late.subscribe("wide/#", 0)
	late.wantMessage("wide/open", "x")
	late.silent()
	if n := b.Stats().Withheld; n != 3 {
		t.Errorf("withheld: %d, want 3", n)
	}
}

func TestPubackHoldsNothingOfThePublisher(t *testing.T) {
	puback := func(t *testing.T, addr string) packets.Packet {
		c := login(t, addr, 5, "c")
		pk := c.message("t", "x", 1, false)
		pk.Properties.User = []packets.UserProperty{{Key: "k", Val: "v"}}
		c.send(pk)
		return c.want(packets.Puback)
	}
	onStock(t, func(t *testing.T) {
		if len(puback(t, stock(t, nil)).Properties.User) == 0 {
			t.Error("nothing is repeated: this defect is gone")
		}
	})
	_, addr := start(t, open())
	if pk := puback(t, addr); pk.FixedHeader.Remaining != 2 {
		t.Errorf("PUBACK is %d bytes long: %+v", pk.FixedHeader.Remaining, pk.Properties)
	}
}

func TestSessionsEnd(t *testing.T) {
	forEver := func(pk *packets.Packet) {
		pk.Connect.Clean = false
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 1<<32-1, true
	}
	leave := func(t *testing.T, addr string, v byte) {
		c := login(t, addr, v, fmt.Sprint("c", v), forEver)
		c.subscribe("t", 1)
		c.raw(0xe0, 0)
		c.wantClosed()
	}
	onStock(t, func(t *testing.T) {
		s, addr := newStock(nil)
		defer s.Close()
		leave(t, addr, 4)
		leave(t, addr, 5)
		if n := s.Options.Capabilities.MaximumSessionExpiryInterval; s.Clients.Len() != 2 || n < 1<<32-1 {
			t.Error("sessions are limited: this defect is gone")
		}
	})
	b, addr := start(t, open())
	cfg := open()
	cfg.SessionExpiry = time.Second
	short, shortAddr := start(t, cfg)
	for _, v := range []byte{4, 5} {
		leave(t, addr, v)
		leave(t, shortAddr, v)
		eventually(t, "parked", func() bool { return short.Stats().Sessions >= 1 })
	}
	eventually(t, "no session without SessionExpiry", func() bool { st := b.Stats(); return st.Clients+st.Sessions+st.Subscriptions == 0 })
	eventually(t, "sessions ended", func() bool { st := short.Stats(); return st.Clients+st.Sessions+st.Subscriptions == 0 })
	if n := short.core.Clients.Len(); n != 0 {
		t.Errorf("the library still knows %d clients", n)
	}
}

func TestWebSocketOrigin(t *testing.T) {
	knock := func(url, origin string) int {
		d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
		conn, res, err := d.Dial(url, http.Header{"Origin": {origin}})
		if err == nil {
			conn.Close()
		}
		if res == nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}
	onStock(t, func(t *testing.T) {
		s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
		defer s.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0") // the stock listener does not tell its port
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().String()
		ln.Close()
		if err := s.AddListener(listeners.NewWebsocket(listeners.Config{ID: "w", Address: addr})); err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "stock websocket", func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		if code := knock("ws://"+addr+"/any/path", "https://evil.example"); code != http.StatusSwitchingProtocols {
			t.Error("the stock server refuses a strange origin: this defect is gone")
		}
	})
	b, _ := start(t, open())
	srv := httptest.NewServer(b.WebSocket(func(r *http.Request) bool { return r.Header.Get("Origin") == "https://good.example" }))
	defer srv.Close()
	strict := httptest.NewServer(b.WebSocket(nil))
	defer strict.Close()
	ws := func(s *httptest.Server) string { return "ws" + strings.TrimPrefix(s.URL, "http") }
	for _, c := range []struct {
		url, origin string
		want        int
	}{
		{ws(srv), "https://good.example", 101},
		{ws(srv), "https://evil.example", 403},
		{ws(strict), "https://evil.example", 403},
		{ws(strict), strict.URL, 101},
	} {
		if code := knock(c.url, c.origin); code != c.want {
			t.Errorf("%s from %s: %d, want %d", c.url, c.origin, code, c.want)
		}
	}
}

func TestSysIsShownByRightAlone(t *testing.T) {
	onStock(t, func(t *testing.T) { // what a storage hook writes each second, whether or not anything has changed
		hook := &sysHook{ticks: make(chan struct{}, 8)}
		stock(t, hook)
		for range 2 {
			select {
			case <-hook.ticks:
			case <-time.After(patience):
				t.Fatal("the stock server no longer hands $SYS to storage")
			}
		}
	})
	cfg := open()
	cfg.SysInterval = time.Second
	cfg.Allow = func(c Client, a Access, s string) bool {
		return c.Role == "operator" || !strings.HasPrefix(s, "$SYS")
	}
	_, addr := start(t, cfg)
	as := func(user string) func(*packets.Packet) {
		return func(pk *packets.Packet) { pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(user) }
	}
	op := login(t, addr, 5, "op", as("operator"))
	if code := op.subscribe("$SYS/broker/clients/connected", 0); code != 0 {
		t.Fatalf("operator: code %#x", code)
	}
	if pk := op.want(packets.Publish); !slices.Contains([]string{"0", "1"}, string(pk.Payload)) {
		t.Errorf("clients connected: %s", pk.Payload)
	}
	other := login(t, addr, 5, "other", as("viewer"))
	for filter, ok := range map[string]bool{"$SYS/#": false, "#": true, "+/broker/uptime": true, "$share/g/#": true} {
		if code := other.subscribe(filter, 0); (code <= 2) != ok {
			t.Errorf("%s: code %#x", filter, code)
		}
	}
	op.want(packets.Publish) // two clients: a turn of $SYS has passed by the other
	other.silent()
	if ack := op.publish("$SYS/broker/uptime", "lie", 1, false); ack.ReasonCode != packets.ErrNotAuthorized.Code {
		t.Errorf("a client wrote $SYS: code %#x", ack.ReasonCode)
	}
}

// sysHook notes when the stock server gives a storage hook the values of $SYS to keep.
type sysHook struct {
	openHook
	ticks chan struct{}
}

func (h *sysHook) Provides(b byte) bool { return b == mqtt.OnSysInfoTick || h.openHook.Provides(b) }

func (h *sysHook) OnSysInfoTick(*system.Info) {
	select {
	case h.ticks <- struct{}{}:
	default:
	}
}
