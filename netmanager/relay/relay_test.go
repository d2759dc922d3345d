package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

// start serves a relay that allows the nodes, and returns it with its URL.
func start(t *testing.T, secure bool, nodes ...Key) (*Server, string, *tls.Config) {
	t.Helper()
	s := NewServer(ServerConfig{Allow: func(k Key) bool { return slices.Contains(nodes, k) }}, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	mux := http.NewServeMux()
	mux.Handle(Path, s)
	h := httptest.NewUnstartedServer(mux)
	var cfg *tls.Config
	if secure {
		h.EnableHTTP2 = true
		h.StartTLS()
		cfg = h.Client().Transport.(*http.Transport).TLSClientConfig
	} else {
		h.Start()
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		h.Close()
	})
	waitFor(t, "the relay to run", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.running
	})
	return s, h.URL + Path, cfg
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func key(t *testing.T) Key {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// got is a packet that a client delivered.
type got struct {
	from   Key
	packet string
}

// join runs a client until the end of the test and returns it with what it receives.
func join(t *testing.T, url string, private Key, cfg *tls.Config) (*Client, <-chan got) {
	t.Helper()
	c, err := NewClient(ClientConfig{URL: url, PrivateKey: private, TLS: cfg}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	in := make(chan got, 10000)
	wg.Go(func() {
		_ = c.Run(ctx, func(from Key, packet []byte) { in <- got{from, string(packet)} })
	})
	return c, in
}

func TestRelayCarries(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			a, b := key(t), key(t)
			_, url, cfg := start(t, secure, a.Public(), b.Public())
			ca, fromA := join(t, url, a, cfg)
			cb, fromB := join(t, url, b, cfg)
			waitFor(t, "both streams", func() bool { return ca.Connected() && cb.Connected() })
			for _, size := range []int{0, 1, 1500, 9000, MaxPacket} {
				packet := strings.Repeat("x", size)
				if !ca.Send(b.Public(), []byte(packet)) {
					t.Fatalf("%d bytes not taken", size)
				}
				if g := <-fromB; g.from != a.Public() || g.packet != packet {
					t.Fatalf("got %d bytes from %s, want %d from %s", len(g.packet), g.from, size, a.Public())
				}
				cb.Send(a.Public(), []byte(packet))
				if g := <-fromA; g.from != b.Public() || g.packet != packet {
					t.Fatalf("way back: got %d bytes, want %d", len(g.packet), size)
				}
			}
			if ca.Send(b.Public(), make([]byte, MaxPacket+1)) {
				t.Error("a packet that is too large was taken")
			}
			ca.Send(key(t), []byte("to nobody"))
			ca.Send(b.Public(), []byte("to b"))
			if g := <-fromB; g.packet != "to b" {
				t.Errorf("got %q after a packet to nobody", g.packet)
			}
		})
	}
}

func TestRelayRefusesStrangers(t *testing.T) {
	a := key(t)
	s, url, _ := start(t, false, a.Public())
	stranger, public := key(t), a.Public()
	for who, claims := range map[string]Key{"a stranger": stranger.Public(), "one that claims a's key without holding it": public} {
		c, question := upgrade(t, url)
		given, err := answer(stranger, question)
		if err != nil {
			t.Fatal(err)
		}
		copy(given, claims[:])
		_, _ = c.Write(given)
		verdict, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(verdict, []byte{refused}) {
			t.Errorf("%s: got verdict %v, %v, want refused", who, verdict, err)
		}
		if s.Connected(claims) {
			t.Errorf("%s: there is a stream of %s", who, claims)
		}
	}
}

// upgrade opens a stream by hand and returns it with the relay's question.
func upgrade(t *testing.T, url string) (net.Conn, Key) {
	t.Helper()
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), Path)
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, Protocol)
	head := make([]byte, 0, 512)
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("after %q: %v", head, err)
		}
		head = append(head, b...)
	}
	question, err := readKey(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, question
}

// open opens a stream by hand as the node.
func open(t *testing.T, url string, private Key) net.Conn {
	t.Helper()
	c, question := upgrade(t, url)
	given, err := answer(private, question)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(given)
	verdict := make([]byte, 1)
	if _, err := io.ReadFull(c, verdict); err != nil || verdict[0] != accepted {
		t.Fatalf("got verdict %v, %v", verdict, err)
	}
	return c
}

func TestRelayEndsMalformedStreamsOnly(t *testing.T) {
	a, b, bad := key(t), key(t), key(t)
	s, url, _ := start(t, false, a.Public(), b.Public(), bad.Public())
	ca, _ := join(t, url, a, nil)
	_, fromB := join(t, url, b, nil)
	c := open(t, url, bad)
	waitFor(t, "all streams", func() bool { return s.Connected(a.Public()) && s.Connected(b.Public()) && s.Connected(bad.Public()) })
	_, _ = c.Write(binary.BigEndian.AppendUint16(nil, frameFixed-1))
	if n, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the malformed stream did not end by itself: %d bytes, %v", n, err)
	}
	waitFor(t, "no stream of it", func() bool { return !s.Connected(bad.Public()) })
	ca.Send(b.Public(), []byte("still here"))
	if g := <-fromB; g.packet != "still here" {
		t.Errorf("got %q", g.packet)
	}
}

// A node that does not read must not hold up others, nor cost more than its queue.
func TestRelayDropsForTheSlow(t *testing.T) {
	a, b, slow := key(t), key(t), key(t)
	s, url, _ := start(t, false, a.Public(), b.Public(), slow.Public())
	ca, _ := join(t, url, a, nil)
	_, fromB := join(t, url, b, nil)
	open(t, url, slow) // never read
	waitFor(t, "all streams", func() bool { return s.Connected(a.Public()) && s.Connected(b.Public()) && s.Connected(slow.Public()) })
	packet := make([]byte, 1400)
	st, _ := s.streams.Load(slow.Public())
	waitFor(t, "its queue to be full for a", func() bool {
		for range 1000 {
			ca.Send(slow.Public(), packet)
		}
		return !st.(*stream).queue.put(a.Public(), packet)
	})
	waitFor(t, "room", func() bool { return ca.Send(b.Public(), []byte("quick")) })
	select {
	case g := <-fromB:
		if g.packet != "quick" {
			t.Errorf("got %q", g.packet)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("held up by the slow one")
	}
}

// One sender leaves room in a queue that does not empty.
func TestQueueIsShared(t *testing.T) {
	q := newSharedQueue()
	packet := make([]byte, 1452)
	fill := func(k Key) (n int) {
		for q.put(k, packet) {
			n++
		}
		return n
	}
	first, second := fill(Key{1}), fill(Key{2})
	if second < first/3 || first < second {
		t.Errorf("got %d and %d packets in", first, second)
	}
	q.take()
	if again := fill(Key{1}); again != first {
		t.Errorf("got %d packets in when it is empty again, want %d", again, first)
	}
}

// A large packet does not cost an idle stream a large buffer for ever.
func TestReaderOfAnIdleStream(t *testing.T) {
	var stream bytes.Buffer
	r := reader{from: &stream}
	for _, packet := range []string{strings.Repeat("x", 9000), "", strings.Repeat("y", 1400)} {
		k := Key{1}
		if packet == "" {
			k = Key{} // a beat
		}
		stream.Write(appendFrame(nil, k, []byte(packet)))
		got, p, err := r.next()
		if err != nil || got != k || string(p) != packet {
			t.Fatalf("got %d bytes from %s, %v, want %d", len(p), got, err, len(packet))
		}
		if packet != "" && (len(r.buf) > readSmall) != (len(packet) > readSmall) {
			t.Errorf("%d bytes of buffer after a packet of %d", len(r.buf), len(packet))
		}
	}
}

// Whoever opens streams and proves nothing takes no room from others for long, and his own address's only.
func TestRelayBoundsGreetings(t *testing.T) {
	a := key(t)
	s, url, _ := start(t, false, a.Public())
	var waiting []net.Conn
	for range maxGreeting {
		c, _ := upgrade(t, url)
		waiting = append(waiting, c)
	}
	resp, err := http.Get(url) // no stream, and answered
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	c, err := net.Dial("tcp", waiting[0].RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, Protocol)
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("got %d bytes, %v, want the stream closed", n, err)
	}
	waiting[0].Close()
	client, _ := join(t, url, a, nil)
	waitFor(t, "a stream", client.Connected)
	for _, c := range waiting {
		c.Close()
	}
	waitFor(t, "nothing to be counted any more", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.greeted) == 0
	})
}

// A node that is removed while its stream is opened has none.
func TestRelayAsksAgain(t *testing.T) {
	a := key(t)
	asked := 0
	s, url, _ := start(t, false)
	s.cfg.Allow = func(Key) bool { asked++; return asked == 1 }
	c, question := upgrade(t, url)
	given, err := answer(a, question)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(given)
	verdict := make([]byte, 1)
	if _, err := io.ReadFull(c, verdict); err == nil && verdict[0] == accepted {
		t.Error("it has a stream")
	}
	waitFor(t, "no stream", func() bool { return !s.Connected(a.Public()) })
}

func TestRelayRedial(t *testing.T) {
	a, b := key(t), key(t)
	s, url, _ := start(t, false, a.Public(), b.Public())
	ca, fromA := join(t, url, a, nil)
	cb, _ := join(t, url, b, nil)
	waitFor(t, "both streams", func() bool { return ca.Connected() && cb.Connected() })
	old, _ := s.streams.Load(a.Public())
	ca.Redial()
	waitFor(t, "a new stream", func() bool {
		now, ok := s.streams.Load(a.Public())
		return ok && now != old && ca.Connected()
	})
	cb.Send(a.Public(), []byte("again"))
	if g := <-fromA; g.packet != "again" {
		t.Errorf("got %q", g.packet)
	}
	s.Disconnect(a.Public())
	waitFor(t, "the client to come back by itself", func() bool {
		now, ok := s.streams.Load(a.Public())
		return ok && now != old && ca.Connected()
	})
}

func TestRelayIsNoWebPage(t *testing.T) {
	_, url, _ := start(t, false)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("got %s", resp.Status)
	}
}

func TestKeyText(t *testing.T) {
	k := key(t)
	back, err := ParseKey(k.String())
	if err != nil || back != k {
		t.Errorf("got %v, %v, want %v", back, err, k)
	}
	for _, bad := range []string{"", "x", k.String()[:43], k.String() + "=", strings.Repeat("A", 48)} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q was taken for a key", bad)
		}
	}
	// A low-order public key must be an error, not a shared secret of zeros.
	if _, err := k.Shared(Key{}); err == nil {
		t.Error("the zero key gave a secret")
	}
}

func BenchmarkRelay(b *testing.B) {
	q := newQueue()
	packet := make([]byte, 1452)
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		if !q.put(Key{1}, packet) {
			q.take()
		}
	}
}
