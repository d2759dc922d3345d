// Package register admits nodes: the server side of the Socket.IO namespace /init, an http.Handler for /socket.io/. It speaks both
// generations of Socket.IO (Engine.IO 3 and 4) and decides nothing about a node: that is Config.Admit's part.
//
//	connect /init ─▶ sc1 Hello ─▶ cs1 NodeInfo ─▶ Admit ─▶ sc2 Welcome ─▶ lingering ─▶ disconnected
//	                     │             └───────────┴──▶ refused ──────────────▲
//	                     └── Config.Timeout ──▶ refused ──────────────────────┘
//
// A node that has not answered sc1 within a third of the Timeout is asked once more; a second cs1 does no harm, see below.
// A connection that never asks for /init is dropped at the Timeout without a word. A polling client may fetch the last word until
// then, and for Linger at least. After that the manager waits up to Linger for the client to close, then disconnects the namespace
// (a Socket.IO client does not come back by itself after that), and after up to another Linger closes. A second cs1 in that time
// gets the same answer again, without a second Admit.
//
// Who speaks with whom: Engine.IO 3 over a websocket is served by googollee/go-socket.io, but by its transport and session alone:
// its Server decodes packets in goroutines of its own, where a packet that announces a huge number of attachments ends the
// process, and its polling answers the handshake before it knows the session. All else is served by the sub-package eio.
package register

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"skerry.internal/cluster-manager/internal/register/eio"
	"skerry.internal/messages"
)

// Linger is how long a connection may outlive the last word of its registration.
const Linger = 2 * time.Second

// Defaults of Config.
const (
	defaultTimeout    = 10 * time.Second
	defaultMaxPending = 2000
)

// Config says who is admitted and what a registration may cost.
type Config struct {
	Cluster     string
	AllowLegacy bool          // admit EdgeIO's engines, which send what psutil says and no key
	Timeout     time.Duration // of a whole registration; 0 is 10 s
	MaxPending  int           // connections at once, lingering ones included; 0 is 2000, more are refused with 503
	MaxEvent    int           // bytes of one event; 0 is messages.MaxPayload
	// Admit decides. It must return when ctx ends. An error that is a *messages.Refusal reaches the node, any other becomes
	// one with messages.RefusedBusy.
	Admit func(ctx context.Context, info messages.NodeInfo, o Origin) (messages.Welcome, error)
}

// Origin says where a registration comes from and what is known about it.
type Origin struct {
	Remote string // address of the client
	Proved bool   // the client showed that it holds the private key of its NodeInfo
	Legacy bool   // an EdgeIO engine: the NodeInfo has a name and little else, no key above all
}

// Stats counts what happened since the Server was made.
type Stats struct {
	Pending  int // connections at the moment
	Welcomed uint64
	Refused  uint64
	Panics   uint64 // recovered, of the library or of Admit
}

// Server is the http.Handler of registrations.
type Server struct {
	cfg    Config
	log    *slog.Logger
	engine *eio.Server
	wg     sync.WaitGroup // requests and connections

	mu     sync.Mutex // guards all below
	lives  map[int]context.CancelFunc
	nextID int
	closed bool
	stats  Stats
	warned warnings
}

// New returns a Server. It takes connections at once; Run ends them.
func New(cfg Config, log *slog.Logger) (*Server, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = defaultMaxPending
	}
	if cfg.MaxEvent == 0 {
		cfg.MaxEvent = messages.MaxPayload
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log, lives: make(map[int]context.CancelFunc)}
	engine, err := eio.New(eio.Config{
		PingInterval: pingInterval(cfg.Timeout), PingTimeout: cfg.Timeout, MaxMessage: cfg.MaxEvent, IOTimeout: cfg.Timeout / 2,
	}, s.start, log)
	s.engine = engine
	return s, err
}

// pingInterval lets a client that is admitted slowly see a sign of life.
func pingInterval(timeout time.Duration) time.Duration { return max(timeout/3, time.Millisecond) }

func (c Config) validate() error {
	errs := []error{messages.CheckName("cluster", c.Cluster)}
	if c.Admit == nil {
		errs = append(errs, errors.New("admit: missing"))
	}
	if c.Timeout < 10*time.Millisecond || c.MaxPending < 1 || c.MaxEvent < 1<<10 {
		errs = append(errs, errors.New("timeout, max pending, max event: too small to register anybody"))
	}
	return errors.Join(errs...)
}

// Run waits until ctx ends, then ends all connections and waits for them. The Server refuses everybody from then on.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	for _, end := range s.lives {
		end()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Pending = len(s.lives)
	return st
}

// ServeHTTP answers one request of a registration.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		eio.Busy().Write(w)
		return
	}
	defer s.wg.Done()
	defer s.recovered()
	q := r.URL.Query()
	switch revision := eio.Revision(r); {
	case revision == 0:
		eio.UnsupportedRevision().Write(w)
	case revision == eio.Revision3 && q.Get("transport") == "websocket" && q.Get("sid") == "":
		s.serveLibrary(w, r)
	default:
		s.engine.ServeHTTP(w, r)
	}
}

// enter makes Run wait for a request.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// begin takes one of the places for connections. end gives it back; ctx ends then, or when the Server does.
func (s *Server) begin() (ctx context.Context, end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.lives) >= s.cfg.MaxPending {
		return nil, nil, false
	}
	s.nextID++
	id := s.nextID
	ctx, cancel := context.WithCancel(context.Background())
	s.lives[id] = cancel
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.lives, id)
	}, true
}

// start serves a connection of our own engine in a goroutine that Run waits for.
func (s *Server) start(c *eio.Conn) bool {
	ctx, end, ok := s.begin()
	if !ok {
		return false
	}
	s.wg.Go(func() {
		defer end()
		defer c.Close()
		defer s.recovered()
		s.register(ctx, c, c.Revision, Origin{Remote: c.Remote})
	})
	return true
}

// recovered keeps a panic of the library or of Admit from ending the manager.
func (s *Server) recovered() {
	p := recover()
	if p == nil {
		return
	}
	s.count(func(st *Stats) { st.Panics++ })
	s.log.Error("registration panicked", "err", p, "stack", string(debug.Stack()))
}

func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}
