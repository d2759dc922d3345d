package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/googollee/go-socket.io/engineio"
	eiosession "github.com/googollee/go-socket.io/engineio/session"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"

	"skerry.internal/messages"
)

// maxRegistration is the most bytes that a node reads during one registration; the largest honest one, a Welcome with
// certificates, is some 10 KiB.
const maxRegistration = 256 << 10

// The packet types of Socket.IO 2 (over Engine.IO 3) that a registration meets.
const (
	packetConnect    = '0'
	packetDisconnect = '1'
	packetEvent      = '2'
	packetError      = '4'
)

// packet is one Socket.IO packet without attachments. It is parsed here and not by the library's parser because that one
// allocates whatever number of attachments a packet announces, so that one packet ends the process.
type packet struct {
	kind      byte
	namespace string // "" is the root
	data      []byte
}

func parsePacket(b []byte) (packet, error) {
	if len(b) == 0 {
		return packet{}, errors.New("empty packet")
	}
	p := packet{kind: b[0]}
	if p.kind < '0' || p.kind > '4' {
		return packet{}, fmt.Errorf("packet type %q: not one of a registration", p.kind)
	}
	rest := string(b[1:])
	if strings.HasPrefix(rest, "/") {
		p.namespace, rest, _ = strings.Cut(rest, ",")
		p.namespace, _, _ = strings.Cut(p.namespace, "?")
		if p.namespace == "/" {
			p.namespace = ""
		}
	}
	p.data = []byte(strings.TrimLeft(rest, "0123456789")) // the number asks for an acknowledgement, which we never give
	return p, nil
}

// event returns the name and the first argument of an event packet.
func (p packet) event() (string, json.RawMessage, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(p.data, &parts); err != nil {
		return "", nil, fmt.Errorf("parse event: %w", err)
	}
	var name string
	if len(parts) == 0 || json.Unmarshal(parts[0], &name) != nil {
		return "", nil, errors.New("event without a name")
	}
	if len(parts) == 1 {
		return name, nil, nil
	}
	return name, parts[1], nil
}

// initConn is a Socket.IO connection that has asked to join the namespace of registrations.
type initConn struct{ engineio.Conn }

// dialInit connects to the manager. The connection ends with ctx, whatever it is doing then.
func (n network) dialInit(ctx context.Context) (initConn, error) {
	var unreachable error // the library hides it
	t := &websocket.Transport{NetDial: func(string, string) (net.Conn, error) {
		c, err := n.dial(ctx, n.manager)
		if err != nil {
			unreachable = err
			return nil, err
		}
		context.AfterFunc(ctx, func() { c.Close() })
		return &allowance{Conn: c, left: maxRegistration}, nil
	}}
	dialer := engineio.Dialer{Transports: []transport.Transport{t}}
	at := n.manager.JoinPath("socket.io/")
	at.Scheme = "http" // TLS is dial's
	conn, err := dialer.Dial(at.String(), http.Header{})
	if unreachable != nil {
		return initConn{}, unreachable
	}
	if err != nil {
		return initConn{}, explainDial(err)
	}
	c := initConn{conn}
	if err := c.send(packetConnect, ""); err != nil {
		return initConn{}, errors.Join(err, c.Close())
	}
	return c, nil
}

// explainDial adds what answered where that is no manager; the websocket package only says "bad handshake". A server that wants TLS says so.
func explainDial(err error) error {
	if d, ok := errors.AsType[websocket.DialError](err); ok && d.Response != nil {
		said, _ := io.ReadAll(io.LimitReader(d.Response.Body, 120)) //nolint:errcheck // what there is will do
		d.Response.Body.Close()
		return fmt.Errorf("no cluster manager there: HTTP status %s: %q", d.Response.Status, strings.TrimSpace(string(said)))
	}
	return err
}

func (c initConn) send(kind byte, data string) error {
	w, err := c.NextWriter(eiosession.TEXT)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%c%s,%s", kind, messages.Namespace, data)
	return errors.Join(err, w.Close())
}

// emit sends an event with one argument.
func (c initConn) emit(event string, arg any) error {
	data, err := json.Marshal([]any{event, arg})
	if err != nil {
		return err
	}
	return c.send(packetEvent, string(data))
}

// next returns the next event of the namespace. An event may come before the confirmation of the namespace.
func (c initConn) next() (string, json.RawMessage, error) {
	for {
		p, err := c.read()
		if err != nil {
			return "", nil, err
		}
		switch {
		case p.kind == packetError:
			return "", nil, fmt.Errorf("the manager answered %s", clip(string(p.data)))
		case p.namespace != messages.Namespace:
		case p.kind == packetDisconnect:
			return "", nil, errors.New("the manager closed the registration")
		case p.kind == packetEvent:
			return p.event()
		}
	}
}

func (c initConn) read() (packet, error) {
	frame, r, err := c.NextReader()
	if err != nil {
		return packet{}, err
	}
	b, err := io.ReadAll(r) // bounded by the connection's allowance
	r.Close()
	switch {
	case err != nil:
		return packet{}, err
	case frame != eiosession.TEXT:
		return packet{}, errors.New("binary packet: not one of a registration")
	}
	return parsePacket(b)
}

// errAllowance says that the peer sent more than a registration can hold.
var errAllowance = fmt.Errorf("more than %d bytes came: %w", maxRegistration, messages.ErrTooLarge)

// allowance is a connection of which only so many bytes are read.
type allowance struct {
	net.Conn
	left int
}

// Read fails once the allowance is used up.
func (a *allowance) Read(p []byte) (int, error) {
	if a.left <= 0 {
		return 0, errAllowance
	}
	n, err := a.Conn.Read(p[:min(len(p), a.left)])
	a.left -= n
	return n, err
}

// clip shortens what came from outside for an error or a log line.
func clip(s string) string {
	if len(s) > 120 {
		return s[:117] + "..."
	}
	return s
}
