package broker

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"
)

// A broker that ends may close a connection whose TLS handshake ends in that moment. The race detector watches.
func TestCloseDuringHandshake(t *testing.T) {
	for range 200 {
		plain, far := net.Pipe()
		secure, other := net.Pipe()
		w := newWire(plain, plain, &Config{WriteBuffer: 1024, WriteTimeout: time.Second}, new(counters))
		w.session = new(session)
		_ = w.Close()
		for !w.closed.Load() {
			runtime.Gosched()
		}
		w.upgrade(secure)
		w.flushers.Wait()
		_, _ = far.Close(), other.Close()
	}
}

// What a client does not read waits in pieces, in order, however much it is; frames are patched where they lie.
func TestWaitingInPieces(t *testing.T) {
	near, far := net.Pipe()
	w := newWire(near, near, &Config{WriteBuffer: 8 << 20, WriteTimeout: patience}, new(counters))
	var want []byte
	for i := range 3000 {
		b := bytes.Repeat([]byte{byte(i)}, 3+rand.IntN(4000))
		if i%500 == 0 {
			b = append(b, make([]byte, 3*writeChunk)...)
		}
		if err := w.writeFrame(frame{bytes: b, idAt: 1}, uint16(i+1), false); err != nil {
			t.Fatal(err)
		}
		b[1], b[2] = byte((i+1)>>8), byte(i+1)
		want = append(want, b...)
	}
	w.mu.Lock()
	if held := w.heldLocked(); held != len(want) {
		t.Errorf("%d bytes wait, want %d", held, len(want))
	}
	for _, b := range append(w.full, w.pending) {
		if len(b) > 4*writeChunk {
			t.Errorf("%d bytes in one piece", len(b))
		}
	}
	w.mu.Unlock()
	got := make([]byte, len(want))
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %v, the same: %t", err, bytes.Equal(got, want))
	}
	w.abort()
	w.flushers.Wait()
}
