package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"skerry.internal/messages"
	"skerry.internal/netmanager/tunnel"
)

// kept is what of the services is on disk.
type kept struct {
	Services []messages.ServiceEntry `json:"services"`
	Names    []messages.JobName      `json:"names"`
}

// load reads what an earlier run has kept, as far as it is sound. The key is made where there is none.
func (m *Member) load() error {
	var c messages.NetworkConfig
	found, err := m.cfg.Store.Get(configValue, &c)
	if err != nil {
		return err
	}
	if found {
		m.adopt(c)
	}
	var leases []lease
	if _, err := m.cfg.Store.Get(leasesValue, &leases); err != nil {
		return err
	}
	m.book = newBook(sound(m.log, "lease", leases, m.ground.leases()))
	if m.config != nil {
		m.book.setBlocks(m.ground.blocks)
	}
	var k kept
	if _, err := m.cfg.Store.Get(servicesValue, &k); err != nil {
		return err
	}
	m.table = newTable(sound(m.log, "service", k.Services, m.ground.entry))
	m.asked.names = sound(m.log, "name", k.Names, names())
	guests := map[tunnel.Key]netip.AddrPort{}
	if _, err := m.cfg.Store.Get(guestsValue, &guests); err != nil {
		return err
	}
	m.guests = map[tunnel.Key]netip.AddrPort{}
	for _, key := range sound(m.log, "guest", slices.Collect(maps.Keys(guests)), func(key tunnel.Key) error {
		return (&messages.Endpoints{Endpoints: []string{guests[key].String()}}).Validate()
	}) {
		m.guests[key] = guests[key]
	}
	if m.cfg.Off {
		return nil // a node without an overlay needs no key
	}
	m.holdPorts()
	return m.loadKey()
}

// adopt takes over the configuration of an earlier run, where it makes a network.
func (m *Member) adopt(c messages.NetworkConfig) {
	if len(c.Blocks) == 0 {
		return // the manager gave none
	}
	g, err := readGround(&c)
	if err = errors.Join(c.Validate(), err); err != nil {
		m.log.Warn("stored network left out", "err", err)
		return
	}
	m.config, m.ground = &c, g
}

// holdPorts takes the host ports of an earlier run again. Another program may have been quicker; then both live with it, as after any restart.
func (m *Member) holdPorts() {
	for _, l := range m.book.list() {
		for _, p := range l.Ports {
			if err := m.ports.bind(number{p.Protocol, p.Host}); err != nil {
				m.ports.held[number{p.Protocol, p.Host}] = -1
				m.log.Warn("a published port is another program's too", "instance_id", l.Instance, "port", p.Host, "err", err)
			}
		}
	}
}

func (m *Member) loadKey() error {
	found, err := m.cfg.Store.Get(keyValue, &m.key)
	if err == nil && (!found || m.key.IsZero()) {
		if m.key, err = tunnel.GenerateKey(); err == nil {
			err = m.cfg.Store.Put(keyValue, m.key)
		}
	}
	m.public = m.key.Public().String()
	return err
}

// listenPort is the UDP port to ask for: the operator's, or that of the last run, or WireGuard's, or, where somebody has it, any.
func (m *Member) listenPort() uint16 {
	port := m.cfg.Port
	if port != 0 {
		return uint16(port) //nolint:gosec // validated
	}
	if _, err := m.cfg.Store.Get(portValue, &port); err != nil || port < 1 || port > 65535 {
		port = usualPort
	}
	s, _, err := open(number{"udp", port}, false)
	if err != nil {
		return 0
	}
	s.close()
	return uint16(port) //nolint:gosec // as just checked
}

// keepPort remembers the port for the next run: peers find the node where it was.
func (m *Member) keepPort(port uint16) {
	var before uint16
	if _, err := m.cfg.Store.Get(portValue, &before); err == nil && before == port || port == 0 || m.cfg.Port != 0 {
		return
	}
	if err := m.cfg.Store.Put(portValue, port); err != nil {
		m.log.Warn("port of the tunnels not kept", "err", err)
	}
}

// keepSaved writes what has changed: soon after it did, so that a power cut loses nothing that matters, but seldom where there is no end of
// changes, since cards wear out. What is waiting is written at the end.
func (m *Member) keepSaved(ctx context.Context) {
	spare := rate.NewLimiter(rate.Every(m.pace.saving), savesAtOnce)
	for {
		select {
		case <-m.save:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(m.pace.settle): // one change seldom comes alone
		case <-ctx.Done():
		}
		_ = spare.Wait(ctx) // or ctx has ended
		m.keep()
	}
}

// savesAtOnce is how many changes in a row are written without waiting.
const savesAtOnce = 10

// keep writes what the node knows of the network.
func (m *Member) keep() {
	select {
	case <-m.save: // what has changed meanwhile is written too
	default:
	}
	m.mu.Lock()
	k := kept{Services: m.table.list(), Names: slices.Clone(m.asked.names)}
	c := m.config
	m.mu.Unlock()
	err := m.cfg.Store.Put(servicesValue, k)
	if err == nil && c != nil {
		err = m.cfg.Store.Put(configValue, c)
	}
	if err != nil {
		m.log.Warn("network not kept: after a reboot without a link it is as before", "err", err)
	}
}

// noteLeases writes the leases, without waiting for the disk: it is in the way of a deploy.
func (m *Member) noteLeases() {
	m.mu.Lock()
	leases := m.book.list()
	m.mu.Unlock()
	m.says.give() // of whose jobs they are
	if err := m.cfg.Store.Note(leasesValue, leases); err != nil {
		m.log.Warn("addresses of the instances not kept", "err", err)
	}
}

// noteGuests writes where guests are now, if that is news: nobody else can tell a node that begins anew, and a guest that only listens would not say a
// word for minutes. Only those are written that the manager still lets in.
func (m *Member) noteGuests(net Network) {
	peers := net.Status().Tunnel.Peers
	m.mu.Lock()
	if m.config == nil {
		m.mu.Unlock()
		return
	}
	now := map[tunnel.Key]netip.AddrPort{}
	for i := range m.config.Peers {
		var key tunnel.Key
		if p := &m.config.Peers[i]; p.Guest != "" && key.UnmarshalText([]byte(p.Key)) == nil {
			if at, seen := m.guests[key]; seen {
				now[key] = at
			}
			if at := slices.IndexFunc(peers, func(s tunnel.PeerStats) bool { return s.Key == key && s.Endpoint.IsValid() }); at >= 0 {
				now[key] = peers[at].Endpoint
			}
		}
	}
	same := maps.Equal(now, m.guests)
	m.guests = now
	m.mu.Unlock()
	if same {
		return
	}
	if err := m.cfg.Store.Note(guestsValue, now); err != nil {
		m.log.Warn("whereabouts of guests not kept", "err", err)
	}
}

// findWait bounds the question for one host name.
const findWait = 2 * time.Second

// locate says where the relay and the reflectors are: what the manager leaves out is where it is dialled. complete is false where a name is still
// to be looked up.
func (m *Member) locate(c *messages.NetworkConfig) (relay string, stun []netip.AddrPort, complete bool) {
	if c.Relay != nil {
		relay = c.Relay.URL
		if u, err := url.Parse(relay); err == nil && u.Hostname() == "" {
			u.Host = net.JoinHostPort(m.cfg.Manager.Hostname(), u.Port())
			relay = u.String()
		}
	}
	complete = true
	for _, text := range c.STUN {
		if at, ok := m.found(text); ok {
			stun = append(stun, at)
		} else {
			complete = false
		}
	}
	return relay, stun, complete
}

// found returns where a reflector is, as far as that is known without asking anybody.
func (m *Member) found(text string) (netip.AddrPort, bool) {
	host, port, err := m.reflector(text)
	if err != nil {
		return netip.AddrPort{}, false
	}
	if at, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(at.Unmap(), port), true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.resolved[text]
	return at, ok
}

// reflector takes the name of a reflector apart.
func (m *Member) reflector(text string) (host string, port uint16, err error) {
	host, digits, err := net.SplitHostPort(text)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if host == "" {
		host = m.cfg.Manager.Hostname()
	}
	return host, uint16(number), err
}

// search looks up the reflectors that are not known yet, until ctx ends. The network is up without them, however long a name server takes.
func (m *Member) search(ctx context.Context) {
	for {
		m.mu.Lock()
		config := m.config
		m.mu.Unlock()
		var again <-chan time.Time
		if config != nil {
			for _, text := range config.STUN {
				if _, ok := m.found(text); ok {
					continue
				}
				if err := m.find(ctx, text); err != nil {
					m.log.Debug("reflector not found", "addr", text, "err", err)
					again = time.After(m.pace.retry)
					continue
				}
				m.news.give()
			}
		}
		select {
		case <-m.missing:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// find looks up where a reflector is. What was found stays, so that a name server that is away changes nothing.
func (m *Member) find(ctx context.Context, text string) error {
	host, port, err := m.reflector(text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, findWait)
	defer cancel()
	all, err := m.lookup(ctx, "ip", host)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%s has no address", host)
	}
	slices.SortFunc(all, func(a, b netip.Addr) int { return a.Unmap().Compare(b.Unmap()) }) // IPv4 first
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resolved[text] = netip.AddrPortFrom(all[0].Unmap(), port)
	return nil
}
