package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"skerry.internal/messages"
)

func frame(first byte, length int, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(length)), body...)
}

func TestGuardPassesWhatABrokerMaySend(t *testing.T) {
	var stream []byte
	stream = append(stream, frame(0x20, 2, []byte{0, 0})...)
	stream = append(stream, frame(0x90, 3, []byte{0, 1, 1})...)
	stream = append(stream, frame(0x32, 1<<20, bytes.Repeat([]byte{0xff}, 1<<20))...)
	stream = append(stream, frame(0x40, 2, []byte{0, 1})...)
	stream = append(stream, frame(0xd0, 0, nil)...)
	near, far := net.Pipe()
	go func() {
		for b := stream; len(b) > 0; { // in pieces that split headers too
			n := min(len(b), 1+len(b)%977)
			far.Write(b[:n])
			b = b[n:]
		}
		far.Close()
	}()
	got, err := io.ReadAll(&Conn{Conn: near})
	if err != nil || !bytes.Equal(got, stream) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(stream))
	}
}

func TestGuardStopsWhatKillsPaho(t *testing.T) {
	for name, b := range map[string][]byte{
		"a length of 256 MiB":         {0x30, 0xff, 0xff, 0xff, 0x7f},
		"a length without end":        {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"an answer to two filters":    frame(0x90, 4, []byte{0, 1, 1, 1}),
		"an empty acknowledgement":    frame(0x40, 0, nil),
		"QoS 2":                       frame(0x34, 5, nil),
		"a CONNECT":                   frame(0x10, 2, nil),
		"type 0":                      frame(0x00, 0, nil),
		"a publish over the limit":    frame(0x30, messages.MaxPacket+1, nil),
		"a good frame, then bad ones": append(frame(0x20, 2, []byte{0, 0}), 0xf0, 0x00),
	} {
		near, far := net.Pipe()
		go func() { far.Write(b); far.Close() }()
		if _, err := io.ReadAll(&Conn{Conn: near}); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: got %v", name, err)
		}
		near.Close()
	}
}

// piped is a connection that gives what a broker has sent, and then ends.
type piped struct {
	net.Conn
	*bytes.Reader
}

func (p piped) Read(b []byte) (int, error) { return p.Reader.Read(b) }

// FuzzGuard holds for bytes of any kind from a broker: what the guard lets through, paho decodes without a panic, into packets that take no more memory than
// the contract's largest, and an answer to a SUBSCRIBE is to one filter.
func FuzzGuard(f *testing.F) {
	for _, b := range [][]byte{frame(0x20, 2, []byte{0, 0}), frame(0x90, 3, []byte{0, 1, 1}), frame(0x32, 9, []byte("\x00\x03a/b\x00\x01xy")), frame(0x40, 2, []byte{0, 1}), frame(0xd0, 0, nil),
		frame(0x32, 2, []byte{0xff, 0xff}), frame(0x90, 4, []byte{0, 1, 1, 1}), {0x30, 0xff, 0xff, 0xff, 0x7f}} {
		f.Add(b)
		f.Add(append(frame(0x20, 2, []byte{0, 0}), b...))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		g := &Conn{Conn: piped{Reader: bytes.NewReader(sent)}}
		for {
			p, err := packets.ReadPacket(g)
			if err != nil {
				return
			}
			switch p := p.(type) {
			case *packets.PublishPacket:
				if n := len(p.TopicName) + len(p.Payload); n > messages.MaxPacket || p.Qos > 1 {
					t.Fatalf("%d bytes of QoS %d", n, p.Qos)
				}
			case *packets.SubackPacket:
				if len(p.ReturnCodes) != 1 {
					t.Fatalf("an answer to %d filters", len(p.ReturnCodes))
				}
			}
		}
	})
}
