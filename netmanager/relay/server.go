package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxStreams bounds the streams of a server, those that have not proved anything yet included.
const maxStreams = 20000

// maxGreeting bounds those of one address that have not: all nodes behind one NAT may come back at once, and who is refused tries again.
const maxGreeting = 256

// ServerConfig is what a server needs to know.
type ServerConfig struct {
	// Allow says whether the node with this key may use the relay. It is asked when the node has proved that the key is its own.
	Allow func(node Key) bool
}

// Server is the relay, an http.Handler. It serves nothing before Run, and ends every stream when Run does.
type Server struct {
	cfg ServerConfig
	log *slog.Logger

	streams sync.Map // Key → *stream, those that are proved: read for every packet

	// mu guards what follows.
	mu      sync.Mutex
	running bool
	conns   map[net.Conn]struct{}
	greeted map[string]int // streams that have proved nothing yet, by address
	wg      sync.WaitGroup // of the handlers; Add only while running
}

// stream is one node's.
type stream struct {
	key   Key
	conn  net.Conn // below TLS, to be closed without a goodbye that waits for a node which does not read
	queue *queue
}

// NewServer returns a relay.
func NewServer(cfg ServerConfig, log *slog.Logger) *Server {
	if cfg.Allow == nil {
		cfg.Allow = func(Key) bool { return false }
	}
	return &Server{cfg: cfg, log: log, conns: map[net.Conn]struct{}{}, greeted: map[string]int{}}
}

// Run serves until ctx ends, then closes every stream and waits for them.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.running = false
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Connected says whether the node has a stream.
func (s *Server) Connected(node Key) bool {
	_, ok := s.streams.Load(node)
	return ok
}

// Disconnect ends the node's stream, if it has one: for a node that was removed.
func (s *Server) Disconnect(node Key) {
	if st, ok := s.streams.Load(node); ok {
		_ = st.(*stream).conn.Close()
	}
}

// ServeHTTP serves one node's stream until it ends.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) {
		w.Header().Set("Upgrade", Protocol)
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "this is a relay for nodes", http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "no upgrade on this connection", http.StatusNotImplemented)
		return
	}
	raw := conn
	if secured, ok := conn.(*tls.Conn); ok {
		raw = secured.NetConn()
	}
	defer func() { _ = raw.Close() }()
	if !s.enter(raw) {
		return
	}
	defer s.leave(raw)
	if err := s.serve(conn, raw, buffered); err != nil {
		s.log.Debug("relay stream refused", "addr", conn.RemoteAddr().String(), "err", err)
	}
}

func (s *Server) enter(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := host(conn)
	if !s.running || len(s.conns) >= maxStreams || s.greeted[at] >= maxGreeting {
		return false
	}
	s.greeted[at]++
	s.conns[conn] = struct{}{}
	s.wg.Add(1)
	return true
}

// proved says that a stream is one or will never be.
func (s *Server) proved(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := host(conn)
	if s.greeted[at]--; s.greeted[at] == 0 {
		delete(s.greeted, at)
	}
}

// host is the other end's address without its port.
func host(conn net.Conn) string {
	h, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return h
}

func (s *Server) leave(conn net.Conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	s.wg.Done()
}

// serve returns an error only for what a node of ours would not do.
func (s *Server) serve(conn, raw net.Conn, from io.Reader) error {
	key, err := s.greet(conn, from)
	s.proved(raw)
	if err != nil {
		return err
	}
	st := &stream{key: key, conn: raw, queue: newSharedQueue()}
	if old, ok := s.streams.Swap(key, st); ok {
		_ = old.(*stream).conn.Close() // the node has dialled anew; its old stream is dead
	}
	defer s.streams.CompareAndDelete(key, st)
	if !s.cfg.Allow(key) { // removed since it was asked, when Disconnect did not find it yet
		return fmt.Errorf("node %s is not known any more", key)
	}
	if _, err := conn.Write([]byte{accepted}); err != nil { // not before others can reach it
		return nil
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer st.queue.close()
	defer cancel()
	wg.Go(func() {
		if writeQueue(ctx, conn, st.queue) != nil {
			_ = raw.Close() // ends the reading too
		}
	})
	return s.carry(st, from)
}

// greet makes the node prove who it is. If it did, it still waits for the verdict.
func (s *Server) greet(conn net.Conn, from io.Reader) (Key, error) {
	if err := conn.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return Key{}, err
	}
	private, err := GenerateKey()
	if err != nil {
		return Key{}, err
	}
	question := private.Public()
	hello := fmt.Appendf(nil, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol)
	if _, err := conn.Write(append(hello, question[:]...)); err != nil {
		return Key{}, err
	}
	given := make([]byte, answerSize)
	if _, err := io.ReadFull(from, given); err != nil {
		return Key{}, fmt.Errorf("no answer: %w", err)
	}
	key, err := verify(private, given)
	if err == nil && !s.cfg.Allow(key) {
		err = fmt.Errorf("node %s is not known", key)
	}
	if err != nil {
		_, _ = conn.Write([]byte{refused})
	}
	return key, err
}

// carry hands on what the node sends until its stream ends.
func (s *Server) carry(st *stream, from io.Reader) error {
	r := reader{from: from, fill: alive(st.conn)}
	for {
		to, packet, err := r.next()
		if errors.Is(err, errFrame) {
			return fmt.Errorf("node %s: %w", st.key, err)
		}
		if err != nil {
			return nil
		}
		if to.IsZero() {
			continue
		}
		if target, ok := s.streams.Load(to); ok {
			target.(*stream).queue.put(st.key, packet) // or it is dropped: the node does not keep up
		}
	}
}

// alive returns a function that gives the other end time to say something, to be called before each read.
func alive(conn net.Conn) func() error {
	var until time.Time
	return func() error {
		now := time.Now()
		if until.Sub(now) > beatLimit-time.Second {
			return nil
		}
		until = now.Add(beatLimit)
		return conn.SetReadDeadline(until)
	}
}

// writeQueue writes what the queue gets, and beats while it gets nothing, until ctx ends or a write fails.
func writeQueue(ctx context.Context, conn net.Conn, q *queue) error {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	idle := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			if idle {
				q.put(Key{}, nil)
			}
			idle = true
			continue
		case <-q.ready:
		}
		idle = false
		if b := q.take(); len(b) > 0 {
			if err := conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
				return err
			}
			if _, err := conn.Write(b); err != nil {
				return err
			}
		}
	}
}
