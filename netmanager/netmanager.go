package netmanager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"skerry.internal/netmanager/attach"
	"skerry.internal/netmanager/dns"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tun"
	"skerry.internal/netmanager/tunnel"
)

// Static is what a Network is made with; it stays the same over restarts of the process.
type Static struct {
	// Name names all that the kernel holds for this network: 1 to 8 of a-z and 0-9. Several networks on one machine have names of their own.
	Name string
	// PrivateKey is the node's key in the tunnels.
	PrivateKey tunnel.Key
	// ListenPort is the UDP port of the tunnels; 0: any, see Status.
	ListenPort uint16
	// StateDir is a directory on disk for what CleanUp needs to put back what was before.
	StateDir string
	// RunDir, where not empty, is a directory in memory (below /run) where the flows are kept, so that they survive the process.
	RunDir string
	// RelayTLS returns how a relay at https is known, see relay.ClientConfig. May be nil.
	RelayTLS func() *tls.Config
	// OnMiss hears of a service address that is not in the table, OnNameMiss of a name; OnNameHit of a name in it, every time that it is asked for. They
	// must not block. May be nil.
	OnMiss     func(netip.Addr)
	OnNameMiss func(job string)
	OnNameHit  func(job string)
}

// Network is one node's part of the network. Its methods may be called from any goroutine.
type Network struct {
	static Static
	log    *slog.Logger
	host   *dns.Host
	ready  chan *plane // capacity 1: the next one that Run takes

	plane atomic.Pointer[plane] // nil until the first Set; who only asks takes it without mu

	mu     sync.Mutex     // guards what follows, and who changes plane; held while the system is changed
	ended  bool           // Run has: nobody carries another plane
	config Config         // what was set last, whether or not all of it could be done; without the services
	table  *service.Table // of the services of config
	names  *dns.Table     // the same
	rtts   map[tunnel.Key]rtt
	flows  flowMemory // see flowMemoryLocked

	refused map[tunnel.Key]bool // peers that were left out

	noIPv6 atomic.Pointer[string] // why it was left out of the kernel's side; nil: it was not
	shared atomic.Pointer[string] // who else uses the network's range by now; nil: nobody
}

// New checks static. It touches nothing.
func New(static Static, log *slog.Logger) (*Network, error) {
	if err := link.CheckName(static.Name); err != nil {
		return nil, err
	}
	if static.PrivateKey.IsZero() {
		return nil, errors.New("no private key")
	}
	return &Network{static: static, log: log, host: dns.NewHost(), ready: make(chan *plane, 1)}, nil
}

// Available says why this machine cannot be part of a network: no TUN device, or no right to use it. nil: it can.
func Available() error { return tun.Available() }

// Run carries packets and answers names until ctx ends, from the first Set on. What the kernel holds stays when it returns: links, addresses and
// routes wait for the next Run, and established connections with them.
func (n *Network) Run(ctx context.Context) error {
	err := n.carry(ctx)
	return errors.Join(err, n.release())
}

func (n *Network) carry(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-n.ready:
			err := p.run(ctx, n)
			close(p.done)
			if err != nil {
				return err
			}
		}
	}
}

// release gives back what a Set has opened that Run does not get to run, and lets none open more.
func (n *Network) release() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	select {
	case p := <-n.ready:
		defer close(p.done)
		return p.close()
	default:
		return nil
	}
}

// Set makes the network be what c says. It is checked whole before the system is touched, and may be repeated: then it changes nothing and is
// cheap. After an error part of it may be in force; the next Set goes on from there. Another network, relay or zone that cannot be had leaves what was
// there before, so that packets go on being carried. Once Run has ended it takes another Network.
func (n *Network) Set(ctx context.Context, c Config) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return errors.New("the network has ended")
	}
	c.Peers = n.usableLocked(c.Peers)
	if err := errors.Join(c.Validate(), n.links(c, usualMTU).Validate()); err != nil {
		return fmt.Errorf("configuration of the network: %w", err)
	}
	present := n.plane.Load()
	if present == nil || n.config.Network != c.Network || n.config.Network6 != c.Network6 {
		// A network that containers are in already, of this process or of one before, goes on whoever else comes.
		if err := link.Conflicts(c.networks(), n.static.Name); err != nil && (present != nil || !link.Standing(c.Network, n.static.Name)) {
			return err
		}
	}
	if present == nil || !slices.Equal(n.config.Blocks, c.Blocks) {
		if err := link.Taken(c.Blocks, n.static.Name); err != nil {
			return err
		}
	}
	if present == nil || !present.serves(c) {
		if err := n.replaceLocked(ctx, c); err != nil {
			return err
		}
	}
	n.config = c
	n.config.ServiceTable, n.config.Aliases = nil, nil // they may be large, and the tables hold them
	n.tableLocked(c)
	p := n.plane.Load()
	return errors.Join(n.setLinksLocked(c, p), p.tunnel.Set(c.Peers))
}

// setLinksLocked sets the kernel's side. IPv6 is left out where the kernel has no wall for it, and asked for again each time.
func (n *Network) setLinksLocked(c Config, p *plane) error {
	noIPv6, err := link.Set(n.links(c, p.mtu))
	if err != nil {
		return err
	}
	n.note(&n.noIPv6, "containers have no IPv6", noIPv6)
	n.noteOthers(link.Conflicts(c.networks(), n.static.Name))
	return nil
}

// noteOthers notes who uses the network's range beside it. Where that cannot be seen, who was there is there as far as anybody knows.
func (n *Network) noteOthers(others error) {
	if _, somebody := errors.AsType[*link.ConflictError](others); others != nil && !somebody {
		n.log.Warn("not known who else uses the network's range", "err", others)
		return
	}
	n.note(&n.shared, "somebody else has come to use the network's range", others)
}

// note keeps why something is not as it shall be, nil where it is, and says it where that is news.
func (n *Network) note(in *atomic.Pointer[string], what string, err error) {
	if err == nil {
		in.Store(nil)
		return
	}
	why := err.Error()
	if before := in.Swap(&why); before == nil || *before != why {
		n.log.Warn(what, "err", err) //nolint:sloglint // each caller's is constant
	}
}

// usableLocked leaves out the peers whose keys are nobody's: they must not cost the others their place. Only those that are new are looked at.
func (n *Network) usableLocked(peers []tunnel.Peer) []tunnel.Peer {
	known := make(map[tunnel.Key]bool, len(n.config.Peers))
	for _, p := range n.config.Peers {
		known[p.Key] = true
	}
	refused := map[tunnel.Key]bool{}
	usable := slices.DeleteFunc(slices.Clone(peers), func(p tunnel.Peer) bool {
		if known[p.Key] || p.Key.Shares() {
			return false
		}
		if refused[p.Key] = true; !n.refused[p.Key] {
			n.log.Warn("peer left out: no secret can be shared with its key", "peer", p.Key, "prefixes", p.Prefixes)
		}
		return true
	})
	n.refused = refused
	return usable
}

// networks returns what is routed into the tunnel.
func (c Config) networks() []netip.Prefix {
	if c.Network6.IsValid() {
		return []netip.Prefix{c.Network, c.Network6}
	}
	return []netip.Prefix{c.Network}
}

func (c Config) gateways() []netip.Addr {
	if c.Network6.IsValid() {
		return []netip.Addr{c.Gateway, c.Gateway6}
	}
	return []netip.Addr{c.Gateway}
}

// replaceLocked opens a plane for c in place of the one that there is, whose device and ports must be free before they can be opened again. Where it
// cannot be opened, or the kernel's side of another network cannot be set, the one that there was is opened again.
func (n *Network) replaceLocked(ctx context.Context, c Config) error {
	old := n.plane.Load()
	if old == nil {
		return n.openLocked(ctx, c)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // half of it would be no network at all
	err := n.endLocked(old)
	if err == nil {
		err = n.openLocked(ctx, c)
	}
	if p := n.plane.Load(); p != nil && !p.sameLinks(old) {
		if err = n.setLinksLocked(c, p); err != nil {
			err = errors.Join(err, n.endLocked(p))
		}
	}
	if err == nil {
		return nil
	}
	if back := n.openLocked(ctx, n.config); back != nil {
		return errors.Join(err, fmt.Errorf("and what was before is gone: %w", back))
	}
	p := n.plane.Load()
	n.giveTablesLocked(p)
	if back := n.setLinksLocked(n.config, p); back != nil {
		n.log.Warn("the network is not as it shall be", "err", back) // what has failed is said by err; mend tries again
	}
	return errors.Join(err, p.tunnel.Set(n.config.Peers))
}

// endLocked ends a plane and waits until what it holds is free.
func (n *Network) endLocked(p *plane) error {
	n.plane.Store(nil)
	close(p.replaced)
	select {
	case <-n.ready: // it has never run
		return p.close()
	case <-p.done:
		return nil
	}
}

// openLocked opens the plane for c. Run takes it up.
func (n *Network) openLocked(ctx context.Context, c Config) error {
	p, err := n.open(ctx, c)
	if err != nil {
		return err
	}
	n.plane.Store(p)
	n.ready <- p
	return nil
}

// links returns what the kernel shall hold. Each block has its first address on the bridge, the gateways first of all.
func (n *Network) links(c Config, mtu int) link.Config {
	l := link.Config{Name: n.static.Name, StateDir: n.static.StateDir, Overlay: c.networks(), MTU: mtu, Ports: c.Ports}
	var further []netip.Prefix
	for _, b := range c.Blocks {
		if i := slices.IndexFunc(c.gateways(), b.Contains); i >= 0 {
			l.Addresses = append(l.Addresses, netip.PrefixFrom(c.gateways()[i], b.Bits()))
		} else {
			further = append(further, netip.PrefixFrom(c.gatewayIn(b), b.Bits()))
		}
	}
	l.Addresses = append(l.Addresses, further...)
	return l
}

// tableLocked puts the services and their names in force. They are not kept in any other form than that of the tables.
func (n *Network) tableLocked(c Config) {
	t := service.Config{Blocks: c.Blocks, ServiceRange: slices.DeleteFunc([]netip.Prefix{c.Services, c.Services6}, func(p netip.Prefix) bool { return !p.IsValid() }),
		Guests: c.Guests, Aliases: c.Aliases, Services: make([]*service.Service, len(c.ServiceTable)), RTT: n.nearLocked().rtt}
	for i := range c.ServiceTable {
		t.Services[i] = &c.ServiceTable[i].Service
	}
	n.table, n.names = service.NewTable(t), dns.NewTable(c.names())
	n.giveTablesLocked(n.plane.Load())
}

func (n *Network) giveTablesLocked(p *plane) {
	p.packets.SetTable(n.table)
	p.names.setTable(n.names)
}

// names returns what the name server answers.
func (c Config) names() []dns.Job {
	jobs := make([]dns.Job, len(c.ServiceTable))
	for i, s := range c.ServiceTable {
		j := dns.Job{Name: s.Name, RoundRobin: s.RoundRobin, RoundRobin6: s.RoundRobin6, Closest: s.Closest, Closest6: s.Closest6, Ports: s.Ports}
		if s.PlainClosest {
			j.RoundRobin, j.RoundRobin6 = s.Closest, s.Closest6
		}
		for _, i := range s.Instances {
			j.Instances = append(j.Instances, dns.Instance{Ordinal: i.Ordinal, Service: i.Service, Service6: i.Service6, Address: i.Address, Address6: i.Address6})
		}
		jobs[i] = j
	}
	return jobs
}

// Unknown says that nobody bears these names: who waits for one of them hears so.
func (n *Network) Unknown(jobs ...string) {
	if p := n.plane.Load(); p != nil {
		if server, _ := p.names.present(); server != nil {
			server.Unknown(jobs...)
		}
	}
}

// Attachment is a container's place in the network.
type Attachment struct {
	ID       string     // names it for Detach
	NetNS    string     // the file of its network namespace
	Address  netip.Addr // in one of the Blocks
	Address6 netip.Addr // not valid: none
}

// ErrNoNetwork says that there has been no Set yet.
var ErrNoNetwork = errors.New("this node has no network yet")

// Attach gives a network namespace its interface, addresses and routes. It may be repeated. Where this node has no IPv6 (see Status) the interface has
// none either.
func (n *Network) Attach(ctx context.Context, a Attachment) error {
	n.mu.Lock()
	c, p := n.config, n.plane.Load()
	n.mu.Unlock()
	if p == nil {
		return ErrNoNetwork
	}
	at, err := n.attachment(a, c)
	if err != nil {
		return err
	}
	at.MTU = p.mtu
	walled, err := attach.Attach(ctx, at)
	if err == nil && !walled {
		n.log.Warn("the kernel has no classifier (cls_bpf): a container can forge the address of another of this node", "instance_id", a.ID)
	}
	return err
}

// attachment is a with what the node has for it.
func (n *Network) attachment(a Attachment, c Config) (attach.Attachment, error) {
	at := attach.Attachment{Network: n.static.Name, ID: a.ID, NetNS: a.NetNS}
	for _, address := range []netip.Addr{a.Address, a.Address6} {
		if !address.IsValid() || address.Is6() && (!c.Network6.IsValid() || n.noIPv6.Load() != nil) {
			continue
		}
		i := slices.IndexFunc(c.Blocks, func(b netip.Prefix) bool { return b.Contains(address) })
		if i < 0 {
			return at, fmt.Errorf("attach %s: %s is in no block of this node", a.ID, address)
		}
		at.Addresses = append(at.Addresses, address)
		at.Gateways = append(at.Gateways, c.gatewayIn(c.Blocks[i]))
	}
	return at, nil
}

// gatewayIn returns the bridge's address in a block.
func (c Config) gatewayIn(b netip.Prefix) netip.Addr {
	if i := slices.IndexFunc(c.gateways(), b.Contains); i >= 0 {
		return c.gateways()[i]
	}
	return b.Addr().Next()
}

// Detach takes a container's interface away; none is no error.
func (n *Network) Detach(id string) error { return attach.Detach(n.static.Name, id) }

// Prune takes away the interfaces of all containers but these.
func (n *Network) Prune(keep []string) error { return attach.Prune(n.static.Name, keep) }

// CleanUp takes away everything that the kernel holds for the network of that name, and puts back what was before. Nobody may run it.
func CleanUp(name, stateDir string) error {
	if err := link.CheckName(name); err != nil {
		return err
	}
	return errors.Join(attach.Prune(name, nil), tun.Remove(link.TUN(name)), link.CleanUp(name, stateDir))
}
