package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestRetained(t *testing.T) {
	b, addr := start(t, open())
	pub := login(t, addr, 4, "pub")
	for _, topic := range []string{"a", "a/b", "a/b/c", "x/y"} {
		pub.publish(topic, "of "+topic, 1, true)
	}
	pub.publish("a/b", "newer", 1, true)
	pub.publish("x/y", "", 1, true)
	for filter, want := range map[string][]string{
		"a/#":        {"a/b/c=of a/b/c", "a/b=newer", "a=of a"},
		"a/+":        {"a/b=newer"},
		"#":          {"a/b/c=of a/b/c", "a/b=newer", "a=of a"},
		"a/b":        {"a/b=newer"},
		"x/#":        nil,
		"$share/g/#": nil,
	} {
		sub := login(t, addr, 4, "sub")
		sub.subscribe(filter, 1)
		var got []string
		for range want {
			pk := sub.want(packets.Publish)
			if !pk.FixedHeader.Retain {
				t.Errorf("%s under %s: retain is not set", pk.TopicName, filter)
			}
			got = append(got, pk.TopicName+"="+string(pk.Payload))
		}
		sub.silent()
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", filter, got, want)
		}
	}
	if n := b.Stats().Retained; n != 3 {
		t.Errorf("retained: %d, want 3", n)
	}
}

// matches says whether a filter shows a topic, by the words of the standard.
func matches(filter, topic []string) bool {
	switch {
	case len(filter) > 0 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(topic) == 0:
		return len(filter) == len(topic)
	case filter[0] == "+" || filter[0] == topic[0]:
		return matches(filter[1:], topic[1:])
	}
	return false
}

func TestTreeOfRetained(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	word := func(last bool, words ...string) string {
		all := make([]string, 1+random.IntN(5))
		for i := range all {
			all[i] = words[random.IntN(len(words))]
		}
		if last && random.IntN(3) == 0 {
			all = append(all, "#")
		}
		return strings.Join(all, "/")
	}
	var tr tree
	kept := map[string]*message{}
	for range 3000 {
		m := &message{topic: word(false, "a", "b", "c", "", "$x")}
		if random.IntN(2) == 0 {
			tr.put(m)
			kept[m.topic] = m
		} else {
			tr.remove(m.topic)
			delete(kept, m.topic)
		}
		if tr.get(m.topic) != kept[m.topic] {
			t.Fatalf("%q: got %v, want %v", m.topic, tr.get(m.topic), kept[m.topic])
		}
		filter := word(true, "a", "b", "c", "", "+")
		var want, got []string
		for topic := range kept {
			if matches(strings.Split(filter, "/"), strings.Split(topic, "/")) {
				want = append(want, topic)
			}
		}
		tr.under(filter, func(m *message) { got = append(got, m.topic) })
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%q: got %q, want %q", filter, got, want)
		}
	}
	if len(kept) < 100 {
		t.Fatalf("only %d topics", len(kept))
	}
	for topic := range kept {
		tr.remove(topic)
	}
	if len(tr.below) != 0 {
		t.Errorf("an empty tree has branches: %v", tr.below)
	}
}

// The stock server sends retained messages through a queue of 8,192 that drops.
func TestManyRetainedMessagesArrive(t *testing.T) {
	const n = 10_000
	b, addr := start(t, open())
	for i := range n {
		if err := b.Publish(Message{Topic: fmt.Sprint("many/", i), Payload: make([]byte, 400), QoS: 1, Retain: true}); err != nil {
			t.Fatal(err)
		}
	}
	sub := login(t, addr, 4, "sub")
	sub.send(sub.subscription(packets.Subscription{Filter: "many/#", Qos: 1}))
	sub.want(packets.Suback)
	for i := range n {
		pk, err := sub.recv(patience)
		if err != nil {
			t.Fatalf("after %d of %d: %v %+v", i, n, err, b.Stats())
		}
		sub.ack(pk)
	}
}

// windowed logs in with a session that lasts and a small Receive Maximum, beside n retained messages that are far more than may wait.
func windowed(t *testing.T, n int) (again func() *client) {
	cfg := open()
	cfg.WriteBuffer, cfg.SessionExpiry = 64<<10, time.Minute
	b, addr := start(t, cfg)
	for i := range n {
		m := Message{Topic: fmt.Sprint("many/", i), Payload: make([]byte, 400), QoS: byte(1 + i%2), Retain: true}
		if err := b.Publish(m); err != nil {
			t.Fatal(err)
		}
	}
	return func() *client {
		return login(t, addr, 5, "sub", unclean, func(pk *packets.Packet) {
			pk.Properties.ReceiveMaximum = 20
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 60, true
		})
	}
}

// takeUntil reads and acknowledges, and hands over each publish, until a packet of that kind comes.
func (c *client) takeUntil(kind byte, each func(packets.Packet) (more bool)) {
	c.t.Helper()
	for {
		pk, err := c.recv(patience)
		if err != nil {
			c.t.Fatal(err)
		}
		hi, lo := byte(pk.PacketID>>8), byte(pk.PacketID)
		switch pk.FixedHeader.Type {
		case kind:
			return
		case packets.Publish:
			c.raw(0x30+pk.FixedHeader.Qos<<4, 2, hi, lo) // PUBACK or PUBREC
			if !each(pk) {
				return
			}
		case packets.Pubrel:
			c.raw(0x70, 2, hi, lo)
		}
	}
}

// Retained messages wait for the acknowledgements of those before, over a new connection too.
func TestRetainedMessagesKeepToTheWindow(t *testing.T) {
	const n = 2000
	login := windowed(t, n)
	sub := login()
	sub.subscribe("many/#", 2)
	var held []packets.Packet
	for range 20 {
		held = append(held, sub.want(packets.Publish))
	}
	sub.silent() // no more, and it is listened to
	if held[0].FixedHeader.Dup || !held[0].FixedHeader.Retain {
		t.Errorf("got %+v", held[0].FixedHeader)
	}
	sub.Close()
	got := map[string]bool{}
	for _, until := range []int{n / 2, n} { // with a new connection between
		sub = login()
		sub.takeUntil(packets.Reserved, func(pk packets.Packet) bool {
			if got[pk.TopicName] && !pk.FixedHeader.Dup {
				t.Errorf("%s came twice", pk.TopicName)
			}
			got[pk.TopicName] = true
			return len(got) < until
		})
		sub.Close()
	}
}

func TestUnsubscribeEndsRetained(t *testing.T) {
	const n = 2000
	sub := windowed(t, n)()
	sub.subscribe("many/#", 2)
	sub.send(packets.Packet{
		ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1},
		PacketID: sub.nextID(), Filters: packets.Subscriptions{{Filter: "many/#"}},
	})
	got := 0
	count := func(packets.Packet) bool { got++; return true }
	sub.takeUntil(packets.Unsuback, count)
	for before := -1; got > before; { // what was under way
		before = got
		sub.raw(0xc0, 0)
		sub.takeUntil(packets.Pingresp, count)
	}
	if got > n/2 {
		t.Errorf("%d of %d came", got, n)
	}
}

func TestRetainedHasABound(t *testing.T) {
	cfg := open()
	cfg.MaxRetained = 4400 // four messages and five branches
	b, addr := start(t, cfg)
	c := login(t, addr, 5, "c")
	for i := range 4 {
		c.publish(fmt.Sprint("t/", i), "x", 1, true)
	}
	if ack := c.publish("t/5", "x", 1, true); ack.ReasonCode != packets.ErrQuotaExceeded.Code {
		t.Errorf("code %#x", ack.ReasonCode)
	}
	if err := b.Publish(Message{Topic: "t/5", Payload: []byte("x"), Retain: true}); !errors.Is(err, ErrRetainedFull) {
		t.Errorf("got %v", err)
	}
	c.publish("t/0", "", 1, true)
	if ack := c.publish("t/5", "x", 1, true); ack.ReasonCode != 0 {
		t.Errorf("with room again: code %#x", ack.ReasonCode)
	}
	for i := range 6 {
		c.publish(fmt.Sprint("t/", i), "", 1, true)
	}
	if b.retainMu.Lock(); b.retainedBytes != 0 {
		t.Errorf("nothing is kept and counts for %d bytes", b.retainedBytes)
	}
	b.retainMu.Unlock()
	// What else a message can make the broker keep counts as well.
	deep := strings.Repeat("/", 14)
	if ack := c.publish(deep, "x", 1, true); ack.ReasonCode != packets.ErrQuotaExceeded.Code {
		t.Errorf("many levels: code %#x", ack.ReasonCode)
	}
	pk := c.message("u", "x", 1, true)
	pk.Properties.User = make([]packets.UserProperty, 130)
	for i := range pk.Properties.User {
		pk.Properties.User[i] = packets.UserProperty{Key: "k", Val: "v"}
	}
	c.send(pk)
	if ack := c.want(packets.Puback); ack.ReasonCode != packets.ErrQuotaExceeded.Code {
		t.Errorf("many properties: code %#x", ack.ReasonCode)
	}
}

// A subscriber must never see an old retained value after a newer one.
func TestRetainedValueNeverGoesBack(t *testing.T) {
	b, addr := start(t, open())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = b.Publish(Message{Topic: "n", Payload: fmt.Appendf(nil, "%09d", i), Retain: true})
			}
		}
	})
	for i := range 30 {
		sub := login(t, addr, 4, fmt.Sprint("sub", i))
		sub.subscribe("n", 0)
		last := ""
		for range 100 {
			pk := sub.want(packets.Publish)
			if string(pk.Payload) < last {
				t.Fatalf("%s came after %s", pk.Payload, last)
			}
			last = string(pk.Payload)
		}
		sub.Close()
	}
	close(stop)
	wg.Wait()
}

func TestMessageExpiry(t *testing.T) {
	cfg := open()
	cfg.SessionExpiry = time.Minute
	b, addr := start(t, cfg)
	sub := login(t, addr, 4, "sub", unclean)
	sub.subscribe("t/#", 1)
	sub.Close()
	eventually(t, "away", func() bool { return b.Stats().Sessions == 1 })
	pub := login(t, addr, 5, "pub")
	short := pub.message("t/short", "x", 1, true)
	short.Properties.MessageExpiryInterval = 1
	pub.send(short)
	pub.want(packets.Puback)
	long := pub.message("t/long", "y", 1, true)
	long.Properties.MessageExpiryInterval = 3600
	pub.send(long)
	pub.want(packets.Puback)
	eventually(t, "expired", func() bool { return b.Stats().Retained == 1 })
	login(t, addr, 4, "sub", unclean).wantMessage("t/long", "y")
	c := login(t, addr, 5, "c")
	c.subscribe("t/#", 1)
	if pk := c.wantMessage("t/long", "y"); pk.Properties.MessageExpiryInterval >= 3600 || pk.Properties.MessageExpiryInterval < 3590 {
		t.Errorf("left: %d", pk.Properties.MessageExpiryInterval)
	}
}

// A figure that was refused because the store of retained messages was full is there once that has room, also where it has not changed since.
func TestSysIsTriedAgain(t *testing.T) {
	cfg := open()
	cfg.Listeners, cfg.SysInterval, cfg.MaxRetained = nil, time.Second, 1
	b, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	y, now := newSys(b), time.Now()
	y.publish(now)
	if n := b.Stats().Retained; n != 0 {
		t.Fatalf("%d figures are kept where nothing has room", n)
	}
	b.cfg.MaxRetained = 1 << 20
	y.publish(now.Add(time.Second))
	if m := b.retained.get("$SYS/broker/clients/slow"); m == nil || string(m.payload) != "0" {
		t.Errorf("got %+v", m)
	}
}

// What a message keeps is no part of the packet that it came in.
func TestMessagesAreCopies(t *testing.T) {
	buf := []byte("abcde")
	part := func(i int) string { return unsafe.String(&buf[i], 1) } // as the library's strings are
	pk := packets.Packet{TopicName: part(0), Payload: buf[1:2], Properties: packets.Properties{ContentType: part(2), ResponseTopic: part(3),
		CorrelationData: buf[1:2], User: []packets.UserProperty{{Key: part(4), Val: part(4)}}}}
	m := newMessage(pk, "c")
	copy(buf, "-----")
	pk.Properties.User[0].Key = "-"
	got := fmt.Sprint(m.topic, string(m.payload), m.props.ContentType, m.props.ResponseTopic, string(m.props.CorrelationData), m.props.User)
	if want := fmt.Sprint("a", "b", "c", "d", "b", []packets.UserProperty{{Key: "e", Val: "e"}}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
