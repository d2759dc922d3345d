// Package bind moves sealed packets between nodes: over UDP in batches, or through the relay. It finds out by probing which way to a peer
// works and which is best. It cannot read the packets that it moves, and it tells the peers' probes from anybody else's by their keys.
//
// A peer begins relayed. While packets flow, both sides are asked (through the relay) to send probes to all endpoints of the other at once,
// which opens what NATs there are between them; the first probe that is answered makes the peer direct:
//
//	relayed ──answer──> direct ──no answer for 1 s under traffic, or 6.5 s──> both ways at once ──none for 6.5 s──> relayed
//	                      ^────────────────────────────answer──────────────────────────┘
//
// A peer that never sent a probe (a stock WireGuard client) is direct to wherever its last authentic packet came from.
//
// The packets' path takes no lock: it reads a table and a route by atomic pointers. Everything else is under one mutex.
package bind

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailscale/wireguard-go/conn"

	"skerry.internal/netmanager/relay"
)

// Relay is a stream to the relay, as the bind uses it.
type Relay interface {
	// Send hands a packet over, copied. It never blocks.
	Send(to relay.Key, packet []byte) bool
	Connected() bool
	Local() netip.Addr // this node's address of the stream; not valid: there is no stream
	Redial()
}

// Config is what a bind needs to know.
type Config struct {
	PrivateKey relay.Key
	Port       uint16
	Relay      Relay                 // nil: none
	Reflectors []netip.AddrPort      // STUN servers
	Hidden     func(netip.Addr) bool // addresses that are neither offered to peers nor tried, such as the overlay's own; nil: none
	// Session says whether WireGuard holds a session with a peer. Stale is called when the peer holds one that we do not, for we were
	// restarted; Reached when a peer can be reached that could not be before. They must not block, nor call the bind.
	Session func(relay.Key) bool
	Stale   func(relay.Key)
	Reached func(relay.Key)
}

// Bind is a conn.Bind whose endpoints are peers.
type Bind struct {
	cfg    Config
	public relay.Key
	log    *slog.Logger
	boot   uint64
	port   uint16

	table   atomic.Pointer[table]
	sockets atomic.Pointer[[]*socket]
	inbox   chan relayed // from the relay's stream
	ignored atomic.Uint64
	wake    chan struct{} // capacity 1: look again now

	handshakes handshakes

	// mu guards everything below, and the fields of a Peer that say so.
	mu     sync.Mutex
	opened chan struct{} // closed by Close; nil: not open
	gen    uint32
	probes map[uint64]sent
	around surroundings
}

// table is how peers are found. It does not change.
type table struct {
	byKey map[relay.Key]*Peer
	byTag map[[tagSize]byte]*Peer
}

var _ conn.Bind = (*Bind)(nil)

// New checks cfg and binds the port.
func New(cfg Config, log *slog.Logger) (*Bind, error) {
	if cfg.PrivateKey.IsZero() {
		return nil, errors.New("no private key")
	}
	for _, f := range []*func(relay.Key){&cfg.Stale, &cfg.Reached} {
		if *f == nil {
			*f = func(relay.Key) {}
		}
	}
	if cfg.Session == nil {
		cfg.Session = func(relay.Key) bool { return true }
	}
	sockets, port, err := listen(cfg.Port)
	if err != nil {
		return nil, err
	}
	b := &Bind{
		cfg: cfg, public: cfg.PrivateKey.Public(), log: log, boot: max(1, rand.Uint64()), port: port,
		inbox: make(chan relayed, inboxLength), wake: make(chan struct{}, 1), probes: map[uint64]sent{},
		handshakes: handshakes{begun: map[uint32]*Peer{}, seed: maphash.MakeSeed()},
	}
	b.sockets.Store(&sockets)
	b.table.Store(&table{})
	b.around.init(cfg.Reflectors)
	return b, nil
}

// Release closes the port of a bind that was never opened.
func (b *Bind) Release() {
	if s := b.sockets.Swap(nil); s != nil {
		closeAll(*s)
	}
}

// Port returns the UDP port.
func (b *Bind) Port() uint16 { return b.port }

// Ignored returns how many datagrams came in that were nothing of ours.
func (b *Bind) Ignored() uint64 { return b.ignored.Load() }

// Open begins to receive. The port is the one that New bound.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	if b.sockets.Load() == nil {
		sockets, _, err := listen(b.port)
		if err != nil {
			return nil, 0, err
		}
		b.sockets.Store(&sockets)
	}
	b.opened = make(chan struct{})
	var receivers []conn.ReceiveFunc
	for _, s := range *b.sockets.Load() {
		receivers = append(receivers, b.receiver(s, b.opened))
	}
	return append(receivers, b.relayReceiver(b.opened)), b.port, nil
}

// Close ends all receivers.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened == nil {
		return nil // what New bound waits for Open
	}
	close(b.opened)
	b.opened = nil
	b.Release()
	return nil
}

// SetMark does nothing: the overlay's routes never catch its own carrier.
func (b *Bind) SetMark(uint32) error { return nil }

// BatchSize is the most packets in one call.
func (b *Bind) BatchSize() int { return batch }

// ParseEndpoint returns the peer with the given key in its text form.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	key, err := relay.ParseKey(s)
	if err != nil {
		return nil, err
	}
	if p := b.table.Load().byKey[key]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("endpoint %s: no such peer", s)
}

// receiver returns the function that receives from a socket: WireGuard's packets go on, probes and answers of reflectors end here.
func (b *Bind) receiver(s *socket, closed chan struct{}) conn.ReceiveFunc {
	var last *origin // most packets come from where the one before came from
	return func(slab []byte, packets []conn.ReceivedPacket) (int, error) {
		for {
			n := 0
			err := s.receive(slab, func(offset, size int, from netip.AddrPort, src []byte) error {
				if n == len(packets) {
					return fmt.Errorf("more than %d packets at once", len(packets))
				}
				if last == nil || last.to.addr != from || !slices.Equal(last.to.src, src) {
					last = b.origin(from, src)
				}
				packet := slab[offset : offset+size]
				if !b.sealed(packet) {
					b.control(packet, last)
					return nil
				}
				if !b.handshakes.pass(packet) {
					return nil
				}
				packets[n] = conn.ReceivedPacket{Offset: offset, Size: size, Endpoint: last}
				n++
				return nil
			})
			if err != nil && !errors.Is(err, net.ErrClosed) {
				// It says something about one datagram or about memory, not about the socket; WireGuard would give up the socket.
				b.ignored.Add(1)
				select {
				case <-time.After(errorPause):
				case <-closed:
				}
				err = nil
			}
			if err != nil || n > 0 {
				return n, err
			}
		}
	}
}

// sealed says whether a packet is one of WireGuard's.
func (b *Bind) sealed(packet []byte) bool {
	if len(packet) < 4 {
		return false
	}
	t := binary.LittleEndian.Uint32(packet)
	return t >= 1 && t <= 4
}

// Send sends packets to a peer, by the way that is the best now, or back to where a packet came from.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint, offset int) error {
	switch to := ep.(type) {
	case *Peer:
		return b.sendPeer(bufs, offset, to)
	case *origin:
		return b.sendTo(bufs, offset, to.to)
	case *relayOrigin:
		b.sendRelay(bufs, offset, to.peer)
		return nil
	}
	return conn.ErrWrongEndpointType
}

func (b *Bind) sendTo(bufs [][]byte, offset int, to *destination) error {
	s := b.socketFor(to.addr.Addr())
	if s == nil {
		return net.ErrClosed
	}
	return s.send(bufs, offset, to)
}

func (b *Bind) socketFor(a netip.Addr) *socket {
	sockets := b.sockets.Load()
	if sockets == nil {
		return nil
	}
	for _, s := range *sockets {
		if s.v6 == a.Is6() {
			return s
		}
	}
	return nil
}

// Run keeps the ways to the peers until ctx ends.
func (b *Bind) Run(ctx context.Context) error {
	changes, stop, err := watchAddresses()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	moved := make(chan struct{}, 1)
	wg.Go(func() { changes(moved) })
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	b.look(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
			b.look(time.Now())
		case <-b.wake:
			b.tick(time.Now())
		case now := <-tick.C:
			b.tick(now)
		}
	}
}

// nudge makes Run look at the peers now.
func (b *Bind) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
