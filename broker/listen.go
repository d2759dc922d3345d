package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"time"
)

// listener is a bound address.
type listener struct {
	net.Listener
	tls *tls.Config
}

// listen binds all listeners, or none.
func (b *Broker) listen() error {
	for _, l := range b.cfg.Listeners {
		ln, err := b.cfg.Listen(context.Background(), "tcp", l.Addr)
		if err != nil {
			for _, bound := range b.listeners {
				_ = bound.Close()
			}
			return fmt.Errorf("listen on %s: %w", l.Addr, err)
		}
		b.listeners = append(b.listeners, listener{ln, l.TLS})
	}
	return nil
}

// accept takes connections until ctx ends. An error, such as too many open files, is waited out.
func (b *Broker) accept(ctx context.Context, l listener) {
	const shortest, longest = 5 * time.Millisecond, time.Second
	wait := shortest
	for {
		conn, err := l.Accept()
		if err == nil {
			wait = shortest
			if b.enter() {
				go b.serveSocket(ctx, conn, l)
			} else {
				_ = conn.Close()
			}
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		b.counters.acceptErrors.Add(1)
		if wait == shortest {
			b.log.Error("accepting connections is impossible for now", "addr", l.Addr().String(), "err", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, longest)
	}
}

// enter counts a new connection in, unless the broker does not serve. Where too many wait to be admitted, the one is dropped that has been
// silent for the longest; where none is silent, the new one is not let in. Who entered must leave.
func (b *Broker) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.serving || b.closing {
		return false
	}
	if b.pending.Load() >= int64(b.cfg.MaxPending) {
		b.counters.crowded.Add(1)
		oldest := b.silent.Front()
		if oldest == nil {
			return false
		}
		s := oldest.Value.(*session)
		b.speaksLocked(s)
		s.uncount()
		s.wire.abort()
	}
	b.pending.Add(1)
	b.conns.Add(1)
	return true
}

// speaks notes that a CONNECT has come, or that none is waited for any more.
func (b *Broker) speaks(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.speaksLocked(s)
}

func (b *Broker) speaksLocked(s *session) {
	if s.place != nil {
		b.silent.Remove(s.place)
		s.place = nil
	}
}

// uncount takes s off those that are not admitted.
func (s *session) uncount() {
	if s.counted.CompareAndSwap(true, false) {
		s.b.pending.Add(-1)
	}
}

// serveSocket serves a connection of a listener, once its TLS handshake is done.
func (b *Broker) serveSocket(ctx context.Context, conn net.Conn, l listener) {
	deadline := time.Now().Add(b.cfg.ConnectTimeout)
	_ = conn.SetDeadline(deadline)
	s := &session{b: b, listener: "tcp", done: make(chan struct{})}
	s.counted.Store(true)
	s.wire = newWire(conn, conn, &b.cfg, &b.counters)
	s.wire.session = s
	defer b.leave(s)
	if !b.register(s.wire) {
		_ = conn.Close()
		return
	}
	if l.tls != nil {
		tc := tls.Server(conn, l.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			b.counters.connectTimeouts.Add(timedOut(err))
			b.log.Debug("no tls", "addr", conn.RemoteAddr().String(), "err", err)
			s.wire.abort()
			return
		}
		state := tc.ConnectionState()
		s.listener, s.tls = "tls", &state
		s.wire.upgrade(tc)
	}
	b.serve(s, deadline)
}

// serve reads the CONNECT and hands the connection to the library until it ends. It may be called on any goroutine that has
// entered; a panic on the way, of the library's decoder above all, ends this client alone.
func (b *Broker) serve(s *session, deadline time.Time) {
	_ = s.wire.SetReadDeadline(deadline)
	defer func() {
		if r := recover(); r != nil {
			s.panicked = true
			b.counters.panics.Add(1)
			b.log.Error("connection ended by a panic", "addr", s.wire.RemoteAddr().String(), "client_id", s.client.ID,
				"err", r, "stack", string(debug.Stack()))
			s.wire.abort()
		}
	}()
	err := s.wire.awaitConnect()
	b.speaks(s)
	if err != nil {
		b.counters.connectTimeouts.Add(timedOut(err))
		b.log.Debug("no connect", "addr", s.wire.RemoteAddr().String(), "err", err)
		s.wire.abort()
		return
	}
	err = b.core.EstablishConnection(s.listener, s.wire)
	b.log.Debug("connection ended", "addr", s.wire.RemoteAddr().String(), "client_id", s.client.ID, "err", err)
}

// timedOut is 1 for an error of time, 0 for any other.
func timedOut(err error) uint64 {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return 1
	}
	return 0
}

// register makes w known to shutDown.
func (b *Broker) register(w *wire) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.wires[w] = struct{}{}
	w.session.place = b.silent.PushBack(w.session)
	return true
}

// leave ends all that belongs to a connection.
func (b *Broker) leave(s *session) {
	_ = s.wire.Close()
	s.wire.pace.end()
	if s.box != nil && !b.guard(s, s.finish) {
		b.forget(s.core)
		b.park(s, 0, 0)
	}
	s.wire.flushers.Wait()
	b.mu.Lock()
	delete(b.wires, s.wire)
	b.speaksLocked(s)
	b.mu.Unlock()
	s.uncount()
	b.conns.Done()
}

// guard keeps a panic of the owner's functions, called for a will or a goodbye, from ending the process; false: there was one.
func (b *Broker) guard(s *session, do func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			b.counters.panics.Add(1)
			b.log.Error("end of a connection met a panic", "client_id", s.client.ID, "err", r, "stack", string(debug.Stack()))
		}
	}()
	do()
	return true
}
