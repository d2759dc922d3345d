package dispatch

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// netWatch is what the nodes and clients of a world know of the network.
type netWatch struct {
	configs  map[messages.NodeID]messages.NetworkConfig // retained
	tables   map[messages.NodeID]*netTable
	services map[messages.JobName]messages.ServiceEntry // retained
	status   messages.NetworkStatus                     // retained
	interest map[messages.NodeID]messages.Interest
	used     map[messages.NodeID]map[messages.InstanceID]string
	sent     int // updates
}

// netTable is what one node has been told of services.
type netTable struct {
	rev      uint64
	services map[messages.JobName]messages.ServiceEntry
	unknown  []string
	more     bool
}

// newNetWorld is a world whose nodes have an overlay.
func newNetWorld(t *testing.T, nodes ...messages.NodeID) *world {
	w := newWorld(t)
	plan, err := planOf("10.160.0.0/12")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Network = overlay.Config{Plan: plan, Relay: "http://:10100/relay", STUN: []string{":10100"}}
	w.net = &netWatch{configs: map[messages.NodeID]messages.NetworkConfig{}, tables: map[messages.NodeID]*netTable{},
		services: map[messages.JobName]messages.ServiceEntry{}, interest: map[messages.NodeID]messages.Interest{},
		used: map[messages.NodeID]map[messages.InstanceID]string{}}
	w.boot()
	for _, id := range nodes {
		w.joinNet(id)
	}
	return w
}

// tunnelKey is the public key of a node's or guest's tunnel.
func tunnelKey(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// joinNet registers a node that has an overlay.
func (w *world) joinNet(id messages.NodeID) {
	w.t.Helper()
	w.join(id, func(i *messages.NodeInfo) {
		i.Overlay = &messages.OverlayInfo{PublicKey: tunnelKey(string(id)), Endpoints: []string{"192.0.2.1:51820"}}
	})
}

// connectNet has a node say what it is interested in, as an engine does after each connect.
func (w *world) connectNet(n *board) {
	if w.net == nil {
		return
	}
	i := w.net.interest[n.id]
	i.Full = true
	w.core.Interest(n.id, n.link, i, w.now)
}

// wants has a node say what it is interested in.
func (w *world) wants(id messages.NodeID, names ...messages.JobName) {
	w.net.interest[id] = messages.Interest{Names: names}
	w.core.Interest(id, w.nodes[id].link, w.net.interest[id], w.now)
	w.pass(interestEvery)
}

// addressOn gives an instance an address of its node's first block.
func (w *world) addressOn(n *board, id messages.InstanceID) string {
	if w.net == nil || len(w.net.configs[n.id].Blocks) == 0 {
		return ""
	}
	used := w.net.used[n.id]
	if used == nil {
		used = map[messages.InstanceID]string{}
		w.net.used[n.id] = used
	}
	if used[id] == "" {
		b, err := ipam.BlockOf(netip.MustParsePrefix(w.net.configs[n.id].Blocks[0]))
		if err != nil {
			w.t.Fatal(err)
		}
		taken := slices.Collect(maps.Values(used))
		a, _ := b.Next(netip.Addr{}, func(a netip.Addr) bool { return slices.Contains(taken, a.String()) })
		used[id] = a.String()
	}
	return used[id]
}

// deliverNet takes up what is said of the network. Everything must be valid, and every update must follow the one before.
func (w *world) deliverNet(t messages.Topic, m Message) {
	w.t.Helper()
	if w.net == nil {
		return
	}
	switch t.Kind {
	case messages.NetConfigTopic:
		if len(m.Payload) == 0 {
			delete(w.net.configs, t.Node)
			return
		}
		c := decode[messages.NetworkConfig](w.t, m.Payload)
		if err := c.Validate(); err != nil || c.Rev <= w.net.configs[t.Node].Rev || !m.Retain {
			w.t.Fatalf("the configuration of %s: %v\n%s", t.Node, err, m.Payload)
		}
		w.net.configs[t.Node] = c
	case messages.NetServicesTopic:
		w.net.sent++
		if n := w.nodes[t.Node]; n != nil && n.online {
			w.updated(t.Node, decode[messages.ServiceUpdate](w.t, m.Payload))
		}
	case messages.ServiceTopic:
		delete(w.net.services, t.Job)
		if len(m.Payload) > 0 {
			w.net.services[t.Job] = decode[messages.ServiceEntry](w.t, m.Payload)
		}
	case messages.NetworkTopic:
		w.net.status = decode[messages.NetworkStatus](w.t, m.Payload)
	default:
	}
}

func (w *world) updated(id messages.NodeID, u messages.ServiceUpdate) {
	w.t.Helper()
	table := w.net.tables[id]
	if table == nil {
		table = &netTable{services: map[messages.JobName]messages.ServiceEntry{}}
		w.net.tables[id] = table
	}
	if err := u.Validate(); err != nil || (!u.Full && u.Base != table.rev) || len(messages.Encode(u)) > messages.MaxFromManager {
		w.t.Fatalf("update %d on %d to %s, which has %d: %v", u.Rev, u.Base, id, table.rev, err)
	}
	if u.Full {
		clear(table.services)
	}
	table.rev, table.unknown, table.more = u.Rev, u.Unknown, u.More
	for _, s := range u.Services {
		table.services[s.Job] = s
	}
	for _, name := range u.Gone {
		if _, ok := table.services[name]; !ok {
			w.t.Errorf("%s is told that %s is gone, of which it was not told", id, name)
		}
		delete(table.services, name)
	}
}

// knows returns the jobs that a node has been told of.
func (w *world) knows(id messages.NodeID) []messages.JobName {
	if w.net.tables[id] == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(w.net.tables[id].services))
}

// peersOf returns the nodes and guests that a node was told to take as peers.
func (w *world) peersOf(id messages.NodeID) []string {
	var names []string
	for _, p := range w.net.configs[id].Peers {
		names = append(names, string(p.Node)+p.Guest)
	}
	return names
}

// checkNet holds what must be so at any moment of rest: peers are so on both sides, every node's table says what is retained for clients, no
// address is leased twice.
func (w *world) checkNet() {
	w.t.Helper()
	for id := range w.net.configs {
		for _, p := range w.net.configs[id].Peers {
			if p.Node != "" && !slices.Contains(w.peersOf(p.Node), string(id)) {
				w.t.Errorf("%s has the peer %s, which does not have it", id, p.Node)
			}
		}
	}
	for id, table := range w.net.tables {
		n := w.nodes[id]
		if n == nil || !n.online {
			continue
		}
		for name, s := range table.services {
			if got, want := string(messages.Encode(s)), string(messages.Encode(w.net.services[name])); got != want {
				w.t.Errorf("%s was told of %s\n%s, clients\n%s", id, name, got, want)
			}
		}
		for _, name := range w.net.interest[id].Names {
			if _, there := w.net.services[name]; there && !slices.Contains(w.knows(id), name) {
				w.t.Errorf("%s was not told of %s", id, name)
			}
		}
		if table.more {
			w.t.Errorf("%s waits for more", id)
		}
	}
	leased := map[string]string{}
	lease := func(a, owner string) {
		if leased[a] != "" {
			w.t.Errorf("%s is %s's and %s's", a, leased[a], owner)
		}
		leased[a] = owner
	}
	for id, c := range w.net.configs {
		for _, b := range c.Blocks {
			lease(b, string(id))
		}
	}
	for name, s := range w.net.services {
		lease(s.RoundRobin, string(name))
		lease(s.Closest, string(name))
		for _, i := range s.Instances {
			lease(i.Service, string(name))
		}
	}
}

func planOf(prefix string) (ipam.Plan, error) {
	return ipam.NewPlan(netip.MustParsePrefix(prefix), netip.MustParsePrefix("fd5c:ae11:9::/48"))
}
