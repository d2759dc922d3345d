package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"skerry.internal/netmanager/tun/tuntest"
)

// end is a Device in this process whose kernel is the test.
type end struct {
	dev *Device
	tun *tuntest.TUN
	key Key
}

func startEnd(t *testing.T, key Key) *end {
	t.Helper()
	e := &end{tun: tuntest.New(1420, 4096), key: key}
	var err error
	e.dev, err = New(Config{PrivateKey: key, TUN: e.tun, Hidden: func(a netip.Addr) bool { return !a.IsLoopback() }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.dev.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return e
}

func (e *end) addr() *net.UDPAddr {
	return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(e.dev.Port())}
}

// packet returns a UDP packet with a payload.
func packet(from, to string, payload string) []byte {
	src, dst := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload)))
	b = append(b, 0, 0, 0, 0, 64, 17, 0, 0)
	b = append(append(b, src[:]...), dst[:]...)
	b = append(b, 0x10, 0, 0x20, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// expect waits for a packet with the payload and returns how many others came before.
func (e *end) expect(t *testing.T, payload string) (others int) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case got := <-e.tun.In:
			if bytes.HasSuffix(got, []byte(payload)) {
				return others
			}
			others++
		case <-deadline:
			t.Fatalf("%q did not come", payload)
		}
	}
}

// tap stands between two ends and keeps what it hands on.
type tap struct {
	conn *net.UDPConn // what both ends believe to be the other
	mu   sync.Mutex
	seen [][]byte // towards b
}

func startTap(t *testing.T, a, b *end) *tap {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{conn: conn}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			to := a.addr()
			if from.Port == int(a.dev.Port()) {
				to = b.addr()
				p.mu.Lock()
				p.seen = append(p.seen, bytes.Clone(buf[:n]))
				p.mu.Unlock()
			}
			_, _ = conn.WriteToUDP(buf[:n], to)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return p
}

func (p *tap) addr() netip.AddrPort { return p.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func prefixes(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// tapped starts two ends that talk through a tap.
func tapped(t *testing.T) (a, b *end, p *tap) {
	t.Helper()
	a, b = startEnd(t, newKey(t)), startEnd(t, newKey(t))
	p = startTap(t, a, b)
	set(t, a, Peer{Key: b.key.Public(), Prefixes: prefixes("10.160.0.2/32"), Endpoints: []netip.AddrPort{p.addr()}})
	set(t, b, Peer{Key: a.key.Public(), Prefixes: prefixes("10.160.0.1/32"), Endpoints: []netip.AddrPort{p.addr()}})
	a.reach(t, b, "10.160.0.1", "10.160.0.2")
	b.reach(t, a, "10.160.0.2", "10.160.0.1")
	return a, b, p
}

// reach sends packets, each another one, until the newest has come: while the way is being found they may be lost, as on any network.
func (e *end) reach(t *testing.T, to *end, src, dst string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for i := 0; ; i++ {
		hello := fmt.Sprintf("hello %d from %s", i, src)
		e.tun.Out <- packet(src, dst, hello)
		again := time.After(time.Second)
		for waiting := true; waiting; {
			select {
			case got := <-to.tun.In:
				if bytes.HasSuffix(got, []byte(hello)) {
					return
				}
			case <-again:
				waiting = false
			case <-deadline:
				t.Fatalf("no packet came from %s to %s", src, dst)
			}
		}
	}
}

func set(t *testing.T, e *end, peers ...Peer) {
	t.Helper()
	if err := e.dev.Set(peers); err != nil {
		t.Fatal(err)
	}
}

func TestReplays(t *testing.T) {
	a, b, p := tapped(t)
	for range 20 {
		a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "once only")
	}
	a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "the last")
	if n := b.expect(t, "the last"); n != 20 {
		t.Fatalf("got %d packets, want 20", n)
	}
	thief, err := net.DialUDP("udp4", nil, b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	p.mu.Lock()
	seen := p.seen
	p.mu.Unlock()
	for range 3 {
		for _, datagram := range seen {
			_, _ = thief.Write(datagram)                 // from elsewhere
			_, _ = p.conn.WriteToUDP(datagram, b.addr()) // and from where it came
		}
	}
	a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "after the replays")
	if n := b.expect(t, "after the replays"); n != 0 {
		t.Errorf("got %d packets twice", n)
	}
	b.tun.Out <- packet("10.160.0.2", "10.160.0.1", "not to the thief")
	a.expect(t, "not to the thief")
	if got := b.dev.Stats().Peers[0].Endpoint; got != p.addr() {
		t.Errorf("b sends to %v, want %v", got, p.addr())
	}
}

func TestUnknownKey(t *testing.T) {
	a, b, p := tapped(t)
	stranger := startEnd(t, newKey(t))
	set(t, stranger, Peer{Key: b.key.Public(), Prefixes: prefixes("10.160.0.2/32"), Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.dev.Port())}})
	for range 10 {
		stranger.tun.Out <- packet("10.160.0.1", "10.160.0.2", "forged")
	}
	for end := time.Now().Add(10 * time.Second); b.dev.Stats().Ignored == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stranger's probes were not counted")
		}
	}
	// A known peer that uses another's address is no better.
	a.tun.Out <- packet("10.160.0.77", "10.160.0.2", "forged source")
	a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "honest")
	if n := b.expect(t, "honest"); n != 0 {
		t.Errorf("got %d forged packets", n)
	}
	if got := b.dev.Stats(); len(got.Peers) != 1 || got.Peers[0].Endpoint != p.addr() {
		t.Errorf("got %+v", got)
	}
}

// garbage returns datagrams that are nothing, and some that look like something.
func garbage() [][]byte {
	var all [][]byte
	random := func(head []byte, n int) {
		b := append(bytes.Clone(head), make([]byte, n)...)
		_, _ = rand.Read(b[len(head):])
		all = append(all, b)
	}
	for _, n := range []int{0, 1, 3, 4, 20, 31, 32, 52, 64, 92, 148, 1400, 9000, 60000} {
		random(nil, n)
		for kind := range byte(6) {
			random([]byte{kind, 0, 0, 0}, n)
		}
		random([]byte("\xd5SkP"), n)
		random([]byte{1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42}, n)
	}
	random([]byte{1}, 147)
	random([]byte{1, 0, 0, 0}, 144) // the size of a handshake
	random([]byte{2, 0, 0, 0}, 88)
	random([]byte{3, 0, 0, 0}, 60)
	return all
}

func TestGarbage(t *testing.T) {
	a, b, p := tapped(t)
	stranger, err := net.DialUDP("udp4", nil, b.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	before := b.dev.Stats().Ignored
	for range 20 {
		for _, datagram := range garbage() {
			_, _ = stranger.Write(datagram)
			_, _ = p.conn.WriteToUDP(datagram, b.addr())
		}
		// The tag of a real probe, and what is sealed changed.
		p.mu.Lock()
		for _, datagram := range p.seen {
			if datagram[0] == 0xd5 {
				datagram = bytes.Clone(datagram)
				datagram[len(datagram)-1]++
				_, _ = stranger.Write(datagram)
			}
		}
		p.mu.Unlock()
		a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "through the noise")
		b.expect(t, "through the noise")
		b.tun.Out <- packet("10.160.0.2", "10.160.0.1", "and back")
		a.expect(t, "and back")
	}
	if got := b.dev.Stats().Ignored; got == before {
		t.Error("the garbage was not counted")
	}
}

func TestSetAppliesDifferencesOnly(t *testing.T) {
	a, b, p := tapped(t)
	peer := Peer{Key: b.key.Public(), Prefixes: prefixes("10.160.0.2/32"), Endpoints: []netip.AddrPort{p.addr()}}
	handshake := a.dev.Stats().Peers[0].Handshake
	other := Peer{Key: newKey(t).Public(), Prefixes: prefixes("10.160.0.3/32", "10.160.1.0/26")}
	for range 3 {
		set(t, a, peer)
		set(t, a, other, peer)
		a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "still the same session")
		b.expect(t, "still the same session")
	}
	if got := a.dev.sessionWith(b.key.Public()); !got.since.Before(time.Now()) || !handshake.Equal(peerStats(a, b.key.Public()).Handshake) {
		t.Errorf("a new handshake at %v, want that of %v", peerStats(a, b.key.Public()).Handshake, handshake)
	}
	// A prefix moves from one to the other.
	peer.Prefixes, other.Prefixes = prefixes("10.160.0.2/32", "10.160.1.0/26"), prefixes("10.160.0.3/32")
	set(t, a, other, peer)
	a.tun.Out <- packet("10.160.0.1", "10.160.1.5", "to the new owner")
	b.expect(t, "to the new owner")
	for name, bad := range map[string][]Peer{
		"twice":        {peer, peer},
		"same prefix":  {peer, {Key: other.Key, Prefixes: peer.Prefixes}},
		"no key":       {{}},
		"own key":      {{Key: a.key.Public()}},
		"bad prefix":   {{Key: other.Key, Prefixes: []netip.Prefix{{}}}},
		"bad interval": {{Key: other.Key, Keepalive: -time.Second}},
	} {
		if err := a.dev.Set(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	set(t, a)
	if got := a.dev.Stats().Peers; len(got) != 0 {
		t.Errorf("got %+v, want no peers", got)
	}
	set(t, a, peer)
	a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "back again")
	b.expect(t, "back again")
}

func peerStats(e *end, key Key) PeerStats {
	for _, p := range e.dev.Stats().Peers {
		if p.Key == key {
			return p
		}
	}
	return PeerStats{}
}

func TestManyPeers(t *testing.T) {
	t.Parallel()
	a, b, p := tapped(t)
	peers := []Peer{{Key: b.key.Public(), Prefixes: prefixes("10.160.0.2/32"), Endpoints: []netip.AddrPort{p.addr()}}}
	for i := range 1000 {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 161, byte(i >> 2), byte(i << 6)}), 26)
		peers = append(peers, Peer{Key: newKey(t).Public(), Prefixes: []netip.Prefix{prefix}})
	}
	began := time.Now()
	set(t, a, peers...)
	first := time.Since(began)
	began = time.Now()
	set(t, a, peers...)
	t.Logf("1,000 peers: %v, the same again %v", first, time.Since(began))
	for range 100 {
		a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "among many")
		b.expect(t, "among many")
	}
	set(t, a, peers[0])
	a.tun.Out <- packet("10.160.0.1", "10.160.0.2", "alone again")
	b.expect(t, "alone again")
}
