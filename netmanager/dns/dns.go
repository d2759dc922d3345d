// Package dns is the name server of a node: it answers for the names of jobs from a table that the node holds, and hands everything else to the
// name servers of the host. It listens on the addresses it is given, which are the bridge's, and answers only who asks from within the overlay or
// from this host. It keeps no cache of the world and asks nobody about the zone: what is not in the table is asked for once, by a call to OnMiss,
// while the query waits a moment.
//
//	packet → from us? → well formed? → zone ──── in the table → answer, at once, in the reader's goroutine
//	                                      └───── not there    → OnMiss, wait ≤ 300 ms for a table → answer | no such name | server failure
//	                                   → else  ─ next upstream, one after the other              → its answer as it came | server failure
//
// What waits is bounded, in all and for each client, so that nobody can make the others wait.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Config is what a Server needs to know.
type Config struct {
	// Listen are the addresses that are served, by UDP and TCP each. They need not exist yet; those of IPv6 are left out where the kernel has none of
	// it, unless there are no others. The unspecified address is refused: it would serve strangers.
	Listen []netip.AddrPort
	// Zone is the domain of the jobs, such as skerry.internal.
	Zone string
	// Networks are the overlay's prefixes. Who asks from elsewhere gets no answer, loopback aside; what is asked about addresses in there is answered
	// here and never handed on.
	Networks []netip.Prefix
	// Upstreams returns the name servers for everything else; see Host. It is called for every such query, from many goroutines.
	Upstreams func() []netip.AddrPort
	// OnMiss hears of a job that is asked for and not in the table, once for all who ask at the same time. It must not block. nil: the table is whole.
	OnMiss func(job string)
	// OnHit hears of a job of the table with every question about one of its names. It must not block. nil: nobody wants to know.
	OnHit func(job string)
}

func (c Config) validate() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("no address to listen on"))
	}
	for _, l := range c.Listen {
		if !l.IsValid() || l.Addr().IsUnspecified() {
			errs = append(errs, fmt.Errorf("listen address %s: want one address, not all", l))
		}
	}
	if _, ok := wire.IsDomainName(c.Zone); !ok || strings.Trim(c.Zone, ".") == "" {
		errs = append(errs, fmt.Errorf("zone %q is not a domain", c.Zone))
	}
	for _, n := range c.Networks {
		if !n.IsValid() {
			errs = append(errs, errors.New("a network is not valid"))
		}
	}
	if c.Upstreams == nil {
		errs = append(errs, errors.New("no upstreams"))
	}
	return errors.Join(errs...)
}

// Server answers queries. Make it by New; it is used once.
type Server struct {
	zone  zone
	table atomic.Pointer[Table]
	miss  *misses
	hit   func(job string)
	busy  *limiter // queries that wait, for a table or for an upstream
	conns *limiter // TCP connections
	up    *forwarder
	log   *slog.Logger

	networks []netip.Prefix
	udp      []*net.UDPConn
	tcp      []net.Listener
}

// The bounds of what waits. A board has some tens of containers, and a resolver asks a handful of things at a time.
const (
	maxBusy, maxBusyEach   = 1024, 128
	maxConns, maxConnsEach = 256, 32
)

// New checks the configuration and binds the sockets. Nothing is answered before Run.
func New(ctx context.Context, cfg Config, log *slog.Logger) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	s := &Server{networks: cfg.Networks, log: log, busy: newLimiter(maxBusy, maxBusyEach), conns: newLimiter(maxConns, maxConnsEach),
		miss: newMisses(cfg.OnMiss), hit: cfg.OnHit}
	if s.hit == nil {
		s.hit = func(string) {}
	}
	s.table.Store(NewTable(nil))
	var noFamily error
	for _, l := range cfg.Listen {
		udp, tcp, err := listen(ctx, l)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			noFamily = err
			continue
		}
		if err != nil {
			s.close()
			return nil, fmt.Errorf("dns: %w", err)
		}
		s.udp, s.tcp = append(s.udp, udp), append(s.tcp, tcp)
	}
	if len(s.udp) == 0 {
		return nil, fmt.Errorf("dns: %w", noFamily)
	}
	s.zone = newZone(cfg.Zone, cfg.Networks, s.Addrs())
	s.up = newForwarder(cfg.Upstreams, func(a netip.AddrPort) bool { return s.ours(a.Addr()) })
	return s, nil
}

// Addrs returns the addresses that are served.
func (s *Server) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, u := range s.udp {
		if a, ok := u.LocalAddr().(*net.UDPAddr); ok {
			out = append(out, unmap(a.AddrPort()))
		}
	}
	return out
}

// SetTable takes another table in use, for every query from now on, and answers those that have waited for a name in it.
func (s *Server) SetTable(t *Table) {
	s.table.Store(t)
	s.zone.serial.Add(1)
	s.miss.found(t.has)
}

// Unknown says that these jobs do not exist: who waits for one of them hears so at once, and who asks within the next seconds too.
func (s *Server) Unknown(jobs ...string) { s.miss.unknown(jobs) }

// Run serves until ctx ends, and returns when nothing of it is left.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	errs := make(chan error, len(s.udp)+len(s.tcp))
	serve := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				errs <- err
				cancel() // one socket less would be half a server
			}
		})
	}
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	for _, u := range s.udp {
		serve(func(ctx context.Context) error { return s.serveUDP(ctx, u) })
	}
	for _, l := range s.tcp {
		serve(func(ctx context.Context) error { return s.serveTCP(ctx, l) })
	}
	wg.Wait()
	cancel()
	select {
	case err := <-errs:
		return fmt.Errorf("dns: %w", err)
	default:
		return nil
	}
}

func (s *Server) close() {
	for _, u := range s.udp {
		_ = u.Close()
	}
	for _, l := range s.tcp {
		_ = l.Close()
	}
}

// welcome says whether a client may ask: it is in the overlay, where nobody is without a key, or on this host.
func (s *Server) welcome(from netip.Addr) bool { return from.IsLoopback() || s.ours(from) }

func (s *Server) ours(a netip.Addr) bool {
	for _, n := range s.networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
