package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestHostilePackets(t *testing.T) {
	cfg := open()
	cfg.MaxPacket = 64 << 10
	b, addr := start(t, cfg)
	witness := login(t, addr, 5, "witness")
	closes := map[string][]byte{
		"connack":                 {0x20, 2, 0, 0},
		"suback":                  {0x90, 3, 0, 1, 0},
		"unsuback":                {0xb0, 2, 0, 1},
		"pingresp":                {0xd0, 0},
		"second connect":          encode(connect(5, "x")),
		"type 0":                  {0x00, 0},
		"auth":                    {0xf0, 0},
		"publish, QoS 3":          {0x36, 5, 0, 1, 't', 0, 1},
		"publish, no topic":       {0x30, 3, 0, 0, 0},
		"publish, wildcard":       {0x30, 4, 0, 1, '#', 0},
		"publish, invalid UTF-8":  {0x30, 4, 0, 1, 0xff, 0},
		"publish, NUL":            {0x30, 4, 0, 1, 0x00, 0},
		"publish, id 0":           {0x32, 6, 0, 1, 't', 0, 0, 0},
		"publish, topic too long": {0x30, 4, 0xff, 0xff, 't', 0},
		"publish, alias":          {0x30, 7, 0, 1, 't', 3, 0x23, 0, 1},
		"publish, unknown alias":  {0x30, 6, 0, 0, 3, 0x23, 0, 9},
		"publish, property twice": {0x30, 5, 0, 1, 't', 0x7f, 0x26},
		"publish, too large":      {0x30, 0x80, 0x80, 0x08},
		"length of five bytes":    {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"subscribe, none":         {0x82, 3, 0, 1, 0},
		"subscribe, flags":        {0x80, 3, 0, 1, 0},
		"subscribe, id 0":         {0x82, 7, 0, 0, 0, 0, 1, 't', 0},
		"subscribe, QoS 3":        {0x82, 7, 0, 1, 0, 0, 1, 't', 3},
		"subscribe, cut":          poison,
		"unsubscribe, none":       {0xa2, 3, 0, 1, 0},
		"puback, cut":             {0x40, 1, 0},
	}
	for name, raw := range closes {
		c := login(t, addr, 5, "hostile")
		c.raw(raw...)
		c.wantClosed()
		if t.Failed() {
			t.Fatal(name)
		}
	}
	harmless := map[string][]byte{
		"puback of nothing":  {0x40, 2, 0, 9},
		"pubrec of nothing":  {0x50, 2, 0, 9},
		"pubrel of nothing":  {0x62, 2, 0, 9},
		"pubcomp of nothing": {0x70, 2, 0, 9},
		"unsubscribe of it":  {0xa2, 6, 0, 1, 0, 0, 1, 't'},
	}
	c := login(t, addr, 5, "clumsy")
	for name, raw := range harmless {
		c.raw(raw...)
		c.raw(0xc0, 0)
		for c.mustRecv().FixedHeader.Type != packets.Pingresp {
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
	for _, first := range [][]byte{{0x30, 3, 0, 1, 't'}, {0x82, 0}, {0xc0, 0}, {0xe0, 0}, []byte("GET / HTTP/1.1\r\n\r\n"), {0x10, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		d := dial(t, addr)
		d.raw(first...)
		d.wantClosed()
	}
	witness.publish("t", "still here", 1, false)
	eventually(t, "the others are gone", func() bool { return b.Stats().Clients == 2 && b.Stats().Pending == 0 })
}

// The index walks a topic in the square of its levels.
func TestDeepTopicsAreRefused(t *testing.T) {
	deep := strings.Repeat("/", 10000)
	took := func(addr string) time.Duration {
		c := login(t, addr, 5, "c")
		began := time.Now()
		c.publish(deep, "x", 1, false)
		c.raw(0xc0, 0)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		for c.mustRecv().FixedHeader.Type != packets.Pingresp {
		}
		return time.Since(began)
	}
	theirs := time.Hour
	onStock(t, func(t *testing.T) {
		c := login(t, stock(t, nil), 5, "s")
		c.send(c.subscription(packets.Subscription{Filter: deep}))
		began := time.Now()
		if _, err := c.recv(time.Minute); err != nil {
			t.Fatal(err)
		}
		theirs = time.Since(began)
	})
	b, addr := start(t, open())
	ours := min(took(addr), took(addr), took(addr)) // each may have waited for another program
	t.Logf("one SUBSCRIBE of 10,000 levels takes the stock server %v, a publish is refused by ours in %v", theirs, ours)
	if theirs < 20*ours {
		t.Errorf("stock %v, ours %v: this defect is gone", theirs, ours)
	}
	if b.Stats().Refused != 3 {
		t.Errorf("%+v", b.Stats())
	}
}

func TestSubscriptionsHaveABound(t *testing.T) {
	cfg := open()
	cfg.MaxSubscriptions = 10
	_, addr := start(t, cfg)
	c := login(t, addr, 5, "c")
	for i := range 12 {
		want := byte(0)
		if i >= 10 {
			want = packets.ErrQuotaExceeded.Code
		}
		if code := c.subscribe(fmt.Sprint("t/", i), 0); code != want {
			t.Errorf("filter %d: code %#x, want %#x", i, code, want)
		}
	}
	if code := c.subscribe("t/3", 1); code != 1 {
		t.Errorf("one that exists: code %#x", code)
	}
}

func TestPendingConnectionsHaveABound(t *testing.T) {
	cfg := open()
	cfg.MaxPending = 5
	b, addr := start(t, cfg)
	silent := func() int { b.mu.Lock(); defer b.mu.Unlock(); return b.silent.Len() }
	var waiting []*client
	for i := range 5 { // one after the other: two at a time may take their places in any order
		waiting = append(waiting, dial(t, addr))
		eventually(t, "one more to wait", func() bool { return silent() == i+1 })
	}
	login(t, addr, 4, "c") // at once, though nobody has left
	waiting[0].wantClosed()
	if n := b.Stats().Crowded; n != 1 {
		t.Errorf("got %d crowded, want 1", n)
	}
	eventually(t, "both to be pending no more", func() bool { return b.Stats().Pending == 4 }) // the client sees its end before the broker has counted it
	for range 50 {
		dial(t, addr)
	}
	eventually(t, "the last to have its place", func() bool { return b.Stats().Crowded == 50 && silent() == 5 })
	login(t, addr, 4, "d")
	for _, c := range waiting[1:] {
		c.wantClosed()
	}
	eventually(t, "no more to be pending than may be", func() bool { return b.Stats().Pending <= 5 })
}

// Who has sent a CONNECT is not dropped for those that come after, however long the owner thinks about it.
func TestPendingClientsKeepTheirPlace(t *testing.T) {
	cfg := open()
	cfg.MaxPending = 3
	think := make(chan struct{})
	cfg.Authenticate = func(l Login) (Client, error) {
		<-think
		return Client{}, nil
	}
	b, addr := start(t, cfg)
	var asked []*client
	for i := range 3 {
		c := dial(t, addr)
		c.v = 4
		pk := connect(4, fmt.Sprint("c", i))
		c.send(pk)
		asked = append(asked, c)
	}
	silent := func() int { b.mu.Lock(); defer b.mu.Unlock(); return b.silent.Len() }
	eventually(t, "three are thought about", func() bool { return b.Stats().Pending == 3 && silent() == 0 })
	dial(t, addr).wantClosed()
	close(think)
	for _, c := range asked {
		if pk := c.mustRecv(); pk.FixedHeader.Type != packets.Connack || pk.ReasonCode != 0 {
			t.Errorf("got %+v, want to be admitted", pk)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	bad := open()
	bad.Authenticate, bad.Allow = nil, nil
	bad.MaxPacket, bad.WriteTimeout, bad.SessionExpiry = 10, -1, -1
	_, err := New(bad, nil)
	for _, want := range []string{"authenticate", "allow", "max packet", "write timeout", "session expiry"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := open()
	cfg.Listeners = append(cfg.Listeners, Listener{Addr: taken.Addr().String()})
	if _, err := New(cfg, nil); err == nil {
		t.Error("listens on an address that is taken")
	}
}

// FuzzConnection sends raw bytes to a new connection, and the same to one that is admitted. The broker must answer others.
func FuzzConnection(f *testing.F) {
	for v := byte(3); v <= 5; v++ {
		c := client{v: v}
		pk := connect(v, "f")
		withWill("w", "x", true)(&pk)
		sub := c.subscription(packets.Subscription{Filter: "a/+", Qos: 2}, packets.Subscription{Filter: "$share/g/#"})
		f.Add(v, bytes.Join([][]byte{encode(pk), encode(sub), encode(c.message("a/b", "x", 2, true)), {0xe0, 0}}, nil))
		f.Add(v, encode(sub))
	}
	f.Add(byte(5), poison)
	cfg := open()
	cfg.ConnectTimeout = 500 * time.Millisecond
	b, addr := start(f, cfg)
	f.Fuzz(func(t *testing.T, v byte, raw []byte) {
		for _, admitted := range []bool{false, true} {
			c := dial(t, addr)
			if admitted {
				c = login(t, addr, 4+v%2, "fuzz")
			}
			c.raw(raw...)
			c.Conn.(*net.TCPConn).CloseWrite()
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open")
			}
			c.Close()
		}
		login(t, addr, 5, "witness").publish("t", "x", 1, false)
		if n := b.Stats().Pending; n > 10 {
			t.Errorf("%d connections hang", n)
		}
	})
}
