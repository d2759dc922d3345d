// Package tuntest has a TUN device made of channels: a test plays the kernel at its other end.
package tuntest

import (
	"os"
	"sync"

	"skerry.internal/netmanager/tun"
)

// TUN is a device without a kernel. What the test sends to Out is read by the device's user; what the user writes comes out of In.
type TUN struct {
	// Out carries packets as the kernel would send them into the device.
	Out chan []byte
	// In carries packets as the kernel would receive them from the device. The test must drain it: Write waits for room.
	In chan []byte

	mtu    int
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

var _ tun.Device = (*TUN)(nil)

// BatchSize is the most packets that one Read of a TUN returns.
const BatchSize = 128

// New returns a device that is up, with room for depth packets in each direction.
func New(mtu, depth int) *TUN {
	t := &TUN{Out: make(chan []byte, depth), In: make(chan []byte, depth), mtu: mtu, events: make(chan tun.Event, 1), closed: make(chan struct{})}
	t.events <- tun.EventUp
	return t
}

// File returns nil: there is no kernel behind this device.
func (t *TUN) File() *os.File { return nil }

// Read waits for a packet and returns it with those that are there already.
func (t *TUN) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	var packet []byte
	select {
	case packet = <-t.Out:
	case <-t.closed:
		return 0, os.ErrClosed
	}
	at, n := tun.Spacing, 0
	for {
		if at+len(packet)+tun.Spacing > len(slab) {
			return n, tun.ErrTooManySegments
		}
		packets[n] = tun.ReadPacket{Offset: at, Size: copy(slab[at:], packet)}
		at += len(packet) + tun.Spacing
		if n++; n == min(len(packets), BatchSize) {
			return n, nil
		}
		select {
		case packet = <-t.Out:
		default:
			return n, nil
		}
	}
}

// Write hands copies of the packets to In.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	for i, buf := range bufs {
		select {
		case t.In <- append([]byte(nil), buf[offset:]...):
		case <-t.closed:
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

// MTU returns what New was told.
func (t *TUN) MTU() (int, error) { return t.mtu, nil }

// Name returns the name of the device.
func (t *TUN) Name() (string, error) { return "tuntest", nil }

// Events reports once that the device is up, and is closed with it.
func (t *TUN) Events() <-chan tun.Event { return t.events }

// Close ends every Read and Write.
func (t *TUN) Close() error {
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
	})
	return nil
}

// BatchSize returns the constant of that name.
func (t *TUN) BatchSize() int { return BatchSize }
