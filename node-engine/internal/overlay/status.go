package overlay

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

// meter turns the network's counters into rates.
type meter struct {
	measuring sync.Mutex // guards what follows
	at        time.Time
	bytes     map[tunnel.Key][2]uint64 // of the peers
	last      messages.OverlayUse
}

// meterEvery is the shortest time that a rate is taken over; who asks earlier gets the last ones.
const meterEvery = 2 * time.Second

// Use returns what is measured of the network; nil where there is none.
func (m *Member) Use() *messages.OverlayUse {
	net := m.network()
	if net == nil {
		return nil
	}
	m.mu.Lock()
	up := m.state == messages.OverlayUp
	m.mu.Unlock()
	if !up {
		return nil
	}
	use := m.measure(net)
	return &use
}

func (m *Member) measure(net Network) messages.OverlayUse {
	m.measuring.Lock()
	defer m.measuring.Unlock()
	now := time.Now()
	span := now.Sub(m.at)
	if m.at.IsZero() {
		span = 0 // nobody knows since when bytes are counted
	} else if span < meterEvery {
		return m.last
	}
	stats := net.Status()
	who := m.directory()
	counted := make(map[tunnel.Key][2]uint64, len(stats.Tunnel.Peers))
	var use messages.OverlayUse
	if stats.Packets.Flows > 0 { // to list them is to look at all there is room for
		flows := net.Traffic()
		use.Flows = who.sum(flows, span)
		jobs, strange := who.dialled(flows)
		for job := range jobs {
			m.used(job)
		}
		m.wonder(strange)
	} else {
		m.wonder(nil)
	}
	for _, p := range stats.Tunnel.Peers {
		use.Peers = append(use.Peers, who.peer(p, m.bytes[p.Key], span, now))
		counted[p.Key] = [2]uint64{p.Rx, p.Tx}
	}
	slices.SortFunc(use.Peers, func(a, b messages.PeerUse) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Guest, b.Guest))
	})
	m.at, m.bytes, m.last = now, counted, use
	return use
}

// directory knows whose keys and addresses are whose.
type directory struct {
	ground ground
	peers  map[tunnel.Key]*messages.Peer
	jobs   map[netip.Addr]messages.JobName // of containers here, and of services
	places map[netip.Addr]messages.NodeID  // of containers elsewhere
	own    messages.NodeID
}

func (m *Member) directory() directory {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := directory{ground: m.ground, peers: map[tunnel.Key]*messages.Peer{}, jobs: map[netip.Addr]messages.JobName{},
		places: map[netip.Addr]messages.NodeID{}, own: m.cfg.Node()}
	for _, l := range m.book.leases {
		if job, _, _, err := l.Instance.Split(); err == nil {
			d.jobs[l.Address] = job
		}
	}
	for _, s := range m.table.services {
		for _, a := range addressesOf(s) {
			d.jobs[a] = s.Job
		}
		for _, i := range s.Instances {
			if a, err := netip.ParseAddr(i.Address); err == nil {
				d.places[a] = i.Node
			}
		}
	}
	if m.config == nil {
		return d
	}
	for i := range m.config.Peers {
		p := &m.config.Peers[i]
		var key tunnel.Key
		if key.UnmarshalText([]byte(p.Key)) == nil {
			d.peers[key] = p
		}
		for _, one := range p.Instances {
			if a, err := netip.ParseAddr(one.Address); err == nil {
				d.places[a] = p.Node
			}
		}
	}
	return d
}

// peer is what is measured of one peer.
func (d directory) peer(p tunnel.PeerStats, before [2]uint64, span time.Duration, now time.Time) messages.PeerUse {
	u := messages.PeerUse{Path: messages.PathState(p.Way), RTTMS: float64(p.RTT.Microseconds()) / 1000, MTU: p.MTU}
	if who := d.peers[p.Key]; who != nil {
		u.Node, u.Guest = who.Node, who.Guest
	}
	if p.Endpoint.IsValid() {
		u.Endpoint = p.Endpoint.String()
	}
	if !p.Handshake.IsZero() {
		u.HandshakeS = int64(now.Sub(p.Handshake).Seconds())
	}
	if before != [2]uint64{} && p.Rx >= before[0] && p.Tx >= before[1] {
		u.RxBPS, u.TxBPS = bitsASecond(p.Rx-before[0], span), bitsASecond(p.Tx-before[1], span)
	}
	return u
}

// bitsASecond is the rate of that many bytes; 0 where the time is not known.
func bitsASecond(bytes uint64, span time.Duration) float64 {
	if span == 0 {
		return 0
	}
	return float64(bytes) * 8 / span.Seconds()
}

// v4 returns the IPv4 address that an address of the network stands for.
func (d directory) v4(a netip.Addr) netip.Addr {
	if a.Is6() {
		return d.ground.plan.Unmap(a)
	}
	return a
}

// maxFlowSums bounds what is told of flows: the busiest.
const maxFlowSums = 256

// service returns the job that a flow was begun to from here.
func (d directory) service(f service.Flow) (messages.JobName, bool) {
	to, known := d.jobs[d.v4(f.Dialled.Addr())]
	return to, known && !f.Server
}

// dialled returns the jobs that flows were begun to from here, and the service addresses of flows of which the node does not know whose they are.
func (d directory) dialled(flows []service.Flow) (jobs map[messages.JobName]bool, strange map[netip.Addr]bool) {
	jobs, strange = map[messages.JobName]bool{}, map[netip.Addr]bool{}
	for _, f := range flows {
		if f.Closed {
			continue
		}
		if to, ok := d.service(f); ok {
			jobs[to] = true
		} else if a := d.v4(f.Dialled.Addr()); !f.Server && d.ground.plan.Services().Contains(a) {
			strange[a] = true
		}
	}
	return jobs, strange
}

// sum adds the flows up by who talks to which service where, with what they carried in the time before. Those that others have begun are theirs to
// tell, and one that has ended counts by what it carried alone.
func (d directory) sum(flows []service.Flow, span time.Duration) []messages.FlowUse {
	type way struct {
		from, to messages.JobName
		node     messages.NodeID
	}
	sums := map[way]*messages.FlowUse{}
	for _, f := range flows {
		to, ok := d.service(f)
		if !ok || f.Closed && (f.Sent+f.Received == 0 || span == 0) {
			continue
		}
		w := way{d.jobs[d.v4(f.Local.Addr())], to, d.places[d.v4(f.Instance.Addr())]}
		if d.ground.local(d.v4(f.Instance.Addr())) {
			w.node = d.own
		}
		if sums[w] == nil {
			sums[w] = &messages.FlowUse{From: w.from, Service: w.to, Node: w.node}
		}
		if !f.Closed {
			sums[w].Flows++
		}
		sums[w].RxBPS += bitsASecond(f.Received, span)
		sums[w].TxBPS += bitsASecond(f.Sent, span)
	}
	list := make([]messages.FlowUse, 0, len(sums))
	for _, f := range sums {
		list = append(list, *f)
	}
	slices.SortFunc(list, func(a, b messages.FlowUse) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.From, b.From), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Node, b.Node))
	})
	return list[:min(len(list), maxFlowSums)]
}

// netStatus is the node's view of the network.
func (m *Member) netStatus() messages.NetStatus {
	m.mu.Lock()
	s := messages.NetStatus{State: m.state, Reason: sentence(m.reason), At: messages.At(time.Now())}
	net := m.net
	m.mu.Unlock()
	if net == nil || s.State != messages.OverlayUp {
		return s
	}
	stats := net.Status()
	if s.NAT = string(stats.Tunnel.NAT); s.NAT == "unknown" {
		s.NAT = ""
	}
	s.NoNames, s.NoIPv6 = sentence(stats.Names), sentence(stats.NoIPv6)
	if s.Reason == "" {
		s.Reason = sentence(stats.Shared)
	}
	s.Dropped = dropped(stats)
	s.OverlayUse = m.measure(net)
	return s
}

// maxSentence keeps a reason within what a status may carry.
const maxSentence = 1024

// sentence puts what an error says on one line.
func sentence(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.ToValidUTF8(s[:min(len(s), maxSentence)], "")
}

// dropped names what was lost, where anything was.
func dropped(s netmanager.Status) map[string]int64 {
	p := s.Packets
	counts := map[string]int64{}
	for reason, n := range map[string]uint64{
		"malformed": p.Malformed, "spoofed": p.Spoofed, "stray": p.Stray, "denied": p.Denied, "unknown_service": p.Missed,
		"no_instance": p.Unavailable, "fragments": p.Fragments, "too_big": p.TooBig, "queue_full": p.Lost,
	} {
		if n > 0 {
			counts[reason] = int64(min(n, 1<<62)) //nolint:gosec // bounded
		}
	}
	if len(counts) == 0 {
		return nil
	}
	return counts
}

// samePaths reports whether the same peers are reached by the same ways.
func samePaths(a, b []messages.PeerUse) bool {
	return slices.EqualFunc(a, b, func(a, b messages.PeerUse) bool {
		return a.Node == b.Node && a.Guest == b.Guest && a.Path == b.Path && a.Endpoint == b.Endpoint
	})
}

// sameFigures reports whether two statuses tell the same but for noise.
func sameFigures(a, b *messages.NetStatus) bool {
	near := func(x, y, by float64) bool { return max(x, y)-min(x, y) <= max(by, max(x, y)/4) }
	return samePaths(a.Peers, b.Peers) && slices.EqualFunc(a.Peers, b.Peers, func(a, b messages.PeerUse) bool {
		return near(a.RTTMS, b.RTTMS, 1) && near(a.RxBPS, b.RxBPS, 10_000) && near(a.TxBPS, b.TxBPS, 10_000) && a.MTU == b.MTU
	}) && slices.EqualFunc(a.Flows, b.Flows, func(a, b messages.FlowUse) bool {
		return a.From == b.From && a.Service == b.Service && a.Node == b.Node && near(float64(a.Flows), float64(b.Flows), 2) &&
			near(a.RxBPS, b.RxBPS, 10_000) && near(a.TxBPS, b.TxBPS, 10_000)
	})
}
