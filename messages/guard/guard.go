// Package guard stands between a broker and a client library of MQTT: a node and the operator's command read a broker that may be anybody's, and the
// library they share believes what a broker says. It opens no connection and knows no topic.
package guard

import (
	"errors"
	"fmt"
	"io"
	"net"

	"skerry.internal/messages"
)

// The types of MQTT packet that a broker may send to a client that subscribes with QoS 1.
const (
	connack  = 2
	publish  = 3
	puback   = 4
	suback   = 9
	pingresp = 13
)

// ErrFrame is in what Read returns after a frame that is wrong. To connect again does not help.
var ErrFrame = errors.New("the broker does not speak MQTT as it should")

// Conn checks the frames of a broker before paho sees them: paho allocates whatever length a frame declares (up to 256 MiB), and
// an acknowledgement of more subscriptions than were asked for ends the process. So each SUBSCRIBE of its user names one filter, of QoS 1 at most. The
// frames of every manager's broker pass: they have messages.MaxPacket bytes at most. After a wrong one Read returns an ErrFrame that says which it was.
type Conn struct {
	net.Conn
	kind   byte // of the frame whose header is being read; 0 before it
	length int
	shift  int
	body   int // bytes of the current frame still to come
	err    error
}

// Read passes on what comes until a frame is wrong. After a local Close it says EOF, as paho ignores net.ErrClosed and would never
// end.
func (g *Conn) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.Conn.Read(p)
	if g.err = g.check(p[:n]); g.err != nil {
		return 0, g.err
	}
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (g *Conn) check(b []byte) error {
	for len(b) > 0 {
		if g.body > 0 {
			n := min(g.body, len(b))
			g.body -= n
			b = b[n:]
			continue
		}
		if err := g.header(b[0]); err != nil {
			return err
		}
		b = b[1:]
	}
	return nil
}

// header takes the next byte of a frame's header: its type, then one to four bytes of length.
func (g *Conn) header(c byte) error {
	if g.kind == 0 {
		g.kind, g.length, g.shift = c>>4, 0, 0
		if g.kind == 0 || (g.kind == publish && c&0x06 > 2) {
			return fmt.Errorf("%w: it sent a frame of type 0x%02x", ErrFrame, c)
		}
		return nil
	}
	g.length |= int(c&0x7f) << g.shift
	g.shift += 7
	if c&0x80 != 0 && g.shift < 28 {
		return nil
	}
	if c&0x80 != 0 || !sane(g.kind, g.length) {
		return fmt.Errorf("%w: it sent a frame of type %d and %d bytes", ErrFrame, g.kind, g.length)
	}
	g.body, g.kind = g.length, 0
	return nil
}

func sane(kind byte, length int) bool {
	switch kind {
	case connack, puback:
		return length == 2
	case publish:
		return length <= messages.MaxPacket
	case suback:
		return length == 3 // one filter a SUBSCRIBE
	case pingresp:
		return length == 0
	default:
		return false
	}
}
