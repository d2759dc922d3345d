package tunnel

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/relay"
)

// A lab is an internet: a manager with relay and reflector, and sites behind NATs.
//
//	a (192.168.1.2) ── natA (203.0.113.11) ──┐
//	b (192.168.1.2) ── natB (203.0.113.12) ──┼── manager (203.0.113.1)
//	c (203.0.113.13) ────────────────────────┘
type lab struct {
	t       *testing.T
	manager *nettest.Host
	relay   *relay.Server
	sites   []*site
	stop    func() // the manager's end
}

type site struct {
	host *nettest.Host
	nat  *nettest.Host // nil: none
}

type natKind string

const (
	noNAT      natKind = "none"
	fullCone   natKind = "full cone"
	restricted natKind = "restricted"
	symmetric  natKind = "symmetric"
)

const (
	relayURL   = "http://203.0.113.1:8443" + relay.Path
	nodePort   = 7000
	managerLAN = "203.0.113.1"
)

var reflectors = []netip.AddrPort{endpoint(managerLAN + ":3478"), endpoint(managerLAN + ":3479")}

func newLab(t *testing.T, kinds ...natKind) *lab {
	t.Helper()
	l := &lab{t: t, manager: nettest.NewHost(t, "manager")}
	ends := []nettest.End{{Host: l.manager, Interface: "wan", Addresses: []string{managerLAN + "/24"}}}
	for i, kind := range kinds {
		s := &site{host: nettest.NewHost(t, string(rune('a'+i)))}
		public := netip.AddrFrom4([4]byte{203, 0, 113, byte(11 + i)}).String() + "/24"
		if kind == noNAT {
			ends = append(ends, nettest.End{Host: s.host, Interface: "wan", Addresses: []string{public}})
		} else {
			s.nat = nettest.NewHost(t, "nat-"+s.host.Name)
			ends = append(ends, nettest.End{Host: s.nat, Interface: "wan", Addresses: []string{public}})
		}
		l.sites = append(l.sites, s)
	}
	nettest.Switch(t, "internet", ends...)
	for i, s := range l.sites {
		if s.nat == nil {
			continue
		}
		nettest.Cable(t,
			nettest.End{Host: s.host, Interface: "eth0", Addresses: []string{"192.168.1.2/24"}},
			nettest.End{Host: s.nat, Interface: "lan", Addresses: []string{"192.168.1.1/24"}})
		s.host.Route("default", "192.168.1.1")
		s.nat.Forward()
		s.translate(t, kinds[i])
	}
	l.serve()
	return l
}

// serve runs the manager's relay and reflector.
func (l *lab) serve() {
	log := slog.New(slog.DiscardHandler)
	keep := func(relay.Key) bool { return true }
	l.relay = relay.NewServer(relay.ServerConfig{Allow: keep}, log)
	mux := http.NewServeMux()
	mux.Handle(relay.Path, l.relay)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	listener := l.manager.Listen("tcp", managerLAN+":8443")
	var reflector *relay.Reflector
	err := l.manager.Try(func() (err error) {
		reflector, err = relay.NewReflector(relay.ReflectorConfig{Addrs: []string{reflectors[0].String(), reflectors[1].String()}}, log)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.relay.Run(ctx) })
	wg.Go(func() { _ = reflector.Run(ctx) })
	wg.Go(func() { _ = server.Serve(listener) })
	l.stop = func() {
		cancel()
		_ = server.Close()
		wg.Wait()
	}
	l.t.Cleanup(l.stop)
}

// node starts a node at the i-th site.
func (l *lab) node(i int) *node {
	l.t.Helper()
	return startNode(l.t, l.sites[i].host, nodeConfig{
		Name: l.sites[i].host.Name, Port: nodePort, Address: overlay(i + 1), Relay: relayURL, STUN: reflectors,
	})
}

// pair starts nodes at the first two sites, waits until they know their NAT and tells them of one another as the control plane does.
func (l *lab) pair(want ...NAT) (a, b *node) {
	l.t.Helper()
	a, b = l.node(0), l.node(1)
	for i, n := range []*node{a, b} {
		n.waitNAT(want[i])
	}
	a.set(b.offered())
	b.set(a.offered())
	return a, b
}

func (n *node) waitNAT(want NAT) {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := n.tell(order{Stats: true}).Stats
		if s.NAT == want && s.Relay {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("%s: want NAT %s; got %s", n.config.Name, want, n.describe())
		}
	}
}

// rules are nftables in a namespace.
type rules struct {
	t    testing.TB
	host *nettest.Host
	conn *nftables.Conn
}

func rulesOf(t testing.TB, host *nettest.Host) *rules {
	t.Helper()
	r := &rules{t: t, host: host}
	host.Do(func() {
		var err error
		if r.conn, err = nftables.New(nftables.AsLasting()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = r.conn.CloseLasting() })
	return r
}

func (r *rules) flush() {
	r.t.Helper()
	if err := r.conn.Flush(); err != nil {
		r.t.Fatalf("%s: nftables: %v", r.host.Name, err)
	}
}

func (r *rules) chain(table string, hook *nftables.ChainHook, priority *nftables.ChainPriority, kind nftables.ChainType) *nftables.Chain {
	tb := r.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: table})
	return r.conn.AddChain(&nftables.Chain{Name: table, Table: tb, Hooknum: hook, Priority: priority, Type: kind})
}

func (r *rules) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: all})
}

func ifname(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(name), 0)}}
}

func protocol(n byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}}}
}

func port(n uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(n)},
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// translate makes the site's router a NAT of this kind. What nobody asked for is dropped before it leaves a trace, as home routers do.
func (s *site) translate(t testing.TB, kind natKind) {
	t.Helper()
	r := rulesOf(t, s.nat)
	post := r.chain("nat", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT)
	r.rule(post, ifname(expr.MetaKeyOIFNAME, "wan"), []expr.Any{&expr.Masq{FullyRandom: kind == symmetric}})
	if kind == fullCone {
		pre := r.chain("cone", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT)
		r.rule(pre, ifname(expr.MetaKeyIIFNAME, "wan"), protocol(unix.IPPROTO_UDP), port(nodePort), []expr.Any{
			&expr.Immediate{Register: 1, Data: net.IPv4(192, 168, 1, 2).To4()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		})
	}
	in := r.chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	r.rule(in, ifname(expr.MetaKeyIIFNAME, "wan"), protocol(unix.IPPROTO_UDP), drop())
	r.flush()
}

// block drops all UDP that is forwarded by the host, until the function it returns is called.
func block(t testing.TB, host *nettest.Host) (lift func()) {
	t.Helper()
	r := rulesOf(t, host)
	c := r.chain("block", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter)
	r.rule(c, protocol(unix.IPPROTO_UDP), drop())
	r.flush()
	return func() {
		t.Helper()
		r.conn.DelTable(c.Table)
		r.flush()
	}
}
