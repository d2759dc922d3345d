package broker

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

var errNotBinary = errors.New("websocket message is not binary")

// WebSocket serves MQTT over WebSocket, subprotocol "mqtt", from the owner's own HTTP server; the owner chooses its path.
// allowOrigin decides about browsers; nil admits pages of this very host, and clients that are no browsers. The connections
// belong to Run: outside of it the answer is 503.
func (b *Broker) WebSocket(allowOrigin func(*http.Request) bool) http.Handler {
	up := websocket.Upgrader{
		HandshakeTimeout: b.cfg.ConnectTimeout,
		Subprotocols:     []string{"mqtt"},
		CheckOrigin:      allowOrigin,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deadline := time.Now().Add(b.cfg.ConnectTimeout)
		offered := false
		for _, p := range websocket.Subprotocols(r) {
			offered = offered || p == "mqtt"
		}
		if websocket.IsWebSocketUpgrade(r) && !offered {
			http.Error(w, "the subprotocol mqtt is needed", http.StatusBadRequest)
			return
		}
		// Run may be about to begin: a connection by TCP waits for it too, in the listener's queue.
		select {
		case <-b.begun:
		case <-time.After(b.cfg.ConnectTimeout):
		case <-r.Context().Done():
		}
		if !b.enter() {
			http.Error(w, "not serving", http.StatusServiceUnavailable)
			return
		}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			b.pending.Add(-1)
			b.conns.Done()
			return // the answer has been written
		}
		b.serveWebSocket(conn, r, deadline)
	})
}

func (b *Broker) serveWebSocket(conn *websocket.Conn, r *http.Request, deadline time.Time) {
	s := &session{b: b, listener: "ws", tls: r.TLS, done: make(chan struct{})}
	s.counted.Store(true)
	raw := conn.NetConn()
	if tc, ok := raw.(*tls.Conn); ok {
		raw = tc.NetConn()
	}
	s.wire = newWire(&wsConn{Conn: conn.NetConn(), ws: conn}, raw, &b.cfg, &b.counters)
	s.wire.session = s
	defer b.leave(s)
	if !b.register(s.wire) {
		s.wire.abort()
		return
	}
	b.serve(s, deadline)
}

// wsConn makes a stream of a WebSocket's binary messages; MQTT packets may cross their borders.
type wsConn struct {
	net.Conn
	ws      *websocket.Conn
	message io.Reader // the one being read, nil between two
}

// Read reads from the current message, or waits for the next.
func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errNotBinary
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends p as one message.
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetReadDeadline and SetWriteDeadline reach the socket through the WebSocket, which keeps the latter itself.
func (c *wsConn) SetReadDeadline(t time.Time) error { return c.ws.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of the next Write.
func (c *wsConn) SetWriteDeadline(t time.Time) error { return c.ws.SetWriteDeadline(t) }
