package relay

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Answers to one sender: a node asks once in 25 s on each port. Senders share the places of a table of fixed size by chance, so that
// forged addresses cost nothing.
const (
	answersBurst  = 32
	answersPerSec = 8
	senders       = 4096
)

// ReflectorConfig is what a reflector needs to know.
type ReflectorConfig struct {
	Addrs []string // one or two UDP addresses, host:port; two tell a client what kind of NAT it is behind
}

// Reflector answers STUN binding requests: it tells who asks the address that the question came from. An answer is at most 24 bytes larger
// than its question.
type Reflector struct {
	conns []*net.UDPConn
	log   *slog.Logger
	seed  maphash.Seed

	mu      sync.Mutex // guards allowed
	allowed [senders]bucket
}

// bucket is how many answers a sender may still have.
type bucket struct {
	left float64
	at   time.Time
}

// NewReflector binds the addresses.
func NewReflector(cfg ReflectorConfig, log *slog.Logger) (*Reflector, error) {
	r := &Reflector{log: log, seed: maphash.MakeSeed()}
	if len(cfg.Addrs) == 0 {
		return nil, errors.New("reflector: no address")
	}
	for _, a := range cfg.Addrs {
		pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", a)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reflector: %w", err), r.close())
		}
		r.conns = append(r.conns, pc.(*net.UDPConn))
	}
	return r, nil
}

func (r *Reflector) close() error {
	var err error
	for _, c := range r.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Addrs returns the addresses that it is bound to.
func (r *Reflector) Addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, c := range r.conns {
		addrs = append(addrs, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return addrs
}

// Run answers until ctx ends.
func (r *Reflector) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range r.conns {
		wg.Go(func() { r.serve(ctx, c) })
	}
	<-ctx.Done()
	return r.close()
}

func (r *Reflector) serve(ctx context.Context, c *net.UDPConn) {
	buf := make([]byte, 1500)
	for ctx.Err() == nil {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // it says something about one datagram
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		tx, err := parseBindingRequest(buf[:n])
		if err != nil || !r.allow(from.Addr(), time.Now()) {
			continue
		}
		_, _ = c.WriteToUDPAddrPort(bindingResponse(tx, from), from) // who asked asks again
	}
}

// allow says whether a sender may have another answer.
func (r *Reflector) allow(sender netip.Addr, now time.Time) bool {
	if sender.Is6() {
		prefix, err := sender.Prefix(64)
		if err != nil {
			return false
		}
		sender = prefix.Addr()
	}
	place := maphash.Comparable(r.seed, sender) % senders
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &r.allowed[place]
	if b.at.IsZero() {
		b.left = answersBurst
	} else {
		b.left = min(answersBurst, b.left+now.Sub(b.at).Seconds()*answersPerSec)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
