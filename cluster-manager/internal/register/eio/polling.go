package eio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
)

// nudge is how long a poll waits while an upgrade is under way: a client ends its last poll before it sends "5", so the server
// has to answer with a noop, but a client that is not there yet must not spin.
const nudge = 20 * time.Millisecond

// poll answers a GET with what waits for the client, or waits until something does.
func (c *Conn) poll(w http.ResponseWriter, r *http.Request) {
	if !c.enter(&c.polling) {
		c.end(errOverlap)
		faultRequest.Write(w)
		return
	}
	packets, err := c.wait(r.Context())
	if err != nil {
		c.leave(&c.polling)
		return // the client hung up
	}
	if len(packets) == 0 {
		packets = []string{"6"}
	}
	c.answer(w, "text/plain; charset=UTF-8", encodePayload(c.Revision, packets))
}

// wait returns the packets for a poll and ends the poll, before the client can have seen the answer and polled again.
func (c *Conn) wait(ctx context.Context) ([]string, error) {
	var soon <-chan time.Time
	for {
		c.mu.Lock()
		if len(c.out) > 0 || c.closed || c.ws != nil {
			defer c.mu.Unlock()
			return c.takeForPollLocked(), nil
		}
		changed := c.changed
		if c.upgrading && c.probing != nil && soon == nil {
			soon = time.After(nudge)
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-soon:
			c.leave(&c.polling)
			return nil, nil
		}
	}
}

// takeForPollLocked takes nothing where a websocket has become the transport: that one carries the queue.
func (c *Conn) takeForPollLocked() []string {
	c.polling = false
	if c.ws != nil {
		return nil
	}
	packets := c.out
	c.out = nil
	c.changedLocked()
	return packets
}

// enter claims one of the two requests that a polling client may have under way.
func (c *Conn) enter(busy *bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *busy || c.ws != nil {
		return false
	}
	*busy = true
	return true
}

func (c *Conn) leave(busy *bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*busy = false
}

// post takes the packets of a POST.
func (c *Conn) post(w http.ResponseWriter, r *http.Request) {
	if !c.enter(&c.posting) {
		c.end(errOverlap)
		faultRequest.Write(w)
		return
	}
	err := c.takePost(w, r)
	c.leave(&c.posting) // before the client can have seen the answer
	switch _, large := errors.AsType[*http.MaxBytesError](err); {
	case err == nil || errors.Is(err, io.EOF):
		c.answer(w, "text/html", "ok")
	case large:
		faultTooLarge.Write(w)
	default:
		faultRequest.Write(w)
	}
	if err != nil {
		c.end(err)
	}
}

// takePost reads a body within the time and size that any message needs.
func (c *Conn) takePost(w http.ResponseWriter, r *http.Request) error {
	// Not every ResponseWriter can; net/http's can, and sets its own deadline again before the next request.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(c.server.cfg.IOTimeout))
	const framing = 1 << 10 // lengths and separators
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(c.server.cfg.MaxMessage+framing)))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	packets, err := decodePayload(c.Revision, r.Header.Get("Content-Type"), body)
	if err != nil {
		return err
	}
	for _, p := range packets {
		if len(p) > c.server.cfg.MaxMessage {
			return fmt.Errorf("%w of %d bytes", errPacket, len(p))
		}
		if err := c.receive(r.Context(), p); err != nil {
			return err
		}
	}
	return nil
}

// answer writes a whole response within the time that any client needs, and puts the deadline back: the next request on this
// HTTP connection may be somebody else's.
func (c *Conn) answer(w http.ResponseWriter, contentType, body string) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(c.server.cfg.IOTimeout)) // not every ResponseWriter can
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, err := io.WriteString(w, body)
	if err == nil {
		err = rc.Flush()
	}
	if err != nil {
		c.end(err)
		return
	}
	_ = rc.SetWriteDeadline(time.Time{})
}

// beginUpgrade claims the one upgrade that a polling connection may have under way.
func (c *Conn) beginUpgrade() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.upgrading || c.ws != nil {
		return false
	}
	c.upgrading = true
	return true
}

func (c *Conn) cancelUpgrade() {
	c.mu.Lock()
	probing := c.probing
	c.upgrading, c.probing = false, nil
	c.changedLocked()
	c.mu.Unlock()
	c.hangUp(probing)
}

// probe makes sure that the websocket carries packets both ways, and returns when the client has moved to it.
func (c *Conn) probe(ws *websocket.Conn) error {
	c.mu.Lock()
	c.probing = ws // from here on end closes it, and polls are answered with a noop
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return io.EOF
	}
	ws.SetReadLimit(64)
	if err := c.expect(ws, "2probe"); err != nil {
		return err
	}
	if err := writeText(ws, "3probe", c.server.cfg.IOTimeout); err != nil {
		return err
	}
	c.mu.Lock()
	c.changedLocked() // a poll that waits learns that it should not
	c.mu.Unlock()
	return c.expect(ws, "5")
}

func (c *Conn) expect(ws *websocket.Conn, want string) error {
	if err := ws.SetReadDeadline(time.Now().Add(c.server.cfg.IOTimeout)); err != nil {
		return err
	}
	got, err := readText(ws)
	if err == nil && got != want {
		err = fmt.Errorf("%w, want %q", errPacket, want)
	}
	return err
}
