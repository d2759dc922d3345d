package eio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// bench is a Server whose connections the test serves.
type bench struct {
	*Server
	url   string
	conns chan *Conn
}

func serve(t *testing.T) *bench {
	t.Helper()
	b := &bench{conns: make(chan *Conn, 16)}
	s, err := New(Config{PingInterval: time.Minute, PingTimeout: time.Minute, MaxMessage: 1 << 10, IOTimeout: 5 * time.Second},
		func(c *Conn) bool { b.conns <- c; return true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Server = s
	front := httptest.NewServer(s)
	b.url = front.URL
	t.Cleanup(func() {
		s.mu.Lock()
		var open []*Conn
		for _, c := range s.conns {
			open = append(open, c)
		}
		s.mu.Unlock()
		for _, c := range open {
			c.Close()
		}
		front.Close()
		if n := b.open(); n != 0 {
			t.Errorf("%d connections left", n)
		}
	})
	return b
}

// open returns the number of open connections.
func (b *bench) open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.Server.conns)
}

// polling opens a polling connection and returns its address and its server side.
func (b *bench) polling(t *testing.T, revision int) (string, *Conn) {
	t.Helper()
	address := fmt.Sprintf("%s/?EIO=%d&transport=polling", b.url, revision)
	body := get(t, address)
	var open struct{ SID string }
	if err := json.Unmarshal([]byte(body[strings.Index(body, "{"):]), &open); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return address + "&sid=" + open.SID, <-b.conns
}

func get(t *testing.T, address string) string {
	t.Helper()
	status, body := request(t, http.MethodGet, address, "")
	if status != http.StatusOK {
		t.Fatalf("got %d %s", status, body)
	}
	return body
}

func request(t *testing.T, method, address, body string) (int, string) {
	t.Helper()
	status, answer, err := try(t.Context(), method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	return status, answer
}

func try(ctx context.Context, method, address, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func probe(t *testing.T, address string) *websocket.Conn {
	t.Helper()
	address = strings.Replace(strings.Replace(address, "http", "ws", 1), "transport=polling", "transport=websocket", 1)
	ws, _, err := websocket.DefaultDialer.Dial(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	return ws
}

func say(t *testing.T, ws *websocket.Conn, packet, want string) {
	t.Helper()
	if err := ws.WriteMessage(websocket.TextMessage, []byte(packet)); err != nil {
		t.Fatal(err)
	}
	if want == "" {
		return
	}
	if _, got, err := ws.ReadMessage(); err != nil || string(got) != want {
		t.Fatalf("%s: got %q %v, want %q", packet, got, err, want)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (c *Conn) polled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.polling
}

func TestPollingBothWays(t *testing.T) {
	for revision, form := range map[int][2]string{3: {"2:4a3:4bc", "2:4x2:4y"}, 4: {"4a\x1e4bc", "4x\x1e4y"}} {
		b := serve(t)
		address, c := b.polling(t, revision)
		if err := errors.Join(c.Write("a"), c.Write("bc")); err != nil {
			t.Fatal(err)
		}
		if got := get(t, address); got != form[0] {
			t.Errorf("got %q, want %q", got, form[0])
		}
		if err := c.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if status, body, err := try(context.Background(), http.MethodPost, address, form[1]); status != http.StatusOK || body != "ok" {
				t.Errorf("post: %d %s %v", status, body, err)
			}
		})
		for _, want := range []string{"x", "y"} {
			if got, err := c.Read(t.Context()); err != nil || got != want {
				t.Errorf("got %q %v, want %q", got, err, want)
			}
		}
		wg.Wait()
	}
}

// TestUpgrade polls during the upgrade, as clients do, and loses nothing of what is said meanwhile.
func TestUpgrade(t *testing.T) {
	for _, revision := range []int{3, 4} {
		b := serve(t)
		address, c := b.polling(t, revision)
		polls := make(chan string, 1)
		go func() {
			_, body, _ := try(context.Background(), http.MethodGet, address, "")
			polls <- body
		}()
		waitFor(t, "the poll", c.polled)
		ws := probe(t, address)
		say(t, ws, "2probe", "3probe")
		if got, want := <-polls, map[int]string{3: "1:6", 4: "6"}[revision]; got != want {
			t.Errorf("the poll got %q, want a noop", got)
		}
		if err := c.Write("meanwhile"); err != nil {
			t.Fatal(err)
		}
		say(t, ws, "5", "4meanwhile")
		if err := c.Write("later"); err != nil {
			t.Fatal(err)
		}
		say(t, ws, "4hi", "4later")
		if got, err := c.Read(t.Context()); err != nil || got != "hi" {
			t.Errorf("got %q, %v", got, err)
		}
		ws.Close()
		if _, err := c.Read(t.Context()); err == nil {
			t.Error("a closed websocket: want an error")
		}
	}
}

func TestUpgradeThatFails(t *testing.T) {
	b := serve(t)
	address, c := b.polling(t, 4)
	ws := probe(t, address)
	say(t, ws, "2prob", "")
	if _, _, err := ws.ReadMessage(); err == nil {
		t.Error("a wrong probe: want the websocket closed")
	}
	waitFor(t, "the end of the attempt", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.upgrading
	})
	if err := c.Write("still here"); err != nil {
		t.Fatal(err)
	}
	if got := get(t, address); got != "4still here" {
		t.Errorf("got %q", got)
	}
}

func TestOneUpgradeAtATime(t *testing.T) {
	b := serve(t)
	address, c := b.polling(t, 4)
	first := probe(t, address)
	say(t, first, "2probe", "3probe")
	second := strings.Replace(strings.Replace(address, "http", "ws", 1), "transport=polling", "transport=websocket", 1)
	if _, resp, err := websocket.DefaultDialer.Dial(second, nil); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a second upgrade: %v", err)
	}
	c.Close()
	if _, _, err := first.ReadMessage(); err == nil {
		t.Error("the end of the connection leaves a probe open")
	}
}

func TestCloseAnswersThePoll(t *testing.T) {
	b := serve(t)
	address, c := b.polling(t, 4)
	polls := make(chan string, 1)
	go func() {
		_, body, _ := try(context.Background(), http.MethodGet, address, "")
		polls <- body
	}()
	waitFor(t, "the poll", c.polled)
	c.Close()
	c.Close()
	if got := <-polls; got != "1" {
		t.Errorf("got %q, want a close packet", got)
	}
	if err := c.Write("x"); !errors.Is(err, io.EOF) {
		t.Errorf("write after the end: %v", err)
	}
	if status, _ := request(t, http.MethodGet, address, ""); status != http.StatusBadRequest {
		t.Errorf("poll after the end: %d", status)
	}
}

func TestClientCloses(t *testing.T) {
	b := serve(t)
	address, c := b.polling(t, 4)
	if status, body := request(t, http.MethodPost, address, "1"); status != http.StatusOK {
		t.Errorf("got %d %s", status, body)
	}
	if _, err := c.Read(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

// TestClientHangsUp lets a client leave a poll and come back.
func TestClientHangsUp(t *testing.T) {
	b := serve(t)
	address, c := b.polling(t, 4)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, _, err := try(ctx, http.MethodGet, address, "")
		gone <- err
	}()
	waitFor(t, "the poll", c.polled)
	cancel()
	if err := <-gone; err == nil {
		t.Fatal("the poll was answered")
	}
	waitFor(t, "the server to notice", func() bool { return !c.polled() })
	if err := c.Write("x"); err != nil {
		t.Fatal(err)
	}
	if got := get(t, address); got != "4x" {
		t.Errorf("got %q", got)
	}
}

func TestUnreadQueueIsBounded(t *testing.T) {
	b := serve(t)
	_, c := b.polling(t, 4)
	var err error
	for range 2 * maxQueued {
		err = errors.Join(err, c.Write("x"))
	}
	if n := b.open(); !errors.Is(err, errQueue) || n != 0 {
		t.Errorf("got %v, %d connections", err, n)
	}
}

func TestOtherRevisionIsAnotherSession(t *testing.T) {
	b := serve(t)
	address, _ := b.polling(t, 4)
	if status, body := request(t, http.MethodGet, strings.Replace(address, "EIO=4", "EIO=3", 1), ""); status != http.StatusBadRequest || !strings.Contains(body, `"code":1`) {
		t.Errorf("got %d %s", status, body)
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{}, nil, nil); err == nil {
		t.Error("want an error")
	}
}
