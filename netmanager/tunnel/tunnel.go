// Package tunnel carries packets between a TUN device and other nodes, sealed by WireGuard. It decides which way a packet takes to a peer:
// straight over UDP where that works, through the relay where it does not (package bind). It knows peers by their keys and prefixes; it
// knows no routes, links or services.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailscale/wireguard-go/device"

	"skerry.internal/netmanager/relay"
	"skerry.internal/netmanager/tun"
	"skerry.internal/netmanager/tunnel/bind"
)

// Key is a Curve25519 key, private or public.
type Key = relay.Key

// GenerateKey returns a new private key.
func GenerateKey() (Key, error) { return relay.GenerateKey() }

// What WireGuard may hold at once. A queue's place is a batch of packets in a slab of 128 KiB, however small they are, so the library's defaults (1024
// of them a peer, 128 for a peer that does not answer) are more than a board has. What does not fit waits in the kernel, in the socket's buffer or the
// TUN's queue, where a packet takes its own size.
const (
	queueStaged    = 16
	queuePackets   = 24
	queueHandshake = 256
)

// sealing is what WireGuard adds to a packet, beside padding to a multiple of padTo.
const (
	sealing = device.MessageTransportSize
	padTo   = device.PaddingMultiple
)

// Config is what a device needs to know. The key and the port are the caller's to keep: with the same ones a restart goes unnoticed.
type Config struct {
	PrivateKey Key
	ListenPort uint16 // 0: any; see Device.Port
	TUN        tun.Device
	Relay      *relay.Client         // nil: none; the device runs it
	STUN       []netip.AddrPort      // reflectors that tell this node's address as others see it
	Hidden     func(netip.Addr) bool // addresses that are neither offered to peers nor tried, such as the overlay's own; nil: none
}

// Peer is another node, or a guest, and the addresses that are behind it.
type Peer struct {
	Key          Key
	Prefixes     []netip.Prefix
	Endpoints    []netip.AddrPort // where it may be reached, as told by the control plane; for a guest, where it was when last seen
	PresharedKey Key
	Keepalive    time.Duration // WireGuard's own keepalive, in seconds; for guests behind a NAT
}

// Device is one node's end of the tunnels.
type Device struct {
	cfg    Config
	log    *slog.Logger
	bind   *bind.Bind
	events chan event
	routes atomic.Pointer[routes]
	muted  atomic.Int64 // until when WireGuard's errors are not logged

	// mu guards what follows.
	mu    sync.Mutex
	wg    *device.Device // nil before Run and after
	peers map[Key]Peer

	// sessionMu guards sessions: WireGuard tells them while it holds locks of its own.
	sessionMu sync.Mutex
	sessions  map[Key]session
}

// New checks cfg, binds the port and sets up the device; nothing runs before Run.
func New(cfg Config, log *slog.Logger) (*Device, error) {
	if cfg.TUN == nil {
		return nil, errors.New("no TUN device")
	}
	if cfg.PrivateKey.IsZero() {
		return nil, errors.New("no private key")
	}
	d := &Device{
		cfg: cfg, log: log, events: make(chan event, 1024),
		peers: map[Key]Peer{}, sessions: map[Key]session{},
	}
	d.routes.Store(&routes{})
	note := func(stale bool) func(Key) {
		return func(key Key) {
			select {
			case d.events <- event{key: key, stale: stale}:
			default: // WireGuard finds out by itself in 15 s
			}
		}
	}
	bc := bind.Config{
		PrivateKey: cfg.PrivateKey, Port: cfg.ListenPort, Reflectors: cfg.STUN, Hidden: cfg.Hidden,
		Session: d.hasSession, Stale: note(true), Reached: note(false),
	}
	if cfg.Relay != nil {
		bc.Relay = cfg.Relay
	}
	var err error
	if d.bind, err = bind.New(bc, log); err != nil {
		return nil, err
	}
	return d, nil
}

// Run carries packets until ctx ends. The TUN is closed when it returns. It is used once.
func (d *Device) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	wg := device.NewDevice(d.cfg.TUN, d.bind, d.logger(),
		device.WithQueueStagedSize(queueStaged), device.WithQueueOutboundSize(queuePackets),
		device.WithQueueInboundSize(queuePackets), device.WithQueueHandshakeSize(queueHandshake))
	var running sync.WaitGroup
	defer running.Wait()
	defer d.bind.Release()
	defer wg.Close()
	defer d.detach()
	defer cancel()
	if err := d.attach(wg); err != nil {
		return err
	}
	failed := make(chan error, 2)
	running.Go(func() { failed <- d.bind.Run(ctx) })
	if d.cfg.Relay != nil {
		running.Go(func() { failed <- d.cfg.Relay.Run(ctx, d.bind.Deliver) })
	}
	running.Go(func() { d.heal(ctx, wg) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() == nil {
			return err
		}
		return nil
	case <-wg.Wait():
		return errors.New("the TUN device is gone")
	}
}

// attach brings WireGuard up with the peers that were set before.
func (d *Device) attach(wg *device.Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	wg.SetSessionStateFunc(d.noteSession)
	private := device.NoisePrivateKey(d.cfg.PrivateKey)
	private[0] &= 248
	private[31] = private[31]&127 | 64
	if err := wg.SetPrivateKey(private); err != nil {
		return fmt.Errorf("private key: %w", err)
	}
	if err := wg.Up(); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	d.wg = wg
	want := d.peers
	d.peers = map[Key]Peer{}
	return d.applyLocked(want)
}

func (d *Device) detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wg = nil
}

// quiet is the least time between two of WireGuard's errors in the log: some come with every packet.
const quiet = 10 * time.Second

func (d *Device) logger() *device.Logger {
	return &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			now := time.Now().UnixNano()
			if until := d.muted.Load(); now < until || !d.muted.CompareAndSwap(until, now+int64(quiet)) {
				return
			}
			d.log.Warn("wireguard complains", "err", fmt.Sprintf(format, args...))
		},
	}
}

// Port returns the UDP port.
func (d *Device) Port() uint16 { return d.bind.Port() }

// Endpoints returns the addresses at which others may reach this node: its own and the ones that the reflectors see.
func (d *Device) Endpoints() []netip.AddrPort { return d.bind.Endpoints() }

// MTU returns the largest packet that reaches the peer behind dst in one piece; 0 where the path is no limit, or dst is nobody's.
func (d *Device) MTU(dst netip.Addr) int {
	key, ok := d.routes.Load().find(dst)
	if !ok {
		return 0
	}
	return inside(d.bind.Limit(key))
}

// inside returns how large a packet may be that becomes a sealed one of so many bytes; 0: there is no limit.
func inside(limit int) int { return max(0, limit-sealing) / padTo * padTo }
