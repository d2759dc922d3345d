package broker

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errSlow       = errors.New("slow consumer")
	errNotConnect = errors.New("first packet is not a connect")
	errTooLarge   = errors.New("connect is too large")
)

const (
	writeChunk = 32 << 10        // what a client must take within WriteTimeout
	keepBuffer = 16 << 10        // a larger buffer is given back once it is empty
	lingerTime = 2 * time.Second // for the last words to a client that is being closed
)

// wire is a client's connection as the library sees it: Write never blocks, it appends to a bounded buffer that a goroutine of
// its own empties for as long as there is something in it. So whoever delivers to a client that does not read loses no time.
type wire struct {
	net.Conn          // plain, TLS or WebSocket
	raw      net.Conn // what is closed when there is no time for politeness
	session  *session
	counters *counters
	limit    int
	timeout  time.Duration
	flushers sync.WaitGroup

	// Owned by the goroutine that reads.
	prefix    []byte // what awaitConnect has read
	last      byte   // the newest byte that Read returned
	keepAlive time.Duration
	refreshed time.Time
	pace      pace

	mu       sync.Mutex // guards all below
	room     *sync.Cond // something was written, or the wire closed
	full     [][]byte   // to be written first, in pieces, since to copy megabytes into one larger buffer stops everybody for milliseconds
	waiting  int        // bytes in full
	pending  []byte     // to be written
	spare    []byte     // an empty buffer to use next
	sending  int        // bytes in the flusher's hands
	flushing bool       // a flusher runs
	closing  bool       // nothing more is taken
	closed   atomic.Bool
	linger   time.Time // set with closing: when to give up
}

func newWire(conn, raw net.Conn, cfg *Config, c *counters) *wire {
	w := &wire{Conn: conn, raw: raw, counters: c, limit: cfg.WriteBuffer, timeout: cfg.WriteTimeout, pace: pace{hasty: &c.hasty}}
	w.room = sync.NewCond(&w.mu)
	return w
}

// awaitConnect reads until a whole CONNECT is there. It holds what has arrived, never what was only announced, so that
// nobody gets memory for a number.
func (w *wire) awaitConnect() error {
	buf := make([]byte, 0, 256)
	for {
		need, err := connectLen(buf)
		if err != nil {
			return err
		}
		if need > 0 && len(buf) >= need {
			w.prefix = buf
			return nil
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := w.Conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		w.counters.bytesIn.Add(uint64(n))
		if err != nil && n == 0 {
			return err
		}
	}
}

// connectLen returns the length of the CONNECT that b begins with, 0 if b is too short to tell.
func connectLen(b []byte) (int, error) {
	if len(b) > 0 && b[0] != 0x10 {
		return 0, errNotConnect
	}
	n := 0
	for i := 1; i < len(b); i++ {
		n |= int(b[i]&0x7f) << (7 * (i - 1))
		if n > maxConnect || i > 4 {
			return 0, errTooLarge
		}
		if b[i]&0x80 == 0 {
			return 1 + i + n, nil
		}
	}
	return 0, nil
}

// upgrade puts TLS over the connection, before anything was written.
func (w *wire) upgrade(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Conn = conn
}

// Read returns what awaitConnect left and then what the connection gives.
func (w *wire) Read(p []byte) (n int, err error) {
	if len(w.prefix) > 0 {
		n = copy(p, w.prefix)
		if w.prefix = w.prefix[n:]; len(w.prefix) == 0 {
			w.prefix = nil
		}
	} else {
		then := w.pace.before()
		n, err = w.Conn.Read(p)
		w.pace.after(then, n)
		w.counters.bytesIn.Add(uint64(n))
	}
	if n > 0 {
		w.last = p[n-1]
	}
	return n, err
}

// SetDeadline is called by the library before each packet, with a time computed in 16 bits that overflow: only the call
// counts. The time is one and a half of the keep-alive; it is set again when an eighth of that has passed.
func (w *wire) SetDeadline(time.Time) error {
	if w.keepAlive == 0 && !w.refreshed.IsZero() {
		return nil
	}
	now := time.Now()
	if now.Sub(w.refreshed) < w.keepAlive/8 {
		return nil
	}
	w.refreshed = now
	var until time.Time
	if w.keepAlive > 0 {
		until = now.Add(w.keepAlive + w.keepAlive/2)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return net.ErrClosed
	}
	return w.SetReadDeadline(until)
}

// Write appends p, a whole packet, to what waits for the client.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.appendLocked(p); err != nil {
		return 0, err
	}
	w.flushLocked()
	return len(p), nil
}

// writeFrame appends a PUBLISH and fills in its packet id and the mark of a repetition.
func (w *wire) writeFrame(f frame, id uint16, again bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.appendLocked(f.bytes); err != nil {
		return err
	}
	own := w.pending[len(w.pending)-len(f.bytes):]
	if id != 0 {
		own[f.idAt], own[f.idAt+1] = byte(id>>8), byte(id)
	}
	if again {
		own[0] |= 0x08
	}
	w.flushLocked()
	return nil
}

func (w *wire) appendLocked(p []byte) error {
	if w.closing {
		return net.ErrClosed
	}
	if w.heldLocked()+len(p) > w.limit {
		w.abortLocked()
		w.counters.slowConsumers.Add(1)
		return errSlow
	}
	if len(w.pending) > 0 && len(w.pending)+len(p) > writeChunk {
		w.full = append(w.full, w.pending)
		w.waiting += len(w.pending)
		w.pending = nil
	}
	w.pending = append(w.pending, p...)
	return nil
}

// heldLocked is how many bytes are not written yet.
func (w *wire) heldLocked() int { return w.waiting + len(w.pending) + w.sending }

func (w *wire) flushLocked() {
	if !w.flushing {
		w.flushing = true
		w.flushers.Go(w.flush)
	}
}

// flush writes until nothing is left, and closes the connection if that was asked for.
func (w *wire) flush() {
	for {
		batch := w.take()
		if batch == nil {
			return
		}
		for len(batch) > 0 {
			n := min(len(batch), writeChunk)
			if err := w.send(batch[:n]); err != nil {
				w.fail(err)
				return
			}
			batch = batch[n:]
		}
	}
}

// take hands the waiting bytes to the flusher; nil when there are none and the flusher has ended.
func (w *wire) take() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.room.Broadcast()
	if len(w.full) > 0 {
		batch := w.full[0]
		w.full[0] = nil
		w.full = w.full[1:]
		w.sending = len(batch)
		w.waiting -= w.sending
		return batch
	}
	w.full = nil
	w.sending = len(w.pending)
	if w.sending > 0 && !w.closed.Load() {
		batch := w.pending
		w.pending, w.spare = w.spare[:0], batch[:0]
		return batch
	}
	w.sending = 0
	if cap(w.pending) > keepBuffer {
		w.pending = nil
	}
	if cap(w.spare) > keepBuffer {
		w.spare = nil
	}
	w.flushing = w.closing // who closes must be the last one
	if w.closing && w.closed.CompareAndSwap(false, true) {
		w.closeConn()
	}
	return nil
}

// closeConn closes the connection in a goroutine of its own: TLS says goodbye and may wait for seconds, while w.mu is held.
func (w *wire) closeConn() {
	conn := w.Conn // a handshake that ends now replaces it
	w.flushers.Go(func() {
		_ = w.raw.SetWriteDeadline(time.Now().Add(lingerTime))
		_ = conn.Close()
	})
}

func (w *wire) send(p []byte) error {
	w.mu.Lock()
	until := time.Now().Add(w.timeout)
	if w.closing && w.linger.Before(until) {
		until = w.linger
	}
	err := w.SetWriteDeadline(until)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	n, err := w.Conn.Write(p)
	w.counters.bytesOut.Add(uint64(n))
	return err
}

// fail ends the wire after a write error; one for want of time was a slow consumer.
func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() && !w.closing {
		w.counters.slowConsumers.Add(1)
	}
	w.sending = 0
	w.abortLocked()
}

// Close takes nothing more, lets what waits be written for a little while, and closes. It does not block.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return nil
	}
	w.closing = true
	w.linger = time.Now().Add(lingerTime)
	_ = w.SetReadDeadline(time.Unix(1, 0))
	_ = w.raw.SetWriteDeadline(w.linger)
	w.flushLocked()
	return nil
}

// abort closes at once; what waits is lost.
func (w *wire) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abortLocked()
}

func (w *wire) abortLocked() {
	w.closing = true
	w.full, w.waiting, w.pending, w.spare = nil, 0, nil, nil
	w.room.Broadcast()
	if w.closed.CompareAndSwap(false, true) {
		_ = w.raw.Close()
	}
}

// awaitRoom waits until half of the buffer is free; false once the wire has closed.
func (w *wire) awaitRoom() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.closing && w.heldLocked() > w.limit/2 {
		w.room.Wait()
	}
	return !w.closing
}
