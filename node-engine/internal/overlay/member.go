// Package overlay is the node's part in the cluster's network: it turns what the manager says into what netmanager makes true, and says
// what the manager is to hear. It keeps the node's private key, the leases of its addresses and the last word of the manager on disk, so
// that a board whose link is down has its network after a reboot. It must not carry packets, and must not stop a workload because the
// network fails.
//
//	     ┌────────────────────────────────────────────┐
//	     ▼                                            │ tried again
//	waiting ── configuration, from disk or manager ─► up ◄─┐
//	     │                                            │    │ a change that fails leaves it up, with the reason
//	     └── no TUN, no right, a conflict, no block ─► off └────┘
//
// A driver joins workloads by Ready, Attach and Detach; the session talks by Configure, Update, Talk and Trace.
package overlay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/messages/trust"
	"skerry.internal/netmanager"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/session"
	"skerry.internal/node-engine/internal/store"
)

// The named values in the store.
const (
	keyValue      = "overlay-key"
	portValue     = "overlay-port"
	configValue   = "overlay-config"
	servicesValue = "overlay-services"
	leasesValue   = "overlay-leases"
	guestsValue   = "overlay-guests"
)

// comingUp is the reason of a network that has a configuration and is not up for the first time.
const comingUp = "it is being set up"

// usualPort is what is tried first where the operator names no UDP port: WireGuard's own.
const usualPort = 51820

// Config is what a Member needs.
type Config struct {
	Node  func() messages.NodeID // the node's name as the manager knows it
	Seed  []byte                 // what no other node on this machine has, such as its public key: the names of links come from it
	Off   bool                   // the operator wants none
	Port  int                    // UDP port of the tunnels; 0: one is chosen and kept
	Store *store.Store
	// Manager is where the manager is dialled: what it leaves out of the addresses of its relay and its reflectors.
	Manager *url.URL
	// Roots are the authorities of which the manager's certificate is, for its relay; nil: those of the system.
	Roots *x509.CertPool
	// RunDir is a directory in memory for what survives the process but no reboot.
	RunDir string
	// Network makes the network, and Available says why there can be none; default: netmanager's.
	Network   func(netmanager.Static, *slog.Logger) (Network, error)
	Available func() error
}

// Network is what a Member needs of netmanager.Network.
type Network interface {
	Run(ctx context.Context) error
	Set(ctx context.Context, c netmanager.Config) error
	Attach(ctx context.Context, a netmanager.Attachment) error
	Detach(id string) error
	Prune(keep []string) error
	Unknown(jobs ...string)
	Watched
}

// Watched is what can be asked of a network.
type Watched interface {
	Status() netmanager.Status
	Flows(local netip.Addr) []service.Flow
	Traffic() []service.Flow
	PathMTU(dst netip.Addr) int
}

// Member is one node's part in the network.
type Member struct {
	cfg  Config
	log  *slog.Logger
	name string // of the links
	key  tunnel.Key
	// public is the text of its public half, which takes a while to compute.
	public string
	can    bool // this machine can have a network
	pace   pace
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	ping   func(ctx context.Context, path string, to netip.Addr) (time.Duration, error)
	// The signals say that there is something to be put in force, said, written, or looked up.
	news, says, save, missing signal
	meter

	setting sync.Mutex // held while the network is changed; taken before mu

	mu       sync.Mutex // guards what follows; never held during a call to the network or the disk
	net      Network    // nil while none lives
	state    messages.OverlayState
	reason   string
	inForce  netip.Prefix // the network that was put in force last
	config   *messages.NetworkConfig
	first    bool // the next one is the first of a session
	ground   ground
	table    *table
	asked    interest
	book     *book
	ports    *keeper
	spaces   map[messages.InstanceID]string // the namespaces of what is attached
	resolved map[string]netip.AddrPort
	guests   map[tunnel.Key]netip.AddrPort // where guests were when last seen
	since    time.Time                     // of the start, or of the first configuration that makes a network
	known    bool                          // whether there is a network: settled is closed
	settled  chan struct{}                 //
}

var (
	_ driver.Network  = (*Member)(nil)
	_ session.Overlay = (*Member)(nil)
	_ Network         = (*netmanager.Network)(nil)
)

// pace holds the lengths of time that tests shorten.
type pace struct {
	first  time.Duration // that a workload waits for the manager's first word
	retry  time.Duration // until a network that could not be made is tried again
	settle time.Duration // between a change and its way to disk
	saving time.Duration // between two such ways, where there is no end of changes
	look   time.Duration // between two looks at what may have to be said
	figure time.Duration // between two statuses of which only the figures differ
	answer time.Duration // for the manager to say what a name means
	forget time.Duration // until what nobody here uses is not asked for any more
}

func defaultPace() pace {
	return pace{first: 5 * time.Second, retry: 15 * time.Second, settle: 100 * time.Millisecond, saving: 30 * time.Second, look: 5 * time.Second, figure: 30 * time.Second,
		answer: 2 * time.Second, forget: time.Hour}
}

// signal has a capacity of 1: "look again".
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) give() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// New reads what the store holds and starts nothing.
func New(cfg Config, log *slog.Logger) (*Member, error) {
	if cfg.Store == nil || cfg.Node == nil || len(cfg.Seed) == 0 {
		return nil, errors.New("overlay: Store, Node and Seed are needed")
	}
	if cfg.Network == nil {
		cfg.Network = func(s netmanager.Static, log *slog.Logger) (Network, error) { return netmanager.New(s, log) }
	}
	if cfg.Available == nil {
		cfg.Available = netmanager.Available
	}
	m := &Member{cfg: cfg, log: log, name: nameOf(cfg.Seed), since: time.Now(), pace: defaultPace(), lookup: net.DefaultResolver.LookupNetIP, ping: ping,
		news: newSignal(), says: newSignal(), save: newSignal(), missing: newSignal(), settled: make(chan struct{}), ports: newKeeper(),
		spaces: map[messages.InstanceID]string{}, resolved: map[string]netip.AddrPort{}, asked: newInterest()}
	if err := m.load(); err != nil {
		return nil, err
	}
	m.state, m.reason = messages.OverlayOff, "the manager has given this node no network yet"
	if m.config != nil && len(m.config.Blocks) > 0 {
		m.reason = comingUp
	}
	if cfg.Off {
		m.settle("it is switched off on this node (--overlay off)")
	} else if err := cfg.Available(); err != nil {
		m.settle(err.Error())
		log.Warn("no overlay on this node: workloads have their technology's own network", "err", err)
	} else {
		m.can = true
	}
	return m, nil
}

// settle says that there is no network, and why.
func (m *Member) settle(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stateLocked(messages.OverlayOff, reason)
}

// stateLocked takes over whether there is a network.
func (m *Member) stateLocked(s messages.OverlayState, reason string) {
	m.state, m.reason = s, reason
	if !m.known {
		m.known = true
		close(m.settled)
	}
	m.says.give()
}

// Run keeps the network as the manager says, until ctx ends. What the kernel holds stays, and connections with it.
func (m *Member) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.keepSaved(ctx) })
	defer m.ports.close()
	m.mu.Lock()
	had := m.config != nil
	m.mu.Unlock()
	if m.cfg.Off && had {
		if _, err := CleanUp(m.cfg.Store, m.cfg.Seed, m.cfg.RunDir); err != nil {
			m.log.Warn("what the overlay has left is still there", "err", err)
		}
	}
	if !m.can {
		<-ctx.Done()
		return nil
	}
	for {
		err := m.live(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.log.Error("the overlay has ended and is begun anew", "err", err)
		m.settle(err.Error())
		select {
		case <-time.After(m.pace.retry):
		case <-ctx.Done():
			return nil
		}
	}
}

// live is the life of one network.
func (m *Member) live(ctx context.Context) error {
	net, err := m.cfg.Network(m.static(), m.log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	m.use(net)
	defer m.use(nil)
	ended := make(chan error, 1)
	wg.Go(func() { ended <- net.Run(ctx) })
	wg.Go(func() { m.search(ctx) })
	m.news.give()
	pruned := false
	var again <-chan time.Time
	tick := time.NewTicker(m.pace.look)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("it ended by itself")
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			m.noteGuests(net)
			continue
		case <-m.news:
		case <-again:
		}
		again = nil
		if !m.set(ctx) && ctx.Err() == nil {
			again = time.After(m.pace.retry)
		} else if !pruned {
			pruned = m.prune(net)
		}
	}
}

func (m *Member) static() netmanager.Static {
	return netmanager.Static{Name: m.name, PrivateKey: m.key, ListenPort: m.listenPort(), RunDir: m.cfg.RunDir,
		RelayTLS: func() *tls.Config { return trust.Config(m.cfg.Roots, m.cfg.Manager.Hostname()) },
		OnMiss:   m.missed, OnNameMiss: func(job string) { m.want(messages.JobName(job)) }, OnNameHit: func(job string) { m.used(messages.JobName(job)) }}
}

// use makes net the network that everybody is answered by.
func (m *Member) use(net Network) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.net = net
}

// network returns the network that lives, or nil.
func (m *Member) network() Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.net
}

// set puts the newest configuration in force. It reports false where that has to be tried again.
func (m *Member) set(ctx context.Context) bool {
	m.setting.Lock()
	defer m.setting.Unlock()
	return m.setHeld(ctx) == nil
}

// setHeld is set with setting held.
func (m *Member) setHeld(ctx context.Context) error {
	m.mu.Lock()
	net, config, g := m.net, m.config, m.ground
	services, leases, guests := m.table.list(), m.book.list(), maps.Clone(m.guests)
	m.mu.Unlock()
	if net == nil || config == nil || len(config.Blocks) == 0 {
		return nil // said by Configure
	}
	c, err := translate(g, config, services, leases, guests)
	if err == nil {
		var complete bool
		if c.Relay, c.STUN, complete = m.locate(config); !complete {
			m.missing.give()
		}
		err = net.Set(ctx, c)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.judge(g.plan.V4, err)
	if err == nil {
		m.keepPort(net.Status().Port)
	}
	return err
}

// judge takes over whether the newest configuration, which is of that network, is in force. One that fails does not take away what was there before; but
// where that was another network, nothing new can join.
func (m *Member) judge(network netip.Prefix, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, reason := m.state, m.reason
	switch {
	case err == nil:
		m.inForce = network
		m.stateLocked(messages.OverlayUp, "")
	case before == messages.OverlayUp && network == m.inForce:
		m.stateLocked(messages.OverlayUp, "the newest configuration is not in force: "+err.Error())
	default:
		m.stateLocked(messages.OverlayOff, err.Error())
	}
	if m.state == before && m.reason == reason {
		return
	}
	if err != nil {
		m.log.Warn("the overlay is not as it shall be", "state", m.state, "err", err)
	} else {
		m.log.Info("overlay up", "addr", m.ground.gateway, "blocks", m.config.Blocks, "peers", len(m.config.Peers))
	}
}

// prune takes away what instances left that hold no lease any more.
func (m *Member) prune(net Network) bool {
	m.mu.Lock()
	up := m.state == messages.OverlayUp
	var keep []string
	for _, l := range m.book.list() {
		keep = append(keep, string(l.Instance))
	}
	m.mu.Unlock()
	if !up {
		return false
	}
	if err := net.Prune(keep); err != nil {
		m.log.Warn("interfaces of earlier instances not removed", "err", err)
	}
	return true
}

// nameOf is what the links and rules of a node are called.
func nameOf(seed []byte) string {
	sum := sha256.Sum256(seed)
	return "sk" + hex.EncodeToString(sum[:3])
}

// CleanUp takes away what a node that has had a network has left in the kernel and in its RunDir, and reports whether it has had one. The arguments
// are its Config's.
func CleanUp(st *store.Store, seed []byte, runDir string) (found bool, err error) {
	var had messages.NetworkConfig
	if found, err := st.Get(configValue, &had); err != nil || !found {
		return found, err
	}
	err = netmanager.CleanUp(nameOf(seed), "")
	left, _ := filepath.Glob(filepath.Join(runDir, nameOf(seed)+".*")) //nolint:errcheck // the pattern is a good one
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	_ = os.Remove(runDir) // where nobody else has anything in it
	if err != nil {
		return true, fmt.Errorf("clean up the overlay: %w", err)
	}
	return true, nil
}
