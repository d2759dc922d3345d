package register

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"time"
)

// errBudget ends a connection that sends more than any registration needs.
var errBudget = errors.New("more bytes than a registration needs")

// tap puts a meter on the connection that a websocket takes over. The library sets no read limit and no deadline of its own.
type tap struct {
	http.ResponseWriter
	hijacker http.Hijacker
	lifetime time.Duration
	budget   int64
}

// Hijack hands the metered connection over.
func (t *tap) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := t.hijacker.Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &meter{Conn: c, until: time.Now().Add(t.lifetime), budget: t.budget}, rw, nil
}

// meter is a connection that ends at a time and after a number of bytes read, whatever its user asks for.
type meter struct {
	net.Conn
	until  time.Time
	budget int64 // belongs to the one reader
}

// Read reads within the budget.
func (m *meter) Read(p []byte) (int, error) {
	if m.budget <= 0 {
		return 0, errBudget
	}
	n, err := m.Conn.Read(p[:min(int64(len(p)), m.budget)])
	m.budget -= int64(n)
	return n, err
}

// SetDeadline sets both deadlines, but not beyond the connection's end.
func (m *meter) SetDeadline(t time.Time) error { return m.Conn.SetDeadline(m.cap(t)) }

// SetReadDeadline sets a deadline, but not beyond the connection's end.
func (m *meter) SetReadDeadline(t time.Time) error { return m.Conn.SetReadDeadline(m.cap(t)) }

// SetWriteDeadline sets a deadline, but not beyond the connection's end.
func (m *meter) SetWriteDeadline(t time.Time) error { return m.Conn.SetWriteDeadline(m.cap(t)) }

func (m *meter) cap(t time.Time) time.Time {
	if t.IsZero() || t.After(m.until) {
		return m.until
	}
	return t
}
