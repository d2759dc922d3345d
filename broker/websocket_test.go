package broker

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A client that comes by WebSocket before Run has begun is served once it has, as one by TCP is.
func TestWebSocketWaitsForRun(t *testing.T) {
	b, err := New(open(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{})
	srv := httptest.NewServer(b.WebSocket(func(*http.Request) bool { close(arrived); return true }))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
		conn, _, err := d.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
	select {
	case <-arrived:
		t.Error("served before Run")
	case <-time.After(50 * time.Millisecond):
	}
	wg.Go(func() { _ = b.Run(ctx) })
	select {
	case <-arrived:
	case <-time.After(patience):
		t.Error("never served")
	}
}
