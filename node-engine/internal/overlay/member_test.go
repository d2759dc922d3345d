package overlay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

// fabric is a Network without a kernel. It stays when its Run ends, as links do.
type fabric struct {
	mu       sync.Mutex
	static   netmanager.Static
	config   *netmanager.Config // nil: no Set yet
	sets     int
	attached map[string]netmanager.Attachment
	unknown  []string
	flows    []service.Flow
	stats    tunnel.Stats
	noNames  string        // why it answers no names
	noIPv6   string        // why it has no IPv6
	fail     error         // what Set says
	hold     chan struct{} // nil, or what Set waits for
	broken   chan struct{} // closed: Run ends by itself
	gone     bool          // there is no network, whatever Set said
}

func newFabric() *fabric {
	return &fabric{attached: map[string]netmanager.Attachment{}, broken: make(chan struct{})}
}

func (f *fabric) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-f.broken:
		return errors.New("the tunnel has ended")
	}
}

func (f *fabric) Set(_ context.Context, c netmanager.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets++
	if f.fail == nil {
		f.config = &c
	}
	return f.fail
}

func (f *fabric) Attach(_ context.Context, a netmanager.Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.config == nil || f.gone {
		return netmanager.ErrNoNetwork
	}
	f.attached[a.ID] = a
	return nil
}

func (f *fabric) Detach(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, id)
	return nil
}

func (f *fabric) Prune(keep []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.attached {
		if !slices.Contains(keep, id) {
			delete(f.attached, id)
		}
	}
	return nil
}

func (f *fabric) Unknown(jobs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unknown = append(f.unknown, jobs...)
}

func (f *fabric) Status() netmanager.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return netmanager.Status{Port: 51999, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:51999")}, MTU: 1420, Names: f.noNames, NoIPv6: f.noIPv6, Tunnel: f.stats,
		Packets: service.Stats{Flows: len(f.flows)}}
}

func (f *fabric) Flows(netip.Addr) []service.Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flows
}

func (f *fabric) Traffic() []service.Flow { return f.Flows(netip.Addr{}) }

func (f *fabric) PathMTU(netip.Addr) int { return 1420 }

// now returns what was set last.
func (f *fabric) now() netmanager.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.config == nil {
		return netmanager.Config{}
	}
	return *f.config
}

func (f *fabric) failing(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// board is a machine on which members begin and end.
type board struct {
	t     *testing.T
	net   *fabric
	store *store.Store
	cfg   Config
}

func newBoard(t *testing.T) *board {
	t.Helper()
	st, err := store.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	b := &board{t: t, net: newFabric(), store: st}
	b.cfg = Config{Node: func() messages.NodeID { return "n1" }, Seed: []byte("n1"), Store: st, Manager: &url.URL{Scheme: "http", Host: "127.0.0.1:10100"},
		Available: func() error { return nil }, Network: func(s netmanager.Static, _ *slog.Logger) (Network, error) {
			b.net.mu.Lock()
			defer b.net.mu.Unlock()
			b.net.static = s
			return b.net, nil
		}}
	return b
}

func (b *board) open() *Member {
	b.t.Helper()
	m, err := New(b.cfg, slog.New(slog.NewTextHandler(b.t.Output(), nil)))
	if err != nil {
		b.t.Fatal(err)
	}
	m.pace = pace{first: 200 * time.Millisecond, retry: 20 * time.Millisecond, settle: time.Millisecond, saving: time.Millisecond, look: 5 * time.Millisecond,
		figure: 5 * time.Millisecond, answer: 50 * time.Millisecond, forget: time.Hour}
	return m
}

// start runs a member and returns what ends it.
func (b *board) start() (*Member, func()) {
	b.t.Helper()
	m := b.open()
	return m, b.run(m)
}

func (b *board) run(m *Member) (end func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			b.t.Errorf("run: %v", err)
		}
	})
	end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(end)
	return end
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

const (
	keyA = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	keyB = "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)

func config(rev uint64) messages.NetworkConfig {
	return messages.NetworkConfig{Rev: rev, Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14",
		Blocks: []string{"10.160.0.64/26"}, Gateway: "10.160.0.65", Relay: &messages.Relay{URL: "http://:10443/relay"}, STUN: []string{":3478"},
		Peers: []messages.Peer{
			{Node: "n2", Key: keyA, Prefixes: []string{"10.160.0.128/26"}, Endpoints: []string{"192.0.2.2:51820"},
				Instances: []messages.PeerInstance{{Address: "10.160.0.130", Service: "10.172.0.9", Job: "db"}}},
			{Guest: "phone", Key: keyB, Prefixes: []string{"10.160.0.200/32"}},
		}}
}

func web(address string, healthy bool) messages.ServiceEntry {
	return messages.ServiceEntry{Job: "web", RoundRobin: "10.172.0.1", Closest: "10.172.0.2", Allow: []messages.JobName{}, Ports: []messages.Port{{Name: "web", Container: 80, Protocol: "tcp"}},
		Instances: []messages.ServiceInstance{{Ordinal: 0, Service: "10.172.0.3", Address: address, Node: "n2", Healthy: healthy}}}
}

func attachment(id messages.InstanceID, ports ...messages.Port) driver.Attachment {
	return driver.Attachment{Instance: id, Namespace: "/proc/self/ns/net", Ports: ports}
}

func TestWhatTheManagerSaysIsMadeTrue(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	m.Configure(config(1))
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{web("10.160.0.131", true)}})
	eventually(t, "it is in force", func() bool { c := b.net.now(); return len(c.ServiceTable) == 1 })
	if err := m.Ready(t.Context()); err != nil {
		t.Errorf("ready: got %v", err)
	}
	c := b.net.now()
	if c.Network6.String() != "fd5c:ae11:9::/48" || c.Services6.String() != "fd5c:ae11:9::c:0/110" || len(c.Blocks) != 2 ||
		c.Gateway6.String() != "fd5c:ae11:9::41" || c.Zone != "skerry.internal" || c.Relay != "http://127.0.0.1:10443/relay" || len(c.STUN) != 1 {
		t.Errorf("got %+v", c)
	}
	if len(c.Peers) != 2 || len(c.Peers[0].Prefixes) != 2 || len(c.Guests) != 2 || c.Peers[1].Keepalive == 0 || len(c.Aliases) != 2 || c.Aliases[0].Job != "db" {
		t.Errorf("peers: got %+v, guests %v, aliases %v", c.Peers, c.Guests, c.Aliases)
	}
	s := c.ServiceTable[0]
	if s.Name != "web" || s.Allow == nil || !s.RoundRobin6.IsValid() || !s.Instances[0].Healthy || s.Instances[0].Local || s.Ports[0].Number != 80 || s.Ports[0].Name != "web" {
		t.Errorf("service: got %+v", s)
	}
	old := config(1)
	old.Peers = nil
	m.Configure(old)
	next := config(2)
	next.Peers = next.Peers[:1]
	m.Configure(next)
	eventually(t, "the higher rev holds", func() bool { return len(b.net.now().Peers) == 1 })
	if i := m.Info(); len(i.Blocks) != 1 || i.Blocks[0] != "10.160.0.64/26" {
		t.Errorf("info: got blocks %v", i.Blocks)
	}
	m.Begin() // with a manager that has lost its state
	m.Configure(config(1))
	eventually(t, "the first word of a session holds", func() bool { return len(b.net.now().Peers) == 2 })
	none := messages.NetworkConfig{Rev: 3, Reason: "the network is full"}
	m.Configure(none)
	if err := m.Ready(t.Context()); err == nil || err.Error() != none.Reason {
		t.Errorf("no blocks: got %v", err)
	}
}

// A board that begins anew without a link has its network and its services, with the same key and port.
func TestRebootWithoutALink(t *testing.T) {
	b := newBoard(t)
	m, end := b.start()
	m.Configure(config(1))
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{web("10.160.0.131", true)}})
	eventually(t, "it is up", func() bool { return m.Ready(t.Context()) == nil })
	first, err := m.Attach(t.Context(), attachment("web.0.0", messages.Port{Container: 80}))
	if err != nil {
		t.Fatal(err)
	}
	key := m.Info().PublicKey
	phone := tunnel.PeerStats{Endpoint: netip.MustParseAddrPort("203.0.113.9:4711")}
	if err := phone.Key.UnmarshalText([]byte(keyB)); err != nil {
		t.Fatal(err)
	}
	b.net.mu.Lock()
	b.net.stats.Peers = []tunnel.PeerStats{phone}
	b.net.mu.Unlock()
	eventually(t, "the guest is seen", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.guests[phone.Key] == phone.Endpoint
	})
	end()
	b.net = newFabric()
	m, _ = b.start()
	again, err := m.Attach(t.Context(), attachment("web.0.0", messages.Port{Container: 80})) // waits until it is up
	if err != nil {
		t.Fatal(err)
	}
	if again.Address != first.Address || again.Ports[0] != first.Ports[0] || m.Info().PublicKey != key || b.net.static.ListenPort != 51999 {
		t.Errorf("got %+v, key %s, port %d, want %+v, %s", again, m.Info().PublicKey, b.net.static.ListenPort, first, key)
	}
	if c := b.net.now(); len(c.ServiceTable) != 1 || len(c.Peers) != 2 || len(c.Ports) != 2 || !slices.Equal(c.Peers[1].Endpoints, []netip.AddrPort{phone.Endpoint}) {
		t.Errorf("got %+v", c)
	}
}

func TestTheKeyIsTheNodesAlone(t *testing.T) {
	b := newBoard(t)
	dir := t.TempDir()
	st, err := store.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	b.cfg.Store = st
	b.open()
	info, err := os.Stat(filepath.Join(dir, "values", keyValue))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", info.Mode(), err)
	}
}

func TestAttachAndDetach(t *testing.T) {
	b := newBoard(t)
	m, end := b.start()
	m.Configure(config(1))
	got, err := m.Attach(t.Context(), attachment("web.0.7", messages.Port{Container: 80}, messages.Port{Container: 53, Protocol: "udp"}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Address.String() != "10.160.0.66" || got.Address6.String() != "fd5c:ae11:9::42" || got.DNS.String() != "10.160.0.65" ||
		got.Search != "skerry.internal" || got.Names[0] != "0.web.skerry.internal" || len(got.Ports) != 2 || got.Ports[0].Host == 0 {
		t.Errorf("got %+v", got)
	}
	if c := b.net.now(); len(c.Ports) != 4 || c.Ports[0].Target.String() != "10.160.0.66:80" {
		t.Errorf("published: got %+v", c.Ports)
	}
	if _, err := net.Listen("tcp", ":"+itoa(got.Ports[0].Host)); err == nil {
		t.Error("another program can have the published port")
	}
	_, err = m.Attach(t.Context(), attachment("web.1.0", messages.Port{Host: got.Ports[0].Host, Container: 80}))
	if !errors.Is(err, driver.ErrPortInUse) || !strings.Contains(err.Error(), itoa(got.Ports[0].Host)) {
		t.Errorf("a port of another instance: got %v", err)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = m.Attach(t.Context(), attachment("web.1.0", messages.Port{Host: other.Addr().(*net.TCPAddr).Port, Container: 80}))
	if !errors.Is(err, driver.ErrPortInUse) {
		t.Errorf("a port of another program: got %v", err)
	}
	if ids := m.Attached(); len(ids) != 1 {
		t.Errorf("after two that failed: got %v, want one", ids)
	}
	if err := m.Detach(t.Context(), "web.0.7"); err != nil {
		t.Fatal(err)
	}
	if c := b.net.now(); len(c.Ports) != 0 || len(m.Attached()) != 0 || len(b.net.attached) != 0 {
		t.Errorf("left: ports %v, leases %v, links %v", c.Ports, m.Attached(), b.net.attached)
	}
	if l, err := net.Listen("tcp", ":"+itoa(got.Ports[0].Host)); err != nil {
		t.Errorf("the port is still held: %v", err)
	} else {
		l.Close()
	}
	if again, err := m.Attach(t.Context(), attachment("web.2.0")); err != nil || again.Address == got.Address {
		t.Errorf("got %v, %v: an address is given out again at once", again.Address, err)
	}
	end()
	b.net.attached["left.0.0"] = netmanager.Attachment{}
	m, _ = b.start()
	eventually(t, "what is nobody's is taken away", func() bool {
		b.net.mu.Lock()
		defer b.net.mu.Unlock()
		return len(b.net.attached) == 1
	})
	if ids := m.Attached(); len(ids) != 1 || ids[0] != "web.2.0" {
		t.Errorf("leases after a restart: got %v", ids)
	}
}

func TestWithoutANetwork(t *testing.T) {
	b := newBoard(t)
	b.cfg.Available = func() error { return errors.New("no TUN device") }
	m, _ := b.start()
	if err := m.Ready(t.Context()); err == nil || err.Error() != "no TUN device" {
		t.Errorf("got %v", err)
	}
	if i := m.Info(); i.PublicKey != "" || i.Reason != "no TUN device" {
		t.Errorf("info: got %+v", i)
	}
	if s := m.netStatus(); s.State != messages.OverlayOff || s.Reason != "no TUN device" {
		t.Errorf("status: got %+v", s)
	}
	m.Configure(config(1))
	if err := m.Ready(t.Context()); err == nil {
		t.Error("a configuration makes a TUN device")
	}
	b = newBoard(t)
	m, _ = b.start()
	begun := time.Now()
	if err := m.Ready(t.Context()); err == nil || time.Since(begun) < 100*time.Millisecond {
		t.Errorf("nothing said by the manager: got %v after %v", err, time.Since(begun))
	}
	b = newBoard(t)
	b.cfg.Off = true
	m, _ = b.start()
	if i := m.Info(); i.PublicKey != "" || !strings.Contains(i.Reason, "--overlay off") {
		t.Errorf("switched off: got %+v", i)
	}
}

// What is deployed together with a node's first configuration waits for the network, however long ago the engine started.
func TestTheFirstConfigurationIsWaitedFor(t *testing.T) {
	for name, before := range map[string]*messages.NetworkConfig{"nothing was said": nil, "it had none": {Rev: 1, Reason: "the network is full"}} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(t)
			b.net.hold = make(chan struct{})
			m := b.open()
			m.pace.first, m.since = time.Hour, time.Now().Add(-2*time.Hour)
			b.run(m)
			if before != nil {
				m.Configure(*before)
			}
			if err := m.Ready(t.Context()); err == nil || errors.Is(err, driver.ErrNetworkDown) != (before == nil) {
				t.Errorf("without a configuration: got %v", err)
			}
			m.Configure(config(2))
			ready := make(chan error, 1)
			go func() { ready <- m.Ready(t.Context()) }()
			if s := m.netStatus(); s.Reason != comingUp {
				t.Errorf("got reason %q", s.Reason)
			}
			close(b.net.hold)
			if err := <-ready; err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The network is up and ports are published while no name server answers.
func TestNobodyWaitsForANameServer(t *testing.T) {
	b := newBoard(t)
	m := b.open()
	m.pace.first = time.Hour
	answer := make(chan struct{})
	m.lookup = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
		select {
		case <-answer:
			return []netip.Addr{netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("192.0.2.9")}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b.run(m)
	c := config(1)
	c.STUN = []string{"stun.example:3478", ":3478"}
	m.Configure(c)
	if err := m.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Attach(t.Context(), attachment("web.0.0", messages.Port{Container: 80})); err != nil {
		t.Error(err)
	}
	if got := b.net.now().STUN; len(got) != 1 || got[0].String() != "127.0.0.1:3478" {
		t.Errorf("got %v, want what needs no name server", got)
	}
	close(answer)
	eventually(t, "the other one is found", func() bool {
		got := b.net.now().STUN
		return len(got) == 2 && got[0].String() == "192.0.2.9:3478"
	})
}

// What cannot be put in force is tried again; what was in force before stays.
func TestAConfigurationThatFails(t *testing.T) {
	b := newBoard(t)
	b.net.fail = errors.New("10.160.0.0/12 is used by docker0: take --network 10.144.0.0/12")
	m, _ := b.start()
	m.Configure(config(1))
	if err := m.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "docker0") {
		t.Errorf("got %v", err)
	}
	b.net.failing(nil)
	eventually(t, "it is tried again", func() bool { return m.Ready(t.Context()) == nil })
	b.net.failing(errors.New("no room for a rule"))
	m.Configure(config(2))
	eventually(t, "it says so", func() bool { return strings.Contains(m.netStatus().Reason, "no room for a rule") })
	if err := m.Ready(t.Context()); err != nil {
		t.Errorf("it was up before: got %v", err)
	}
	b.net.failing(nil)
	eventually(t, "all is well", func() bool { return m.netStatus().Reason == "" })
	close(b.net.broken)
	eventually(t, "its end is noticed", func() bool { return m.Ready(t.Context()) != nil })
	b.net.mu.Lock()
	b.net.broken = make(chan struct{})
	b.net.mu.Unlock()
	eventually(t, "it is begun anew", func() bool { return m.Ready(t.Context()) == nil })
}

// A range that the host uses is said to the manager, with the key, for as long as it is so: by a node that begins, and by one that is given another network.
func TestARangeInUse(t *testing.T) {
	b := newBoard(t)
	const reason = "10.160.0.0/12 is in use: 10.160.0.0/16 on wg0; 10.144.0.0/12 is free"
	b.net.fail = errors.New(reason)
	m, _ := b.start()
	l, _ := listen(t, m)
	said := func(reason string) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.endpoints) == 0 || len(l.statuses) == 0 {
				return false
			}
			e, s := l.endpoints[len(l.endpoints)-1], l.statuses[len(l.statuses)-1]
			return e.PublicKey == m.public && e.Reason == reason && s.Reason == reason && (s.State == messages.OverlayUp) == (reason == "")
		}
	}
	down := func(reason string) {
		t.Helper()
		eventually(t, "it is said", said(reason))
		if i := m.Info(); i.PublicKey != m.public || i.Reason != reason || len(i.Blocks) != 1 {
			t.Errorf("info: got %+v", i)
		}
		if err := m.Ready(t.Context()); !errors.Is(err, driver.ErrNetworkDown) || !strings.Contains(err.Error(), reason) {
			t.Errorf("ready: got %v", err)
		}
		if _, err := m.Attach(t.Context(), attachment("web.0.0")); !errors.Is(err, driver.ErrNetworkDown) {
			t.Errorf("attach: got %v", err)
		}
	}
	up := func() {
		t.Helper()
		b.net.failing(nil)
		eventually(t, "it is usable again", func() bool { return m.Ready(t.Context()) == nil && said("")() })
	}
	if i := m.Info(); i.Reason != "" {
		t.Errorf("before anything was tried: got %+v", i)
	}
	m.Configure(config(1))
	down(reason)
	up()
	other := config(2)
	other.Network, other.Services, other.Blocks, other.Gateway, other.Peers = "10.144.0.0/12", "10.156.0.0/14", []string{"10.144.0.64/26"}, "10.144.0.65", nil
	b.net.failing(errors.New("docker0 has it"))
	m.Configure(other)
	down("docker0 has it")
	up()
	b.net.failing(errors.New("no room for a rule"))
	other.Rev = 3
	m.Configure(other)
	eventually(t, "it says so", func() bool { return strings.Contains(m.netStatus().Reason, "no room for a rule") })
	if err := m.Ready(t.Context()); err != nil || m.Info().Reason != "" {
		t.Errorf("a change within the network: got %v, info %+v", err, m.Info())
	}
}

// A network that goes while a workload is joined is no fault of the workload.
func TestANetworkThatGoes(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	m.Configure(config(1))
	eventually(t, "it is up", func() bool { return m.Ready(t.Context()) == nil })
	b.net.mu.Lock()
	b.net.gone = true
	b.net.mu.Unlock()
	if _, err := m.Attach(t.Context(), attachment("web.0.0")); !errors.Is(err, driver.ErrNetworkDown) {
		t.Errorf("got %v", err)
	}
	if ids := m.Attached(); len(ids) != 0 {
		t.Errorf("it holds addresses: %v", ids)
	}
}
