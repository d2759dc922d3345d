package overlay

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// Observed takes up the address that a node reports for an instance: one of the node's blocks, or none. It reports whether that is news;
// the caller records the placement then.
func (n *Network) Observed(p *cluster.Placement) bool {
	address := ""
	if p.Observed != nil && n.owns(p.Node, p.Observed.Address) {
		address = p.Observed.Address
	}
	if address == p.Address {
		return false
	}
	p.Address = address
	n.touched[p.Job] = true
	return true
}

// owns reports whether an address is one of a node's blocks.
func (n *Network) owns(id messages.NodeID, address string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil || n.st.Nodes[id] == nil {
		return false
	}
	return slices.ContainsFunc(n.st.Nodes[id].Blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

// healthy reports whether flows may be sent to an instance. What has not been reported since the manager started is taken to be as it was:
// a restart of the manager must not empty the tables.
func (n *Network) healthy(p *cluster.Placement) bool {
	if !p.Run || p.Finished || p.Address == "" || p.Abandoned || (p.Observed != nil && !p.Up()) || n.lost(p) {
		return false
	}
	node := n.st.Nodes[p.Node]
	if node == nil {
		return false
	}
	_, up := n.Up(node)
	return up
}

// better reports whether an instance is the one of its ordinal rather than another: a healthy one before all, then the newer one. So an old
// one gets no new flow from the moment that its replacement is healthy, which is before it is told to stop.
func (n *Network) better(a, b *cluster.Placement) bool {
	switch ha, hb := n.healthy(a), n.healthy(b); {
	case ha != hb:
		return ha
	case a.Run != b.Run:
		return a.Run
	default:
		return a.Generation > b.Generation
	}
}

// entry makes what nodes are told of a job, nil for one that has no addresses.
func (n *Network) entry(j *cluster.Job) *messages.ServiceEntry {
	if j == nil || j.Addresses == nil || !connected(j.Spec.Spec) {
		return nil
	}
	e := &messages.ServiceEntry{Job: j.Spec.Name, RoundRobin: j.Addresses.RoundRobin.String(), Closest: j.Addresses.Closest.String(),
		Policy: j.Spec.Network.Policy, Allow: j.Spec.Network.Allow, Ports: j.Spec.Ports, Instances: []messages.ServiceInstance{}}
	best := map[int]*cluster.Placement{}
	for _, p := range j.Placements {
		if p.Address != "" && !p.Abandoned && (best[p.Ordinal] == nil || n.better(p, best[p.Ordinal])) {
			best[p.Ordinal] = p
		}
	}
	for _, o := range slices.Sorted(maps.Keys(j.Addresses.Instances)) {
		i := messages.ServiceInstance{Ordinal: o, Service: j.Addresses.Instances[o].String()}
		p := best[o]
		if p == nil && !j.Wanted(o) {
			continue // scaled away; its address is kept
		}
		if p != nil {
			i.Generation, i.Address, i.Node, i.Healthy = p.Generation, p.Address, p.Node, n.healthy(p)
		}
		e.Instances = append(e.Instances, i)
	}
	return e
}

// refresh looks at a job anew: its entry, where its instances are, and which addresses they have.
func (n *Network) refresh(name messages.JobName) {
	if !n.Enabled() {
		return
	}
	j := n.st.Jobs[name]
	n.refreshHosts(name, j)
	entry, old := n.entry(j), n.entries[name]
	n.refreshAliases(name, j, entry != nil)
	switch {
	case entry == nil && old == nil:
		return
	case reflect.DeepEqual(entry, old):
		return
	case entry == nil:
		delete(n.entries, name)
		n.say(messages.Topic{Kind: messages.ServiceTopic, Job: name}, nil, true)
	default:
		n.entries[name] = entry
		n.say(messages.Topic{Kind: messages.ServiceTopic, Job: name}, messages.Encode(entry), true)
	}
	for id := range n.asked[name] {
		n.owe(id, name)
	}
	for id := range n.hosts[name] {
		n.owe(id, name)
	}
}

// owe notes that a node is to be told of a job, if it listens.
func (n *Network) owe(id messages.NodeID, job messages.JobName) {
	if s := n.streams[id]; s != nil {
		s.pending[job] = true
		n.updates[id] = true
	}
}

// hears reports whether a node is told of a job.
func (n *Network) hears(id messages.NodeID, job messages.JobName) bool {
	return n.asked[job][id] || n.hosts[job][id]
}

// refreshHosts finds out where a job's instances are, and makes or ends pairs of peers.
func (n *Network) refreshHosts(name messages.JobName, j *cluster.Job) {
	now := map[messages.NodeID]bool{}
	if j != nil && connected(j.Spec.Spec) {
		for _, p := range j.Placements {
			if !p.Abandoned && (p.Run || p.Address != "") {
				now[p.Node] = true
			}
		}
	}
	old := n.hosts[name]
	for id := range now {
		if !old[id] {
			n.owe(id, name)
			for asker := range n.asked[name] {
				n.pair(asker, id, 1)
			}
		}
	}
	for id := range old {
		if !now[id] {
			n.owe(id, name)
			for asker := range n.asked[name] {
				n.pair(asker, id, -1)
			}
		}
	}
	n.hosts[name] = now
	if len(now) == 0 {
		delete(n.hosts, name)
	}
}

// refreshAliases finds out which addresses the job's instances have; where one has changed, those peers are told that it may
// open connections to.
func (n *Network) refreshAliases(name messages.JobName, j *cluster.Job, known bool) {
	now := map[messages.InstanceID]alias{}
	if known {
		for id, p := range j.Placements {
			if p.Address != "" && !p.Abandoned {
				now[id] = alias{node: p.Node, ordinal: p.Ordinal, address: p.Address}
			}
		}
	}
	old := n.aliases[name]
	for id, a := range now {
		if old[id] != a {
			n.instancesChanged(a.node)
		}
	}
	for id, a := range old {
		if now[id] != a {
			n.instancesChanged(a.node)
		}
	}
	n.aliases[name] = now
	if len(now) == 0 {
		delete(n.aliases, name)
	}
}
