// Package eio is the server side of Engine.IO, revisions 3 and 4: websocket, polling and the upgrade from one to the other. It
// carries text messages and knows nothing about what they say. It starts no goroutine of its own: whoever opens the Server
// decides in its start function whether a connection may exist and who serves it.
//
// A connection's life:
//
//	handshake ──polling──▶ open ──probe, "5"──▶ upgraded ──▶ closed
//	    └──────websocket──────────────────────────▲
//
// It never sends CORS headers (no browser is a client here), refuses JSONP and binary messages, and never trusts a length.
package eio

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Revisions of Engine.IO that are spoken here.
const (
	Revision3 = 3
	Revision4 = 4
)

// Names of the transports, as clients give them.
const (
	websocketTransport = "websocket"
	pollingTransport   = "polling"
)

// Config says how connections are kept.
type Config struct {
	PingInterval time.Duration // between pings: of the server in revision 4, of the client in revision 3
	PingTimeout  time.Duration // said to the client, which gives up after the two together
	MaxMessage   int           // bytes of one message
	IOTimeout    time.Duration // for one write, one request body, one step of an upgrade
}

// Validate reports all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.PingInterval < time.Millisecond || c.PingTimeout < time.Millisecond || c.IOTimeout <= 0 {
		errs = append(errs, errors.New("ping interval, ping timeout, I/O timeout: want more than nothing"))
	}
	if c.MaxMessage <= 0 {
		errs = append(errs, errors.New("max message: want more than nothing"))
	}
	return errors.Join(errs...)
}

// Server is the http.Handler of all connections.
type Server struct {
	cfg      Config
	start    func(*Conn) bool
	log      *slog.Logger
	upgrader websocket.Upgrader

	mu    sync.Mutex // guards conns
	conns map[string]*Conn
}

// New returns a Server that hands each new connection to start. start must return at once; false means that there is no room,
// which the client hears as 503. Whoever serves the connection closes it.
func New(cfg Config, start func(*Conn) bool, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, start: start, log: log, conns: make(map[string]*Conn),
		// Small read buffers: most connections send one message of some 2 KiB. Write buffers are shared through the pool.
		upgrader: websocket.Upgrader{HandshakeTimeout: cfg.IOTimeout, ReadBufferSize: 1 << 10, WriteBufferSize: 4 << 10, WriteBufferPool: new(sync.Pool), Error: upgradeError},
	}, nil
}

// Fault is an error of Engine.IO as its clients know it.
type Fault struct {
	Status  int    `json:"-"`
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// The faults that a request can have. The numbers are Engine.IO's.
var (
	faultTransport = Fault{http.StatusBadRequest, 0, "Transport unknown"}
	faultSession   = Fault{http.StatusBadRequest, 1, "Session ID unknown"}
	faultMethod    = Fault{http.StatusBadRequest, 2, "Bad handshake method"}
	faultRequest   = Fault{http.StatusBadRequest, 3, "Bad request"}
	faultTooLarge  = Fault{http.StatusRequestEntityTooLarge, 3, "Bad request"}
	faultBusy      = Fault{http.StatusServiceUnavailable, 4, "Forbidden"}
	faultRevision  = Fault{http.StatusBadRequest, 5, "Unsupported protocol version"}
)

// Busy is the answer where there is no room for a connection.
func Busy() Fault { return faultBusy }

// UnsupportedRevision is the answer to a request of a revision that nobody here speaks.
func UnsupportedRevision() Fault { return faultRevision }

// BadRequest is the answer to a request that makes no sense.
func BadRequest() Fault { return faultRequest }

// Write answers a request with the fault.
func (f Fault) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if f.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(f.Status)
	body, _ := json.Marshal(f) // a struct of numbers and strings always marshals
	_, _ = w.Write(body)       // the client is gone: nobody to tell
}

func upgradeError(w http.ResponseWriter, _ *http.Request, _ int, _ error) { faultRequest.Write(w) }

// Revision reads the EIO parameter of a request; 0 is none that is spoken here.
func Revision(r *http.Request) int {
	switch r.URL.Query().Get("EIO") {
	case "3":
		return Revision3
	case "4":
		return Revision4
	}
	return 0
}

// ServeHTTP answers one request. It returns when the request is answered, for a websocket when it is closed.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	transport, sid := q.Get("transport"), q.Get("sid")
	switch {
	case Revision(r) == 0:
		faultRevision.Write(w)
	case transport != websocketTransport && transport != pollingTransport, q.Has("j"):
		faultTransport.Write(w)
	case transport == websocketTransport && !websocket.IsWebSocketUpgrade(r):
		faultRequest.Write(w)
	case sid == "":
		s.handshake(w, r, transport)
	default:
		s.resume(w, r, transport, sid)
	}
}

// handshake opens a connection.
func (s *Server) handshake(w http.ResponseWriter, r *http.Request, transport string) {
	if r.Method != http.MethodGet {
		faultMethod.Write(w)
		return
	}
	c := s.newConn(r, transport)
	if !s.start(c) {
		c.Close()
		faultBusy.Write(w)
		return
	}
	if transport == pollingTransport {
		c.poll(w, r)
		return
	}
	ws, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		c.end(err)
		return
	}
	c.serveWebsocket(r, ws)
}

// resume takes a request to its connection.
func (s *Server) resume(w http.ResponseWriter, r *http.Request, transport, sid string) {
	s.mu.Lock()
	c := s.conns[sid]
	s.mu.Unlock()
	switch {
	case c == nil || c.Revision != Revision(r):
		faultSession.Write(w)
	case transport == websocketTransport:
		s.upgrade(w, r, c)
	case r.Method == http.MethodGet:
		c.poll(w, r)
	case r.Method == http.MethodPost:
		c.post(w, r)
	default:
		faultRequest.Write(w)
	}
}

// upgrade moves a polling connection to a websocket. Where it fails the connection goes on polling.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, c *Conn) {
	if !c.beginUpgrade() {
		faultRequest.Write(w)
		return
	}
	ws, err := s.upgrader.Upgrade(w, r, nil)
	if err == nil {
		err = c.probe(ws)
	}
	if err != nil {
		c.cancelUpgrade()
		s.log.Debug("upgrade refused", "addr", c.Remote, "err", err)
		return
	}
	c.serveWebsocket(r, ws)
}

func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c.ID)
}

// NewID returns 128 random bits in base64url, as a name that nobody can guess.
func NewID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return base64.RawURLEncoding.EncodeToString(b)
}
