package broker

import (
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
