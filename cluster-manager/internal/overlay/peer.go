package overlay

import (
	"bytes"
	"hash/maphash"
	"maps"
	"slices"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// pair says why two nodes are peers, from the point of view of one of them.
type pair struct {
	asks  int // jobs of the other one that it is interested in
	asked int // jobs of its own that the other one is interested in
}

// described is how a node is described to its peers.
type described struct {
	full []byte // with the instances there: to those that they may open connections to
	bare []byte
}

// pair counts the jobs on host that asker is interested in up or down. With the first and the last their configurations change.
func (n *Network) pair(asker, host messages.NodeID, by int) {
	if asker == host {
		return
	}
	n.link(asker, host, pair{asks: by})
	n.link(host, asker, pair{asked: by})
}

func (n *Network) link(from, to messages.NodeID, by pair) {
	m := n.pairs[from]
	if m == nil {
		m = map[messages.NodeID]pair{}
		n.pairs[from] = m
	}
	was := m[to]
	now := pair{asks: was.asks + by.asks, asked: was.asked + by.asked}
	m[to] = now
	if now == (pair{}) {
		delete(m, to)
	}
	if len(m) == 0 {
		delete(n.pairs, from)
	}
	if (was == pair{}) != (now == pair{}) || (was.asked > 0) != (now.asked > 0) {
		n.configs[from] = true
	}
}

// changed says that a node is to be described anew to its peers.
func (n *Network) changed(id messages.NodeID) {
	delete(n.peers, id)
	for other := range n.pairs[id] {
		n.configs[other] = true
	}
}

// instancesChanged says that the instances on a node are others, or have other addresses.
func (n *Network) instancesChanged(id messages.NodeID) {
	delete(n.peers, id)
	for other, why := range n.pairs[id] {
		if why.asks > 0 {
			n.configs[other] = true
		}
	}
}

// Endpoints takes what a node says of its tunnel. It reports whether that is news; the caller records the node then.
func (n *Network) Endpoints(node *cluster.Node, e messages.Endpoints) bool {
	o := messages.OverlayInfo{PublicKey: e.PublicKey, Endpoints: e.Endpoints, Reason: e.Reason}
	if old := node.Info.Overlay; old != nil && old.PublicKey == o.PublicKey && old.Reason == o.Reason && slices.Equal(old.Endpoints, o.Endpoints) &&
		node.NAT == e.NAT && node.RelayOnly == e.RelayOnly {
		return false
	}
	node.Info.Overlay, node.NAT, node.RelayOnly = &o, e.NAT, e.RelayOnly
	n.Admit(node)
	return true
}

// peer describes a node to its peers, nil where it is not part of the network.
func (n *Network) peer(id messages.NodeID) *described {
	if d, known := n.peers[id]; known {
		return d
	}
	node := n.st.Nodes[id]
	if node == nil {
		return nil
	}
	if _, up := n.Up(node); !up {
		return nil
	}
	p := messages.Peer{Node: id, Key: node.Info.Overlay.PublicKey, Endpoints: node.Info.Overlay.Endpoints, RelayOnly: node.RelayOnly}
	for _, b := range node.Blocks {
		p.Prefixes = append(p.Prefixes, b.String())
	}
	for _, g := range n.guestsOf(id) {
		p.Prefixes = append(p.Prefixes, g.Address.String()+"/32")
	}
	d := &described{bare: messages.Encode(p)}
	p.Instances = n.instances(node)
	d.full = messages.Encode(p)
	n.peers[id] = d
	return d
}

// instances says whose the addresses on a node are.
func (n *Network) instances(node *cluster.Node) []messages.PeerInstance {
	var all []messages.PeerInstance
	for _, instance := range slices.Sorted(maps.Keys(node.Instances)) {
		p := n.st.Placement(instance)
		if p == nil || p.Address == "" {
			continue
		}
		j := n.st.Jobs[p.Job]
		if j.Addresses == nil {
			continue
		}
		if service, ok := j.Addresses.Instances[p.Ordinal]; ok {
			all = append(all, messages.PeerInstance{Address: p.Address, Service: service.String(), Job: p.Job})
		}
	}
	return all
}

// config publishes the configuration of a node, where it is another one than before. A node that knows no overlay gets none, nor one that is not
// met yet: one without blocks would have it give up those that it has from a manager that has lost its state.
func (n *Network) config(id messages.NodeID) {
	topic := messages.Topic{Kind: messages.NetConfigTopic, Node: id}
	node := n.st.Nodes[id]
	if node == nil || node.Info.Overlay == nil || node.Unmet {
		if _, was := n.published[id]; was || node == nil {
			delete(n.published, id)
			n.say(topic, nil, true)
		}
		return
	}
	c := n.configuration(node)
	peers := n.peerList(node, &c)
	h := maphash.Hash{}
	h.SetSeed(n.seed)
	for _, part := range append([][]byte{messages.Encode(c)}, peers...) {
		h.Write(part) //nolint:errcheck // a hash.Hash never returns an error, by its contract
	}
	if was, ok := n.published[id]; ok && was == h.Sum64() {
		return
	}
	n.published[id] = h.Sum64()
	c.Rev = n.st.NextRev()
	n.say(topic, join(c, peers), true)
}

// noPeers is where the peers of a configuration go: they are encoded once for all whose peers they are.
var noPeers = []byte(`"peers":[]`)

func join(c messages.NetworkConfig, peers [][]byte) []byte {
	head, tail, _ := bytes.Cut(messages.Encode(c), noPeers)
	return slices.Concat(head, []byte(`"peers":[`), bytes.Join(peers, []byte(",")), []byte("]"), tail)
}

// peerList returns the peers of a node. Where they are too large for a message, what their instances are is left out, then the later peers.
func (n *Network) peerList(node *cluster.Node, c *messages.NetworkConfig) [][]byte {
	if len(c.Blocks) == 0 {
		return nil
	}
	size := 4 << 10 // the rest
	var full, bare [][]byte
	for _, g := range n.guestsOf(node.ID) {
		p := messages.Encode(messages.Peer{Guest: g.Name, Key: g.PublicKey, Prefixes: []string{g.Address.String() + "/32"}})
		full, bare = append(full, p), append(bare, p)
		size += len(p) + 1
	}
	for _, other := range slices.Sorted(maps.Keys(n.pairs[node.ID])) {
		d := n.peer(other)
		if d == nil {
			continue
		}
		p := d.bare
		if n.pairs[node.ID][other].asked > 0 {
			p = d.full
		}
		full, bare = append(full, p), append(bare, d.bare)
		size += len(p) + 1
	}
	if size <= messages.MaxFromManager {
		return full
	}
	n.log.Warn("the configuration of a node is too large, what does not fit is left out", "node_id", node.ID, "peers", len(full))
	size = 4 << 10
	for i, p := range bare {
		if size += len(p) + 1; size > messages.MaxFromManager {
			return bare[:i]
		}
	}
	return bare
}

// configuration returns all but the peers.
func (n *Network) configuration(node *cluster.Node) messages.NetworkConfig {
	c := messages.NetworkConfig{}
	if !n.Enabled() {
		c.Reason, _ = n.Up(node)
		return c
	}
	plan := n.cfg.Plan
	c.Network, c.Network6, c.Services, c.STUN = plan.V4.String(), plan.V6.String(), plan.Services().String(), n.cfg.STUN
	if n.cfg.Relay != "" {
		c.Relay = &messages.Relay{URL: n.cfg.Relay}
	}
	if n.refused[node.ID] != "" || len(node.Blocks) == 0 {
		c.Reason, _ = n.Up(node)
		return c
	}
	for _, b := range node.Blocks {
		c.Blocks = append(c.Blocks, b.String())
	}
	if first, err := ipam.BlockOf(node.Blocks[0]); err == nil {
		c.Gateway = first.Gateway().String()
	}
	return c
}
