package register

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
)

var revisions = []int{3, 4}

func TestRequestsThatMakeNoSense(t *testing.T) {
	b := serve(t, Config{})
	for _, tc := range []struct{ name, method, query, want string }{
		{"no revision", "GET", "transport=polling", `400 {"code":5,"message":"Unsupported protocol version"}`},
		{"revision 2", "GET", "EIO=2&transport=websocket", `400 {"code":5,"message":"Unsupported protocol version"}`},
		{"no transport", "GET", "EIO=4", `400 {"code":0,"message":"Transport unknown"}`},
		{"other transport", "GET", "EIO=3&transport=flashsocket", `400 {"code":0,"message":"Transport unknown"}`},
		{"jsonp", "GET", "EIO=3&transport=polling&j=0", `400 {"code":0,"message":"Transport unknown"}`},
		{"unknown session", "GET", "EIO=4&transport=polling&sid=x", `400 {"code":1,"message":"Session ID unknown"}`},
		{"post first", "POST", "EIO=4&transport=polling", `400 {"code":2,"message":"Bad handshake method"}`},
		{"options", "OPTIONS", "EIO=3&transport=polling", `400 {"code":2,"message":"Bad handshake method"}`},
		{"no websocket 4", "GET", "EIO=4&transport=websocket", `400 {"code":3,"message":"Bad request"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, body := request(t, tc.method, b.url+"/socket.io/?"+tc.query, "")
			if got := fmt.Sprintf("%d %s", status, body); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	if status, _ := request(t, "GET", b.url+"/socket.io/?EIO=3&transport=websocket", ""); status != http.StatusBadRequest {
		t.Errorf("no websocket 3: %d", status)
	}
}

func TestRawRegistration(t *testing.T) {
	for _, eio := range revisions {
		t.Run(fmt.Sprint(eio), func(t *testing.T) {
			t.Parallel()
			b := serve(t, Config{})
			r := dial(t, b, eio)
			if eio == 4 {
				r.send("40")
				r.want(`40{"sid":"`)
			}
			h := r.joined()
			text := info("a", h, newKey(t))
			r.send(`42/init,["later",1]`, `42/init,7["cs1",`+text+`]`)
			r.want("43/init,7[]")
			first := r.want(`42/init,["sc2",{"id":"a"`)
			r.send(`42/init,["cs1",` + text + `]`)
			if second := r.want("42/init,"); second != first {
				t.Errorf("a repeated cs1: got %s, want %s", second, first)
			}
			if got := b.admissions("a"); len(got) != 1 || !got[0].origin.Proved {
				t.Errorf("admitted %+v", got)
			}
			r.want("41/init,")
		})
	}
}

func TestProofBelongsToOneConnection(t *testing.T) {
	b := serve(t, Config{})
	first, second := dial(t, b, 4), dial(t, b, 3)
	text := info("a", first.joined(), newKey(t))
	second.joined()
	second.send(`42/init,["cs1",` + text + `]`)
	second.want(`42/init,["sc2"`)
	if got := b.admissions("a"); len(got) != 1 || got[0].origin.Proved {
		t.Errorf("a proof for another nonce was taken: %+v", got)
	}
}

func TestHostileEvents(t *testing.T) {
	deep := strings.Repeat("[", 60000)
	for name, packet := range map[string]string{
		"deep json":        `42/init,["cs1",` + deep,
		"deep closed":      `42/init,["cs1",` + deep + strings.Repeat("]", 60000) + `]`,
		"deep in object":   `42/init,["cs1",{"key":"k","x":` + deep + strings.Repeat("]", 60000) + `}]`,
		"no argument":      `42/init,["cs1"]`,
		"null":             `42/init,["cs1",null]`,
		"number":           `42/init,["cs1",1e999]`,
		"string in string": `42/init,["cs1","\"{}\""]`,
		"not json":         `42/init,["cs1",{`,
		"name no string":   `42/init,[{},1]`,
		"wrong types":      `42/init,["cs1",{"name":"a","key":"k","cpu":"many"}]`,
		"endless ack id":   `42/init,` + strings.Repeat("9", 4000) + `["cs1",{}]`,
		"attachments":      `4599999999999-/init,["cs1",{"_placeholder":true,"num":0}]`,
		"not utf-8":        "42/init,[\"cs1\",{\"name\":\"\\udc00\",\"key\":\"k\"}]",
		"endless name":     `42/init,["cs1",{"key":"k","name":"` + strings.Repeat("x", 100000) + `"}]`,
	} {
		for _, eio := range revisions {
			t.Run(fmt.Sprintf("%s/%d", name, eio), func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{})
				r := dial(t, b, eio)
				r.joined()
				r.send(packet)
				r.wantRefused(messages.RefusedPayload)
			})
		}
	}
}

func TestHostilePackets(t *testing.T) {
	flood := make([]string, 300)
	for i := range flood {
		flood[i] = "42/init,[\"x\"]"
	}
	for name, packets := range map[string][]string{
		"oversized":         {"4" + strings.Repeat("x", messages.MaxPayload+8)},
		"unknown type":      {"9"},
		"before connect":    {"45999999999-[]"},
		"endless namespace": {"40/" + strings.Repeat("n", 5000)},
		"flood":             append([]string{"40/init,"}, flood...),
		"client says bye":   {"1"},
	} {
		for _, eio := range revisions {
			t.Run(fmt.Sprintf("%s/%d", name, eio), func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{Timeout: 3 * time.Second})
				r := dial(t, b, eio)
				for _, p := range packets {
					if r.ws.WriteMessage(1, []byte(p)) != nil {
						break // ended already
					}
				}
				r.wantEnd()
				waitFor(t, "the connection to be forgotten", func() bool { return b.Stats().Pending == 0 })
			})
		}
	}
}

// TestMessageBeyondTheLimit counts what a client gets through before it is cut off.
func TestMessageBeyondTheLimit(t *testing.T) {
	for _, eio := range revisions {
		t.Run(fmt.Sprint(eio), func(t *testing.T) {
			b := serve(t, Config{MaxEvent: 4 << 10})
			r := dial(t, b, eio)
			r.joined()
			r.send(`42/init,["cs1","` + strings.Repeat("x", 5<<10) + `"]`)
			r.wantEnd()
		})
	}
}

func TestPings(t *testing.T) {
	b := serve(t, Config{Timeout: 300 * time.Millisecond})
	r := dial(t, b, 4)
	r.want("2") // from the server
	r.send("3")
	for _, eio := range revisions {
		status, body := request(t, "GET", fmt.Sprintf("%s/socket.io/?EIO=%d&transport=polling", b.url, eio), "")
		if status != http.StatusOK || !strings.Contains(body, `"pingInterval":100,"pingTimeout":300`) || !strings.Contains(body, `"upgrades":["websocket"]`) {
			t.Errorf("open packet: %d %s", status, body)
		}
	}
	old := dial(t, b, 3)
	old.send("2hello")
	old.want("3hello")
}

func TestFull(t *testing.T) {
	b := serve(t, Config{MaxPending: 2})
	dial(t, b, 3)
	dial(t, b, 4)
	for _, query := range []string{"EIO=3&transport=polling", "EIO=4&transport=polling"} {
		if status, body := request(t, "GET", b.url+"/socket.io/?"+query, ""); status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	for _, eio := range revisions {
		req := httptest.NewRequest("GET", fmt.Sprintf("/socket.io/?EIO=%d&transport=websocket", eio), nil)
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
		w := httptest.NewRecorder()
		b.ServeHTTP(w, req)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("EIO %d: %d %v", eio, w.Code, w.Header())
		}
	}
}

// TestFloodOfPolls wants overlapping requests to cost the client its connection and the manager nothing.
func TestFloodOfPolls(t *testing.T) {
	b := serve(t, Config{})
	address := openPolling(t, b)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			resp, err := http.Get(address)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	waitFor(t, "the connection to end", func() bool { return b.Stats().Pending == 0 })
}

func TestHostilePosts(t *testing.T) {
	for name, body := range map[string]string{
		"empty":         "",
		"empty packets": "\x1e\x1e",
		"oversized":     "4" + strings.Repeat("x", messages.MaxPayload+2000),
		"not utf-8":     "4\xff",
		"many packets":  strings.Repeat("3\x1e", 2000) + "3",
		"binary":        "bAAAA",
		"ping":          "2",
	} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, Config{})
			status, _ := request(t, "POST", openPolling(t, b), body)
			if want := map[bool]int{false: 400, true: 413}[name == "oversized"]; status != want {
				t.Errorf("status %d, want %d", status, want)
			}
			waitFor(t, "the connection to end", func() bool { return b.Stats().Pending == 0 })
		})
	}
}

// TestSlowBody sends a POST that never gets whole.
func TestSlowBody(t *testing.T) {
	b := serve(t, Config{Timeout: 400 * time.Millisecond})
	address := strings.TrimPrefix(openPolling(t, b), b.url)
	c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n4", address)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestPanicIsRecovered(t *testing.T) {
	s, err := New(Config{Cluster: "lab", Admit: func(context.Context, messages.NodeInfo, Origin) (messages.Welcome, error) {
		panic("a bug")
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(s)
	defer front.Close()
	for _, eio := range revisions {
		r := dial(t, &bench{url: front.URL}, eio)
		r.send(`42/init,["cs1",{}]`) // before it joined: ignored
		r.send(`42/init,["cs1",` + info("a", r.joined(), newKey(t)) + `]`)
		r.wantEnd()
	}
	waitFor(t, "both panics to be counted", func() bool { return s.Stats().Panics == 2 && s.Stats().Pending == 0 })
}

// TestRunEndsEverything leaves one connection of each kind open, and harness_test.go looks for what is left.
func TestRunEndsEverything(t *testing.T) {
	b := serve(t, Config{Admit: func(ctx context.Context, _ messages.NodeInfo, _ Origin) (messages.Welcome, error) {
		<-ctx.Done()
		return messages.Welcome{}, ctx.Err()
	}})
	for _, eio := range revisions {
		dial(t, b, eio).joined()
		admitting := dial(t, b, eio)
		admitting.send(`42/init,["cs1",` + info("a", admitting.joined(), newKey(t)) + `]`)
	}
	address := openPolling(t, b)
	polls := make(chan int, 1)
	go func() {
		resp, err := http.Get(address)
		if err != nil {
			polls <- 0
			return
		}
		resp.Body.Close()
		polls <- resp.StatusCode
	}()
	waitFor(t, "two admissions", func() bool { return len(b.admissions("a")) == 2 })
	waitFor(t, "the poll to wait", func() bool { return strings.Contains(stacks(), "eio.(*Conn).wait(") })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil {
		t.Error(err)
	}
	if got := <-polls; got != http.StatusOK {
		t.Errorf("the waiting poll got %d", got)
	}
	if status, _ := request(t, "GET", b.url+"/socket.io/?EIO=4&transport=polling", ""); status != http.StatusServiceUnavailable {
		t.Errorf("after Run: %d", status)
	}
}

// TestIdle drops 10,000 silent connections at the deadline, while others register.
func TestIdle(t *testing.T) {
	const idle = 10000
	b := serve(t, Config{MaxPending: idle + 50, Timeout: 7 * time.Second})
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range idle / 4 {
				address := fmt.Sprintf("%s/socket.io/?EIO=%d&transport=polling", b.url, 3+(worker+i)%2)
				resp, err := http.Get(address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	pending := b.Stats().Pending
	runtime.GC()
	runtime.ReadMemStats(&during)
	used := int64(during.HeapInuse+during.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("%d idle connections, %d bytes each", pending, used/int64(max(pending, 1)))
	if pending == 0 || used > int64(pending)*16<<10 {
		t.Errorf("%d bytes for %d idle connections", used, pending)
	}
	r := dial(t, b, 4)
	r.send(`42/init,["cs1",` + info("a", r.joined(), newKey(t)) + `]`)
	r.want(`42/init,["sc2"`)
	waitFor(t, "all to be dropped", func() bool { return b.Stats().Pending == 0 })
}
