package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tailscale/wireguard-go/conn"

	"skerry.internal/netmanager/relay"
)

const (
	inboxLength = 512 // packets from the relay that WireGuard has not taken yet; further ones are dropped
	maxSpray    = 4   // endpoints that packets go to while none is known to work
	freshAnswer = 5 * time.Second
)

// route is a way over UDP that works, or did a moment ago.
type route struct {
	to      *destination
	mtu     int          // of the path, 0 while it is not known
	link    int          // the MTU of our own link
	trusted atomic.Int64 // until when (Unix nanoseconds) it is enough to send here only
	heard   atomic.Int64 // when the last authentic packet came from there
}

// Peer is another node as WireGuard's endpoint. Where it is reached changes underneath.
type Peer struct {
	bind *Bind
	key  relay.Key
	box  box

	route    atomic.Pointer[route]
	spray    atomic.Pointer[[]*destination] // while there is no route
	answer   atomic.Pointer[answer]
	speaks   atomic.Bool  // it has sent a probe once
	lastSent atomic.Int64 // Unix nanoseconds
	lastData atomic.Int64 // received, on any way
	roaming  atomic.Int64 // when a new address of it was last looked at
	doubted  atomic.Int64 // when its packets last came through the relay though there was a direct way

	paths // guarded by Bind.mu

	asked    uint32    // the number of the last initiation to it; with the next, guarded by handshakes.mu
	answered time.Time // when the last answer to that came in
}

// answer is where a handshake came from that is not yet known to be authentic.
type answer struct {
	to *destination // nil: from the relay
	at time.Time
}

// ClearSrc lets the kernel choose the address that packets leave from.
func (p *Peer) ClearSrc() {
	r := p.route.Load()
	if r == nil || r.to.src == nil {
		return
	}
	n := &route{to: newDestination(r.to.addr), mtu: r.mtu, link: r.link}
	n.trusted.Store(r.trusted.Load())
	n.heard.Store(r.heard.Load())
	p.route.CompareAndSwap(r, n)
}

// SrcToString is for logs.
func (p *Peer) SrcToString() string { return "" }

// DstToString is for logs.
func (p *Peer) DstToString() string {
	if r := p.route.Load(); r != nil {
		return r.to.addr.String()
	}
	return p.key.String()
}

// DstToBytes is the peer's identity.
func (p *Peer) DstToBytes() []byte { return p.key[:] }

// DstIP returns an address that stands for the peer.
func (p *Peer) DstIP() netip.Addr { return keyAddr(p.key) }

// SrcIP returns no address.
func (p *Peer) SrcIP() netip.Addr { return netip.Addr{} }

// keyAddr stands for a key where WireGuard counts by address.
func keyAddr(k relay.Key) netip.Addr {
	raw := [16]byte{0: 0xfd}
	copy(raw[1:], k[:])
	return netip.AddrFrom16(raw)
}

// sendPeer never fails for a way that does not work: WireGuard could only log it.
func (b *Bind) sendPeer(bufs [][]byte, offset int, p *Peer) error {
	now := time.Now()
	p.lastSent.Store(now.UnixNano())
	first := bufs[0][offset:]
	handshake := len(first) > 0 && first[0] < 4
	if handshake {
		b.sent(p, first)
	}
	if a := p.answer.Load(); handshake && a != nil && first[0] == 2 && now.Sub(a.at) < freshAnswer {
		p.answer.Store(nil)
		if a.to == nil {
			b.sendRelay(bufs, offset, p)
		} else if r := p.route.Load(); r == nil || r.to.addr != a.to.addr {
			_ = b.sendTo(bufs, offset, a.to)
		}
	}
	r := p.route.Load()
	if r != nil {
		b.sendRoute(bufs, offset, p, r)
		if now.UnixNano() < r.trusted.Load() {
			return nil
		}
	}
	relayed := b.sendRelay(bufs, offset, p)
	if r == nil && (handshake || !relayed || !p.speaks.Load()) { // one that never spoke may be a guest, which has no relay
		if spray := p.spray.Load(); spray != nil {
			for _, to := range *spray {
				_ = b.sendTo(bufs, offset, to)
			}
		}
	}
	return nil
}

func (b *Bind) sendRoute(bufs [][]byte, offset int, p *Peer, r *route) {
	s := b.socketFor(r.to.addr.Addr())
	if s == nil {
		return
	}
	err := s.send(bufs, offset, r.to)
	if err == nil || r.to.src == nil {
		return
	}
	// The address that we were reached at is gone, or no longer on that link.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENODEV) {
		p.ClearSrc()
		if r = p.route.Load(); r != nil {
			_ = s.send(bufs, offset, r.to)
		}
	}
}

func (b *Bind) sendRelay(bufs [][]byte, offset int, p *Peer) bool {
	if b.cfg.Relay == nil || !b.cfg.Relay.Connected() {
		return false
	}
	for _, buf := range bufs {
		b.cfg.Relay.Send(p.key, buf[offset:])
	}
	return true
}

// origin is where packets came from over UDP. WireGuard tells it whose they were once that is proved.
type origin struct {
	bind *Bind
	to   *destination
	peer atomic.Pointer[Peer]
}

func (b *Bind) origin(from netip.AddrPort, src []byte) *origin {
	to := newDestination(from)
	to.src = slices.Clone(src)
	return &origin{bind: b, to: to}
}

// ClearSrc does nothing: an origin lives for one packet.
func (o *origin) ClearSrc() {}

// SrcToString is for logs.
func (o *origin) SrcToString() string { return "" }

// DstToString is for logs.
func (o *origin) DstToString() string { return o.to.addr.String() }

// DstToBytes is what a cookie is bound to.
func (o *origin) DstToBytes() []byte {
	raw := o.to.addr.Addr().As16()
	return binary.BigEndian.AppendUint16(raw[:], o.to.addr.Port())
}

// DstIP returns the sender's address.
func (o *origin) DstIP() netip.Addr { return o.to.addr.Addr() }

// SrcIP returns no address.
func (o *origin) SrcIP() netip.Addr { return netip.Addr{} }

// InitiationMessagePublicKey notes where an answer to a handshake must go if it turns out to be authentic.
func (o *origin) InitiationMessagePublicKey(key [32]byte) {
	if p := o.bind.table.Load().byKey[key]; p != nil {
		p.answer.Store(&answer{to: o.to, at: time.Now()})
	}
}

// FromPeer is told that an authentic packet of the peer came from here.
func (o *origin) FromPeer(key [32]byte) {
	p := o.peer.Load()
	if p == nil || p.key != key {
		if p = o.bind.table.Load().byKey[key]; p == nil {
			return
		}
		o.peer.Store(p)
	}
	now := time.Now().UnixNano()
	p.lastData.Store(now)
	if r := p.route.Load(); r != nil && r.to.addr == o.to.addr {
		r.heard.Store(now)
		return
	}
	if last := p.roaming.Load(); now-last > int64(20*time.Millisecond) && p.roaming.CompareAndSwap(last, now) {
		o.bind.roamed(p, o.to)
	}
}

// relayed is a packet from the relay.
type relayed struct {
	from   *relayOrigin
	packet []byte
}

// relayOrigin is a peer behind the relay as the origin of packets.
type relayOrigin struct {
	bind *Bind
	peer *Peer
}

// ClearSrc does nothing: there is no address.
func (o *relayOrigin) ClearSrc() {}

// SrcToString is for logs.
func (o *relayOrigin) SrcToString() string { return "" }

// DstToString is for logs.
func (o *relayOrigin) DstToString() string { return fmt.Sprintf("relay/%s", o.peer.key) }

// DstToBytes is what a cookie is bound to.
func (o *relayOrigin) DstToBytes() []byte { return o.peer.key[:] }

// DstIP returns an address that stands for the peer.
func (o *relayOrigin) DstIP() netip.Addr { return keyAddr(o.peer.key) }

// SrcIP returns no address.
func (o *relayOrigin) SrcIP() netip.Addr { return netip.Addr{} }

// InitiationMessagePublicKey notes that a handshake came through the relay, so that its answer goes there too.
func (o *relayOrigin) InitiationMessagePublicKey([32]byte) {
	o.peer.answer.Store(&answer{at: time.Now()})
}

// FromPeer is told that an authentic packet of the peer came through the relay. If the peer no longer trusts the direct way, it must be
// asked whether it still works.
func (o *relayOrigin) FromPeer([32]byte) {
	p, now := o.peer, time.Now().UnixNano()
	p.lastData.Store(now)
	r := p.route.Load()
	if r == nil || now >= r.trusted.Load() || !p.speaks.Load() {
		return
	}
	if last := p.doubted.Load(); now-last > int64(time.Second) && p.doubted.CompareAndSwap(last, now) {
		r.trusted.Store(0)
		p.bind.nudge()
	}
}

// Deliver takes a packet from the relay's stream. It never blocks and does not keep packet.
func (b *Bind) Deliver(from relay.Key, packet []byte) {
	p := b.table.Load().byKey[from]
	if p == nil {
		b.ignored.Add(1)
		return
	}
	if isFrame(packet) {
		b.frame(packet, nil, p)
		return
	}
	if !b.sealed(packet) {
		b.ignored.Add(1)
		return
	}
	select {
	case b.inbox <- relayed{from: &relayOrigin{bind: b, peer: p}, packet: slices.Clone(packet)}:
	default:
	}
}

// relayReceiver returns the function that receives what came from the relay, until closed is.
func (b *Bind) relayReceiver(closed chan struct{}) conn.ReceiveFunc {
	return func(slab []byte, packets []conn.ReceivedPacket) (int, error) {
		var next relayed
		select {
		case next = <-b.inbox:
		case <-closed:
			return 0, net.ErrClosed
		}
		for n, at := 0, 0; ; {
			if b.handshakes.pass(next.packet) {
				at += copy(slab[at:], next.packet)
				packets[n] = conn.ReceivedPacket{Offset: at - len(next.packet), Size: len(next.packet), Endpoint: next.from}
				n++
			}
			if n == len(packets) || len(slab)-at < maxDatagram {
				return n, nil
			}
			select {
			case next = <-b.inbox:
			default:
				return n, nil
			}
		}
	}
}
