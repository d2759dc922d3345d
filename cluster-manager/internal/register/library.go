package register

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/googollee/go-socket.io/engineio/session"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"

	"skerry.internal/cluster-manager/internal/register/eio"
)

// errTooLong ends a connection with a message beyond Config.MaxEvent.
var errTooLong = errors.New("message too long")

// serveLibrary serves Engine.IO 3 over a websocket with googollee's transport and session. This goroutine reads, another one
// registers, as in eio: what the library does wrong can be recovered in both, and nothing of it outlives them.
func (s *Server) serveLibrary(w http.ResponseWriter, r *http.Request) {
	life, end, ok := s.begin()
	if !ok {
		eio.Busy().Write(w)
		return
	}
	handedOver := false
	defer func() {
		if !handedOver {
			end()
		}
	}()
	l, err := s.openLibrary(w, r)
	if err != nil {
		s.log.Debug("websocket refused", "addr", r.RemoteAddr, "err", err)
		return
	}
	handedOver = true
	s.wg.Go(func() {
		defer end()
		defer l.close(io.EOF)
		defer s.recovered()
		s.register(life, l, eio.Revision3, Origin{Remote: r.RemoteAddr})
	})
	defer l.close(io.EOF) // also where the library panics
	l.close(l.deliverAll())
}

// openLibrary answers the request itself where it errs.
func (s *Server) openLibrary(w http.ResponseWriter, r *http.Request) (*libraryLink, error) {
	hijacker, ok := w.(http.Hijacker)
	if !ok || r.Method != http.MethodGet {
		eio.BadRequest().Write(w)
		return nil, errors.New("not a websocket handshake")
	}
	lifetime := s.cfg.Timeout + 3*Linger
	// The read buffer is set so that the websocket does not go on with net/http's, which would bypass the meter.
	t := websocket.Transport{ReadBufferSize: 1 << 10, WriteBufferSize: 4 << 10}
	conn, err := t.Accept(&tap{ResponseWriter: w, hijacker: hijacker, lifetime: lifetime, budget: 2*int64(s.cfg.MaxEvent) + 64<<10}, r)
	if err != nil {
		return nil, err
	}
	// The library makes PingTimeout its deadline for reading and writing, so it must outlast the registration.
	params := transport.ConnParameters{PingInterval: pingInterval(s.cfg.Timeout), PingTimeout: lifetime, Upgrades: []string{}}
	ses, err := session.New(conn, eio.NewID(), t.Name(), params)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := ses.InitSession(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &libraryLink{session: ses, most: s.cfg.MaxEvent, in: make(chan string), done: make(chan struct{})}, nil
}

// libraryLink is a link made of a session of the library.
type libraryLink struct {
	session *session.Session
	most    int
	in      chan string
	done    chan struct{} // closed with the session

	mu     sync.Mutex // guards reason and the closing of done
	reason error
}

// deliverAll hands the client's messages to Read until the session ends. The session answers pings meanwhile.
func (l *libraryLink) deliverAll() error {
	for {
		frame, r, err := l.session.NextReader()
		if err != nil {
			return err
		}
		message, err := readMessage(r, l.most)
		if err != nil {
			return err
		}
		if frame != session.TEXT {
			return errors.New("binary message")
		}
		select {
		case l.in <- message:
		case <-l.done:
			return io.EOF
		}
	}
}

func readMessage(r io.ReadCloser, most int) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if len(b) > most {
		err = errors.Join(err, errTooLong)
	}
	return string(b), errors.Join(err, r.Close())
}

// Read returns the client's next message.
func (l *libraryLink) Read(ctx context.Context) (string, error) {
	select {
	case m := <-l.in:
		return m, nil
	case <-l.done:
		l.mu.Lock()
		defer l.mu.Unlock()
		return "", l.reason
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Write sends one message.
func (l *libraryLink) Write(message string) error {
	w, err := l.session.NextWriter(session.TEXT)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, message)
	return errors.Join(err, w.Close())
}

// Drain has nothing to wait for: Write sends at once.
func (l *libraryLink) Drain(context.Context) error { return nil }

// close ends the session for the given reason; only the first counts.
func (l *libraryLink) close(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason != nil {
		return
	}
	l.reason = reason
	close(l.done)
	_ = l.session.Close() // the connection may be gone already
}
