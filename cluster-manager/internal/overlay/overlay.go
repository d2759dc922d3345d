// Package overlay decides who gets which part of the network: blocks of addresses for nodes, addresses for services and guests, which nodes
// are peers, and what each of them is told of which services. It is a state machine without clock, goroutine or connection; package
// dispatch owns one, tells it what has happened, and sends what it says.
//
// What is leased stands in the records of jobs, nodes and guests, so that it is durable with them. What nodes are interested in is durable too:
// after a restart of the manager every node is told what it was told before, and no flow notices.
//
//	interest of a node in a job  ×  the nodes that hold instances of that job  →  pairs of peers
//	a job's instances and their health                                         →  its entry, sent to all that are interested in it
package overlay

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// Config is what a Network is told.
type Config struct {
	Plan  ipam.Plan // the zero one: there is no network
	Relay string    // URL of the relay
	STUN  []string  // the reflectors, host:port
}

// Out is one message that shall be published, or a key whose stream through the relay shall end.
type Out struct {
	EndRelay string
	Topic    string
	Payload  []byte
	Retain   bool
}

// Network is what a manager knows of the network. It is not safe for concurrent use.
type Network struct {
	cfg    Config
	log    *slog.Logger
	st     *cluster.State
	leases *ipam.Table
	// lost reports whether a placement's node has been away for too long.
	lost func(*cluster.Placement) bool

	keys    map[string]string           // whose a public key is: "node n1", "guest phone"
	keyOf   map[string]string           // the same the other way round
	refused map[messages.NodeID]string  // why a node is not let in
	lastIP  map[netip.Prefix]netip.Addr // of guests, by block: what was just given back rests

	asked     map[messages.JobName]map[messages.NodeID]bool // who has said to be interested, whether there is such a job or not
	hosts     map[messages.JobName]map[messages.NodeID]bool // where instances of a job are
	aliases   map[messages.JobName]map[messages.InstanceID]alias
	pairs     map[messages.NodeID]map[messages.NodeID]pair // why two nodes are peers
	peers     map[messages.NodeID]*described               // how a node is described to its peers; made anew where it is missing
	seed      maphash.Seed
	entries   map[messages.JobName]*messages.ServiceEntry
	streams   map[messages.NodeID]*stream
	published map[messages.NodeID]uint64 // what was retained of a node's configuration, as a hash

	touched map[messages.JobName]bool // jobs to look at
	configs map[messages.NodeID]bool  // nodes whose configuration may have changed
	updates map[messages.NodeID]bool  // nodes that are owed an update
	whole   bool                      // the status of the network is to be published
	out     []Out
}

// alias is where one instance is.
type alias struct {
	node    messages.NodeID
	ordinal int
	address string
}

// stream is what a connected node has been told of services.
type stream struct {
	link    any // the connection over which it said what it is interested in
	rev     uint64
	full    bool // it is owed everything
	answer  bool // it is owed an answer, also one with nothing in it
	sent    map[messages.JobName]*messages.ServiceEntry
	pending map[messages.JobName]bool
	unknown []string
}

// New takes up what is leased in st. Leases that are not of this network, or collide, are given up and made anew.
func New(cfg Config, st *cluster.State, lost func(*cluster.Placement) bool, log *slog.Logger) *Network {
	n := &Network{cfg: cfg, log: log, st: st, lost: lost, keys: map[string]string{}, keyOf: map[string]string{}, refused: map[messages.NodeID]string{}, lastIP: map[netip.Prefix]netip.Addr{},
		asked: map[messages.JobName]map[messages.NodeID]bool{}, hosts: map[messages.JobName]map[messages.NodeID]bool{},
		aliases: map[messages.JobName]map[messages.InstanceID]alias{}, pairs: map[messages.NodeID]map[messages.NodeID]pair{}, seed: maphash.MakeSeed(),
		peers: map[messages.NodeID]*described{}, entries: map[messages.JobName]*messages.ServiceEntry{}, streams: map[messages.NodeID]*stream{},
		published: map[messages.NodeID]uint64{}, touched: map[messages.JobName]bool{}, configs: map[messages.NodeID]bool{},
		updates: map[messages.NodeID]bool{}, whole: true}
	if n.Enabled() {
		n.leases = ipam.NewTable(cfg.Plan)
		n.restore()
	}
	for _, id := range slices.Sorted(maps.Keys(st.Nodes)) {
		if node := st.Nodes[id]; node.Info.Overlay != nil {
			had := len(node.Blocks)
			if n.Admit(node); len(node.Blocks) != had {
				st.PutNode(node)
			}
		}
	}
	for id, names := range st.Interests {
		if st.Nodes[id] == nil {
			st.PutInterest(id, nil)
			continue
		}
		for _, name := range names {
			n.ask(id, name)
		}
	}
	for name := range st.Jobs {
		n.touched[name] = true
	}
	return n
}

// Enabled reports whether there is a network.
func (n *Network) Enabled() bool { return n.cfg.Plan.V4.IsValid() }

// Inherit carries over what the nodes were told from a Network whose state was loaded again; they are told everything anew.
func (n *Network) Inherit(from *Network) {
	for id, s := range from.streams {
		if n.st.Nodes[id] != nil {
			n.stream(id).rev = s.rev
			n.streams[id].full, n.streams[id].link = true, s.link
			n.updates[id] = true
		}
	}
}

// Up reports whether a node is part of the network; where it is not, it says why not.
func (n *Network) Up(node *cluster.Node) (reason string, up bool) {
	o := node.Info.Overlay
	switch {
	case !n.Enabled():
		return "the manager runs without an overlay", false
	case o == nil:
		return "its engine has no overlay", false
	case n.refused[node.ID] != "":
		return n.refused[node.ID], false
	case o.Reason != "" || o.PublicKey == "":
		return orElse(o.Reason, "its engine has no tunnel"), false
	case node.Unmet:
		return "it has not connected yet", false
	case len(node.Blocks) == 0:
		return "no block of addresses is left in the network", false
	}
	return "", true
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// NodeStatus says how a node's part of the network stands, nil for one that knows none.
func (n *Network) NodeStatus(node *cluster.Node) *messages.OverlayStatus {
	o := node.Info.Overlay
	if o == nil {
		return nil
	}
	s := &messages.OverlayStatus{State: messages.OverlayUp, PublicKey: o.PublicKey, Endpoints: o.Endpoints, NAT: node.NAT, RelayOnly: node.RelayOnly,
		Peers: len(n.pairs[node.ID])}
	for _, b := range node.Blocks {
		s.Blocks = append(s.Blocks, b.String())
	}
	if reason, up := n.Up(node); !up {
		s.State, s.Reason = messages.OverlayOff, reason
		if n.Enabled() && !node.Unmet && (n.refused[node.ID] != "" || (o.Reason == "" && o.PublicKey != "")) {
			s.State = messages.OverlayRefused
		}
	}
	return s
}

// Touch says that something of a job's instances may have changed.
func (n *Network) Touch(job messages.JobName) { n.touched[job] = true }

// Owed reports whether Flush has something to do.
func (n *Network) Owed() bool {
	return len(n.touched) > 0 || len(n.configs) > 0 || len(n.updates) > 0 || n.whole || len(n.out) > 0
}

// Flush looks at what has happened since it was called last, and returns what is to be published. Configurations come before tables: who learns of
// a service dials it, and the node that runs it should know its new peer by then.
func (n *Network) Flush(now time.Time) []Out {
	for _, name := range slices.Sorted(maps.Keys(n.touched)) { // the same input leads to the same output
		n.refresh(name)
	}
	n.touched = map[messages.JobName]bool{} // to clear one that was large once would cost that every time
	for _, id := range slices.Sorted(maps.Keys(n.configs)) {
		n.config(id)
	}
	n.configs = map[messages.NodeID]bool{}
	for _, id := range slices.Sorted(maps.Keys(n.updates)) {
		n.update(id)
	}
	n.updates = map[messages.NodeID]bool{}
	if n.whole {
		n.whole = false
		n.say(messages.Topic{Kind: messages.NetworkTopic}, messages.Encode(n.status(now)), true)
	}
	out := n.out
	n.out = nil
	return out
}

func (n *Network) say(t messages.Topic, payload []byte, retain bool) {
	n.out = append(n.out, Out{Topic: t.String(), Payload: payload, Retain: retain})
}

func (n *Network) status(now time.Time) messages.NetworkStatus {
	s := messages.NetworkStatus{At: messages.At(now)}
	if !n.Enabled() {
		return s
	}
	s.Network, s.Network6, s.Services = n.cfg.Plan.V4.String(), n.cfg.Plan.V6.String(), n.cfg.Plan.Services().String()
	s.Blocks, s.Addresses = n.leases.Leased()
	s.Free, _ = n.leases.Free()
	for _, name := range slices.Sorted(maps.Keys(n.st.Guests)) {
		s.Guests = append(s.Guests, n.guest(n.st.Guests[name]))
	}
	return s
}

// nodeOwner and guestOwner name who has leased something or bears a key.
func nodeOwner(id messages.NodeID) string { return "node " + string(id) }

func guestOwner(name string) string { return "guest " + name }

func jobOwner(name messages.JobName) string { return "job " + string(name) }

// ErrNoAddress says that a lease cannot be had.
type ErrNoAddress struct{ cause error }

// Error says what to do.
func (e *ErrNoAddress) Error() string {
	return fmt.Sprintf("%v in the network: delete jobs, or give the manager a wider --network", e.cause)
}

// Unwrap returns the cause.
func (e *ErrNoAddress) Unwrap() error { return e.cause }
