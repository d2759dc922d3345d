package eio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// maxQueued bounds the packets that wait for a client: the longest exchange has some eight.
const maxQueued = 64

// maxPackets bounds what a client may send over the life of one connection: pings and a handful of messages.
const maxPackets = 256

// Errors that end a connection.
var (
	errQueue   = errors.New("the client does not read")
	errFlood   = fmt.Errorf("more than %d packets", maxPackets)
	errOverlap = errors.New("two requests of one kind at once")
	errBinary  = errors.New("binary message")
	errPacket  = errors.New("unexpected packet")
)

// Conn is one Engine.IO connection, over whatever transport it uses at the moment.
type Conn struct {
	ID       string
	Revision int    // Revision3 or Revision4
	Remote   string // address of the client, from its first request

	server *Server
	in     chan string   // messages of the client; unbuffered, so that a client waits for its reader
	done   chan struct{} // closed when the connection is
	ping   *time.Ticker  // nil in revision 3, where clients ping
	socket socket

	mu        sync.Mutex // guards all below
	out       []string   // packets that wait for a poll or a websocket
	changed   chan struct{}
	ws        *websocket.Conn // the transport, where it is no longer polling
	probing   *websocket.Conn // the websocket of an upgrade under way
	upgrading bool
	polling   bool // a GET waits
	posting   bool // a POST is being read
	received  int
	err       error // why the connection ended
	closed    bool
}

// socket serialises the writers of a websocket: packets leave in the order in which they were queued.
type socket struct{ mu sync.Mutex }

// newConn makes a connection whose first packet, the open packet, already waits.
func (s *Server) newConn(r *http.Request, transport string) *Conn {
	c := &Conn{
		ID: NewID(), Revision: Revision(r), Remote: r.RemoteAddr,
		server: s, in: make(chan string), done: make(chan struct{}), changed: make(chan struct{}),
	}
	upgrades := []string{}
	if transport == pollingTransport {
		upgrades = append(upgrades, websocketTransport)
	}
	if c.Revision == Revision4 {
		c.ping = time.NewTicker(s.cfg.PingInterval)
	}
	c.out = []string{"0" + s.openPacket(c.ID, upgrades)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c.ID] = c
	return c
}

func (s *Server) openPacket(sid string, upgrades []string) string {
	b, _ := json.Marshal(struct { // strings and numbers always marshal
		SID          string   `json:"sid"`
		Upgrades     []string `json:"upgrades"`
		PingInterval int64    `json:"pingInterval"`
		PingTimeout  int64    `json:"pingTimeout"`
		MaxPayload   int      `json:"maxPayload"`
	}{sid, upgrades, s.cfg.PingInterval.Milliseconds(), s.cfg.PingTimeout.Milliseconds(), s.cfg.MaxMessage})
	return string(b)
}

// Read returns the client's next message. While it waits it pings the client where that is the server's part.
func (c *Conn) Read(ctx context.Context) (string, error) {
	var ping <-chan time.Time
	if c.ping != nil {
		ping = c.ping.C
	}
	for {
		select {
		case m := <-c.in:
			return m, nil
		case <-c.done:
			return "", c.reason()
		case <-ctx.Done():
			return "", ctx.Err()
		case <-ping:
			if err := c.send("2"); err != nil {
				return "", err
			}
		}
	}
}

// Write sends a message, or lets it wait for the client's next poll. The message must be ASCII: the implementations of
// revision 3 do not agree on how other characters are counted.
func (c *Conn) Write(message string) error { return c.send("4" + message) }

// Drain waits until nothing waits for the client any longer.
func (c *Conn) Drain(ctx context.Context) error {
	for {
		c.mu.Lock()
		empty, changed := len(c.out) == 0, c.changed
		c.mu.Unlock()
		if empty {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			return c.reason()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends the connection. A poll that waits is answered with a close packet.
func (c *Conn) Close() { c.end(io.EOF) }

func (c *Conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// end closes the connection for the given reason; only the first counts.
func (c *Conn) end(reason error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed, c.err = true, reason
	if c.ws == nil {
		c.out = append(c.out, "1")
	}
	close(c.done)
	c.changedLocked()
	ws, probing := c.ws, c.probing
	c.mu.Unlock()
	if c.ping != nil {
		c.ping.Stop()
	}
	c.server.forget(c)
	c.hangUp(ws)
	c.hangUp(probing)
}

func (c *Conn) hangUp(ws *websocket.Conn) {
	if ws == nil {
		return
	}
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = ws.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) // a courtesy
	_ = ws.Close()                                                                // may be closed already
}

// changedLocked wakes everybody who waits for a change of the fields under mu.
func (c *Conn) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// send queues one packet, and writes the queue where there is a websocket.
func (c *Conn) send(packet string) error {
	c.mu.Lock()
	if c.closed {
		defer c.mu.Unlock()
		return c.err
	}
	if len(c.out) >= maxQueued {
		c.mu.Unlock()
		c.end(errQueue)
		return errQueue
	}
	c.out = append(c.out, packet)
	c.changedLocked()
	ws := c.ws
	c.mu.Unlock()
	if ws == nil {
		return nil
	}
	return c.flush(ws)
}

// take empties the queue.
func (c *Conn) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	packets := c.out
	c.out = nil
	if packets != nil {
		c.changedLocked()
	}
	return packets
}

func (c *Conn) flush(ws *websocket.Conn) error {
	c.socket.mu.Lock()
	defer c.socket.mu.Unlock()
	for _, p := range c.take() {
		if err := writeText(ws, p, c.server.cfg.IOTimeout); err != nil {
			c.end(err)
			return err
		}
	}
	return nil
}

func writeText(ws *websocket.Conn, packet string, timeout time.Duration) error {
	if err := ws.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	return ws.WriteMessage(websocket.TextMessage, []byte(packet))
}

// serveWebsocket makes ws the transport and takes what the client sends until it closes.
func (c *Conn) serveWebsocket(r *http.Request, ws *websocket.Conn) {
	if !c.attach(ws) {
		c.hangUp(ws)
		return
	}
	ws.SetReadLimit(int64(c.server.cfg.MaxMessage))
	err := ws.SetReadDeadline(time.Time{})
	if err == nil {
		err = c.flush(ws)
	}
	for err == nil {
		var packet string
		if packet, err = readText(ws); err == nil {
			err = c.receive(r.Context(), packet)
		}
	}
	c.end(err)
}

func readText(ws *websocket.Conn) (string, error) {
	kind, data, err := ws.ReadMessage()
	if err == nil && kind != websocket.TextMessage {
		err = errBinary
	}
	return string(data), err
}

func (c *Conn) attach(ws *websocket.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.ws, c.probing, c.upgrading = ws, nil, false
	c.changedLocked()
	return true
}

// receive takes one packet of the client.
func (c *Conn) receive(ctx context.Context, packet string) error {
	c.mu.Lock()
	c.received++
	flood := c.received > maxPackets
	c.mu.Unlock()
	switch {
	case flood:
		return errFlood
	case packet == "":
		return errPacket
	}
	switch kind, rest := packet[0], packet[1:]; {
	case kind == '4':
		return c.deliver(ctx, rest)
	case kind == '2' && c.Revision == Revision3 && len(rest) <= 64:
		return c.send("3" + rest)
	case kind == '3' && c.Revision == Revision4, kind == '6':
		return nil // the owner's deadline ends a silent client, so pongs need no book
	case kind == '1':
		return io.EOF
	}
	return fmt.Errorf("%w of type %q", errPacket, packet[:1])
}

func (c *Conn) deliver(ctx context.Context, message string) error {
	select {
	case c.in <- message:
		return nil
	case <-c.done:
		return c.reason()
	case <-ctx.Done():
		return ctx.Err()
	}
}
