package bind

import (
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/netmanager/relay"
)

const (
	reflectAgain = 25 * time.Second // also keeps the NAT's entry
	reflectFresh = 2 * time.Minute
	reflectTries = 4 // without an answer: UDP is blocked
)

// NAT is what kind of address translation is between this node and the reflectors.
type NAT string

// The kinds.
const (
	NATUnknown   NAT = "unknown"   // no reflector, or no answer yet
	NATNone      NAT = "none"      // the reflectors see an address of this node
	NATCone      NAT = "cone"      // one outside address for all destinations: can be punched
	NATSymmetric NAT = "symmetric" // another one for each destination
	NATBlocked   NAT = "blocked"   // no answer over UDP at all
)

// surroundings is what this node knows of its own addresses.
type surroundings struct {
	known      bool // local has been read
	local      []netip.Addr
	sources    []netip.Addr // which of them packets to the reflectors, and to anywhere, leave from
	reflectors []*reflector
	endpoints  []netip.AddrPort
	nat        NAT
	relayed    bool // the relay's stream was open at the last tick
}

// reflector is a STUN server and what it told.
type reflector struct {
	addr  netip.AddrPort
	tx    relay.Transaction
	next  time.Time
	tries int // since its last answer
	seen  netip.AddrPort
	at    time.Time
}

func (s *surroundings) init(reflectors []netip.AddrPort) {
	s.nat = NATUnknown
	for _, a := range reflectors {
		s.reflectors = append(s.reflectors, &reflector{addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())})
	}
}

// own says whether an endpoint is this node itself.
func (s *surroundings) own(a netip.AddrPort, port uint16) bool {
	return a.Port() == port && (a.Addr().IsLoopback() || slices.Contains(s.local, a.Addr()))
}

// look reads the local addresses. When they have changed, everything that depends on them is asked anew.
func (b *Bind) look(now time.Time) {
	local, sources := b.localAddresses(), b.sources()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.around
	if s.known && slices.Equal(s.local, local) && slices.Equal(s.sources, sources) {
		return
	}
	lost := !slices.Equal(s.sources, sources) || b.cfg.Relay != nil && s.cuts(b.cfg.Relay.Local(), local)
	first := !s.known
	s.known, s.local, s.sources = true, local, sources
	for _, r := range s.reflectors {
		r.next, r.tries, r.seen = now, 0, netip.AddrPort{}
	}
	b.askReflectors(now)
	b.describe(now)
	if first {
		b.nudge()
		return
	}
	b.log.Debug("addresses changed", "gen", b.gen+1)
	b.gen++
	if lost && b.cfg.Relay != nil {
		b.cfg.Relay.Redial()
	}
	for _, p := range b.table.Load().byKey {
		p.ClearSrc()
		r := p.route.Load()
		if r == nil || !p.speaks.Load() {
			continue
		}
		r.trusted.Store(0)
		p.nextPunch, p.punches = now, 0
		if c := p.candidates[r.to.addr]; c != nil {
			c.to = r.to
			b.ping(p, c, now)
		}
		b.search(p, now)
	}
}

// cuts says whether a stream from an address of ours has lost it now that these are our addresses. One that is being dialled may have.
func (s *surroundings) cuts(stream netip.Addr, local []netip.Addr) bool {
	return !stream.IsValid() || slices.Contains(s.local, stream) && !slices.Contains(local, stream)
}

// localAddresses returns the addresses of this machine that others may know.
func (b *Bind) localAddresses() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var found []netip.Addr
	for _, a := range all {
		prefix, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(prefix.IP)
		ip = ip.Unmap()
		if !ok || !ip.IsGlobalUnicast() || (b.cfg.Hidden != nil && b.cfg.Hidden(ip)) {
			continue
		}
		found = append(found, ip)
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found)
}

// anywhere stands for the rest of the world where only the route counts.
var anywhere = []netip.AddrPort{netip.MustParseAddrPort("192.88.99.1:9"), netip.MustParseAddrPort("[2001::1]:9")}

// sources returns the addresses that the kernel chooses now for packets to the reflectors and to anywhere.
func (b *Bind) sources() []netip.Addr {
	var found []netip.Addr
	for _, to := range slices.Concat(b.cfg.Reflectors, anywhere) {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // sends nothing
		if err != nil {
			found = append(found, netip.Addr{})
			continue
		}
		found = append(found, c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
		_ = c.Close()
	}
	return found
}

// askReflectors asks those whose time has come.
func (b *Bind) askReflectors(now time.Time) {
	blocked := false
	for _, r := range b.around.reflectors {
		if now.Before(r.next) {
			continue
		}
		wait := reflectAgain
		if r.tries > 0 || r.at.IsZero() || !r.seen.IsValid() {
			wait = min(repeatPing<<min(r.tries, 4), heartbeat)
		}
		if r.tries++; r.tries == reflectTries+1 {
			r.seen, blocked = netip.AddrPort{}, true
		}
		r.next = now.Add(wait)
		_, _ = rand.Read(r.tx[:]) // never fails
		_ = b.sendTo([][]byte{relay.BindingRequest(r.tx)}, 0, newDestination(r.addr))
	}
	if blocked {
		b.describe(now)
	}
}

// reflected takes a reflector's answer.
func (b *Bind) reflected(tx relay.Transaction, seen, from netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, r := range b.around.reflectors {
		if r.tx == tx && r.addr == from && r.tries > 0 {
			r.seen, r.at, r.tries, r.next = seen, now, 0, now.Add(reflectAgain)
			b.describe(now)
			return
		}
	}
	b.ignored.Add(1)
}

// describe works out the endpoints and the kind of NAT.
func (b *Bind) describe(now time.Time) {
	s := &b.around
	endpoints := s.places(b.port, now)
	nat := s.kind(b.port)
	if nat == s.nat && slices.Equal(endpoints, s.endpoints) {
		return
	}
	s.nat, s.endpoints = nat, endpoints
	for _, p := range b.table.Load().byKey {
		if p.route.Load() == nil {
			p.nextPunch, p.punches = now, 0 // tells them
		}
	}
}

// places returns where others may reach this node, the likeliest first: of a machine with many addresses not all are told.
func (s *surroundings) places(port uint16, now time.Time) []netip.AddrPort {
	var all []netip.AddrPort
	add := func(a netip.AddrPort) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	for _, r := range s.reflectors {
		if r.seen.IsValid() && now.Sub(r.at) < reflectFresh {
			add(r.seen)
		}
	}
	for _, a := range s.sources {
		if slices.Contains(s.local, a) {
			add(netip.AddrPortFrom(a, port))
		}
	}
	for _, a := range s.local {
		add(netip.AddrPortFrom(a, port))
	}
	return all
}

// kind tells the NAT from what the reflectors of one family saw.
func (s *surroundings) kind(port uint16) NAT {
	var seen []netip.AddrPort
	asked, silent := 0, 0
	for _, r := range s.reflectors {
		asked++
		switch {
		case r.seen.IsValid() && (len(seen) == 0 || r.seen.Addr().Is4() == seen[0].Addr().Is4()):
			seen = append(seen, r.seen)
		case !r.seen.IsValid() && r.tries > reflectTries:
			silent++
		}
	}
	switch {
	case asked > 0 && silent == asked:
		return NATBlocked
	case len(seen) == 0:
		return NATUnknown
	case slices.ContainsFunc(seen, func(a netip.AddrPort) bool { return a != seen[0] }):
		return NATSymmetric
	case s.own(seen[0], port):
		return NATNone
	case len(seen) == 1:
		return NATUnknown
	default:
		return NATCone
	}
}
