package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A frame is a length (2 bytes, of what follows), a key (32 bytes: whom it is for, or from the relay whom it is from) and a packet. A frame
// without a key is a beat, which says no more than that the stream lives.
const (
	frameHead  = 2
	frameFixed = 32
	// MaxPacket is the largest packet that is carried.
	MaxPacket = 1<<16 - 1 - frameFixed
)

const (
	readSmall = 4 << 10   // of an idle stream: there may be ten thousand
	readLarge = 128 << 10 // of one with packets that are larger than that
	// queueLimit bounds what waits for a stream: 10 ms of a fast link, half a second of a slow one.
	queueLimit = 512 << 10
	// queueKeep is what an empty queue keeps for the next packets.
	queueKeep = 16 << 10
)

var errFrame = errors.New("malformed frame")

func appendFrame(b []byte, key Key, packet []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(frameFixed+len(packet)))
	b = append(b, key[:]...)
	return append(b, packet...)
}

// reader reads frames from a stream.
type reader struct {
	from io.Reader
	buf  []byte
	r, w int // what is read and not yet given out
	fill func() error
}

// next returns the next frame. The packet is valid until the next call. A frame that is too short for a key is an error: the stream is not ours.
func (r *reader) next() (Key, []byte, error) {
	if err := r.need(frameHead); err != nil {
		return Key{}, nil, err
	}
	length := int(binary.BigEndian.Uint16(r.buf[r.r:]))
	if length < frameFixed {
		return Key{}, nil, fmt.Errorf("%w: %d bytes", errFrame, length)
	}
	if err := r.need(frameHead + length); err != nil {
		return Key{}, nil, err
	}
	frame := r.buf[r.r+frameHead : r.r+frameHead+length]
	r.r += frameHead + length
	key := Key(frame)
	if key.IsZero() && r.r == r.w && len(r.buf) > readSmall { // nothing else has come for a while
		r.buf, r.r, r.w = nil, 0, 0
	}
	return key, frame[frameFixed:], nil
}

// need makes sure that n bytes are there.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		if r.r > 0 {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		}
		if r.w == len(r.buf) || len(r.buf) < n {
			size := readSmall
			if len(r.buf) > 0 {
				size = readLarge
			}
			r.buf = append(make([]byte, 0, size), r.buf[:r.w]...)[:size]
		}
		if r.fill != nil {
			if err := r.fill(); err != nil {
				return err
			}
		}
		got, err := r.from.Read(r.buf[r.w:])
		r.w += got
		if got == 0 && err != nil {
			if errors.Is(err, io.EOF) && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// queue holds the frames that wait for a stream, as the bytes that will be written.
type queue struct {
	ready chan struct{} // capacity 1: there is something

	mu     sync.Mutex // guards what follows
	bytes  []byte
	spare  []byte // what take gave out before
	closed bool
	// from counts the bytes of each sender, who gets no more than what is left for the others. nil: there is one.
	from map[Key]int
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

// newSharedQueue is for frames of several senders.
func newSharedQueue() *queue { return &queue{ready: make(chan struct{}, 1), from: map[Key]int{}} }

// put adds a frame; false says that there is no room.
func (q *queue) put(key Key, packet []byte) bool {
	if len(packet) > MaxPacket {
		return false
	}
	size := frameHead + frameFixed + len(packet)
	q.mu.Lock()
	left := queueLimit - len(q.bytes)
	if q.closed || size > left || q.from != nil && q.from[key]+size > left {
		q.mu.Unlock()
		return false
	}
	if q.from != nil {
		q.from[key] += size
	}
	q.bytes = appendFrame(q.bytes, key, packet)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

// take returns everything that waits; it is valid until the next call.
func (q *queue) take() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.bytes
	if cap(q.spare) > queueKeep && len(b) < queueKeep {
		q.spare = nil
	}
	q.bytes, q.spare = q.spare[:0], b
	clear(q.from)
	return b
}

// close makes the queue take nothing more, and forgets what is in it.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.bytes, q.spare = true, nil, nil
}
