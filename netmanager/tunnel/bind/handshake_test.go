package bind

import (
	"encoding/binary"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"

	"skerry.internal/netmanager/relay"
)

// handshakeMessage is a message of a handshake with a number: of an initiation its own, of a response that of the initiation.
func handshakeMessage(kind byte, number uint32, text string) []byte {
	length, at := initiationLength, 4
	if kind == response {
		length, at = responseLength, 8
	}
	m := make([]byte, length)
	m[0] = kind
	binary.LittleEndian.PutUint32(m[at:], number)
	copy(m[20:], text)
	return m
}

// newBind returns a bind with peers, and their keys.
func newBind(t *testing.T, peers int) (*Bind, []relay.Key) {
	t.Helper()
	key := func() relay.Key {
		k, err := relay.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	b, err := New(Config{PrivateKey: key()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Release)
	configs, keys := make([]PeerConfig, peers), make([]relay.Key, peers)
	for i := range configs {
		keys[i] = key().Public()
		configs[i].Key = keys[i]
	}
	if err := b.Set(configs); err != nil {
		t.Fatal(err)
	}
	return b, keys
}

func TestHandshakeMessagesPassOnce(t *testing.T) {
	b, _ := newBind(t, 0)
	first, second := handshakeMessage(initiation, 7, "first"), handshakeMessage(initiation, 7, "second")
	for i, c := range []struct {
		packet []byte
		want   bool
	}{
		{first, true}, {first, false}, {second, true}, {second, false}, {first, false},
		{[]byte{4, 0, 0, 0}, true}, {[]byte{4, 0, 0, 0}, true}, // data
		{[]byte{3, 0, 0, 0}, true}, {[]byte{3, 0, 0, 0}, true}, // a cookie
		{[]byte{2, 0, 0, 0}, false}, {make([]byte, responseLength), true},
	} {
		if got := b.handshakes.pass(c.packet); got != c.want {
			t.Errorf("packet %d: got %v, want %v", i, got, c.want)
		}
	}
	for i := range copiesKept {
		b.handshakes.pass(handshakeMessage(initiation, uint32(i), "flood"))
	}
	if !b.handshakes.pass(first) {
		t.Error("copies are remembered for good")
	}
}

// A message that comes straight and by the relay reaches WireGuard once.
func TestBothWays(t *testing.T) {
	b, keys := newBind(t, 1)
	receivers, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	c, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	relayed := receivers[len(receivers)-1]
	slab, packets := make([]byte, 1<<18), make([]conn.ReceivedPacket, b.BatchSize())
	first, second, data := handshakeMessage(initiation, 1, "first"), handshakeMessage(initiation, 2, "second"), make([]byte, 32)
	data[0] = 4
	for _, p := range [][]byte{first, data, data} {
		b.Deliver(keys[0], p)
	}
	if n, err := relayed(slab, packets); err != nil || n != 3 {
		t.Fatalf("by the relay: %d packets, %v", n, err)
	}
	for _, p := range [][]byte{first, second} {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	n, err := receivers[0](slab, packets)
	if err != nil || n != 1 || string(slab[packets[0].Offset:][:packets[0].Size]) != string(second) {
		t.Fatalf("straight: %d packets, %v", n, err)
	}
	b.Deliver(keys[0], second)
	if n, err := relayed(slab, packets); err != nil || n != 0 {
		t.Fatalf("by the relay, again: %d packets, %v", n, err)
	}
	for range inboxLength {
		b.Deliver(keys[0], data)
	}
	third := handshakeMessage(initiation, 3, "third")
	b.Deliver(keys[0], third) // no room: the copy must not count
	if _, err := c.Write(third); err != nil {
		t.Fatal(err)
	}
	if n, err := receivers[0](slab, packets); err != nil || n != 1 {
		t.Fatalf("the copy of one that was lost: %d packets, %v", n, err)
	}
}

// One that proves its way by a cookie is judged by each way.
func TestCookiesPassBothWays(t *testing.T) {
	b, _ := newBind(t, 0)
	m := handshakeMessage(initiation, 1, "")
	m[len(m)-1] = 1
	for range 2 {
		if !b.handshakes.pass(m) {
			t.Error("a copy that the other way proved nothing for is dropped")
		}
	}
}

func TestAnswersToTheLastHandshakeOnly(t *testing.T) {
	b, keys := newBind(t, 2)
	p, other := b.table.Load().byKey[keys[0]], b.table.Load().byKey[keys[1]]
	answer := func(number uint32, text string) bool {
		return b.handshakes.pass(handshakeMessage(response, number, text))
	}
	begin := func(p *Peer, number uint32) {
		t.Helper()
		if err := b.Send([][]byte{append(make([]byte, 16), handshakeMessage(initiation, number, "")...)}, p, 16); err != nil {
			t.Fatal(err)
		}
	}
	if answer(1, "to nothing") {
		t.Error("an answer to no handshake passes")
	}
	begin(p, 1)
	begin(other, 2)
	begin(p, 3)
	if answer(1, "late") || !answer(2, "of the other") || !b.Renounce(keys[0]) || b.Renounce(keys[1]) {
		t.Error("peers are mixed up")
	}
	if answer(3, "renounced") {
		t.Error("an answer passes that was renounced")
	}
	begin(p, 4)
	if !answer(4, "good") || answer(4, "good") || b.Renounce(keys[0]) {
		t.Error("an answer must pass once, and not be renounced while WireGuard works on it")
	}
	p.answered = time.Now().Add(-digesting)
	if !b.Renounce(keys[0]) || answer(4, "again") {
		t.Error("an answer that led to nothing is in the way for good")
	}
	begin(p, 5)
	if !answer(5, "forged") {
		t.Error("an answer does not pass")
	}
	p.answered = p.answered.Add(-digesting)
	if !answer(5, "forged again") || !b.Renounce(keys[0]) {
		t.Error("further answers hold off the next handshake")
	}
	begin(p, 6)
	if err := b.Set(nil); err != nil || answer(6, "of one who is gone") || len(b.handshakes.begun) != 0 {
		t.Errorf("%d handshakes are kept of peers that are gone, %v", len(b.handshakes.begun), err)
	}
	if begin(p, 7); !b.Renounce(keys[0]) || len(b.handshakes.begun) != 0 {
		t.Error("a peer that is gone has a handshake")
	}
}
