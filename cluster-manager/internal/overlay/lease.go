package overlay

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// guestsOwner holds the blocks of all guests.
const guestsOwner = "guests"

// headroom is how many addresses of its blocks a node has left when it gets a further one: addresses that were given back rest a while,
// and sandboxes wait for their instance.
const headroom = 8

// restore takes up what the records say is leased.
func (n *Network) restore() {
	for _, id := range slices.Sorted(maps.Keys(n.st.Nodes)) {
		node := n.st.Nodes[id]
		kept := slices.DeleteFunc(slices.Clone(node.Blocks), func(b netip.Prefix) bool {
			err := n.leases.TakeBlock(nodeOwner(id), b)
			if err != nil {
				n.log.Warn("block given up", "node_id", id, "err", err)
			}
			return err != nil
		})
		if len(kept) != len(node.Blocks) {
			node.Blocks = kept
			n.st.PutNode(node)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.st.Guests)) {
		n.restoreGuest(n.st.Guests[name])
	}
	// What is there is taken before anything new is leased.
	names := slices.Sorted(maps.Keys(n.st.Jobs))
	for _, name := range names {
		n.restoreJob(n.st.Jobs[name])
	}
	for _, name := range names {
		j := n.st.Jobs[name]
		if had := j.Addresses; connected(j.Spec.Spec) {
			if err := n.LeaseJob(j, j.Ordinals); err != nil {
				n.log.Warn("job has no service address", "job_id", name, "err", err)
			}
			if had == nil && j.Addresses != nil {
				n.st.PutJob(j)
			}
		}
	}
}

// restoreJob takes up the addresses of a job; those that cannot be taken are forgotten.
func (n *Network) restoreJob(j *cluster.Job) {
	a := j.Addresses
	if a == nil {
		return
	}
	all := []netip.Addr{a.RoundRobin, a.Closest}
	for _, o := range slices.Sorted(maps.Keys(a.Instances)) {
		all = append(all, a.Instances[o])
	}
	for i, addr := range all {
		err := n.leases.TakeAddress(jobOwner(j.Spec.Name), addr)
		if err == nil && !slices.Contains(all[:i], addr) {
			continue
		}
		n.log.Warn("service addresses given up", "job_id", j.Spec.Name, "err", err)
		for _, taken := range all {
			if owner, ok := n.leases.Owner(taken); ok && owner == jobOwner(j.Spec.Name) {
				n.leases.ReturnAddress(taken)
			}
		}
		j.Addresses = nil
		n.st.PutJob(j)
		return
	}
}

// connected reports whether a job's instances may be part of the network.
func connected(s messages.Spec) bool {
	return s.Network.Mode == "" || s.Network.Mode == messages.Overlay
}

// LeaseJob sees to it that a job has its addresses, with one for each of the ordinals. Those that it has it keeps. The caller records the job.
func (n *Network) LeaseJob(j *cluster.Job, ordinals []int) error {
	if !n.Enabled() || !connected(j.Spec.Spec) {
		return nil
	}
	a := &cluster.Addresses{Instances: map[int]netip.Addr{}}
	if had := j.Addresses; had != nil {
		a.RoundRobin, a.Closest = had.RoundRobin, had.Closest
		maps.Copy(a.Instances, had.Instances)
	}
	var leased []netip.Addr
	want := func(had netip.Addr) (netip.Addr, error) {
		if had.IsValid() {
			return had, nil
		}
		addr, err := n.leases.Address(jobOwner(j.Spec.Name))
		leased = append(leased, addr)
		return addr, err
	}
	var err error
	if a.RoundRobin, err = want(a.RoundRobin); err == nil {
		a.Closest, err = want(a.Closest)
	}
	for _, o := range ordinals {
		if err == nil {
			a.Instances[o], err = want(a.Instances[o])
		}
	}
	if err != nil {
		for _, addr := range leased {
			n.leases.ReturnAddress(addr)
		}
		return &ErrNoAddress{err}
	}
	if len(leased) > 0 {
		j.Addresses, n.whole = a, true
		n.touched[j.Spec.Name] = true
	}
	return nil
}

// DropJob gives back what a job has leased.
func (n *Network) DropJob(j *cluster.Job) {
	n.touched[j.Spec.Name] = true
	if j.Addresses == nil || !n.Enabled() {
		return
	}
	n.leases.ReturnAddress(j.Addresses.RoundRobin)
	n.leases.ReturnAddress(j.Addresses.Closest)
	for _, addr := range j.Addresses.Instances {
		n.leases.ReturnAddress(addr)
	}
	n.whole = true
}

// Admit takes up what a node has said of its tunnel, and sees to it that one that was met has its block. The caller records the node.
func (n *Network) Admit(node *cluster.Node) {
	n.changed(node.ID)
	n.configs[node.ID] = true
	for name := range n.hostedBy(node.ID) {
		n.touched[name] = true // where the node is in the network now, or is not any more
	}
	was := n.refused[node.ID]
	delete(n.refused, node.ID)
	before := n.keyOf[nodeOwner(node.ID)]
	n.forgetKey(nodeOwner(node.ID))
	defer func() { n.endRelay(node.ID, before) }()
	o := node.Info.Overlay
	if !n.Enabled() || o == nil || o.PublicKey == "" {
		return
	}
	if owner, taken := n.keys[o.PublicKey]; taken {
		reason := "its tunnel's key is that of " + owner
		n.refused[node.ID] = reason
		node.Info.Overlay = &messages.OverlayInfo{Reason: reason} // the key is not kept: it must not be its own after a restart
		if was != reason {
			n.log.Warn("node not let into the network", "node_id", node.ID, "err", reason)
		}
		return
	}
	n.setKey(o.PublicKey, nodeOwner(node.ID))
	if !node.Unmet {
		n.Lease(node)
	}
}

// Lease sees to it that a node has its block. The caller records the node.
func (n *Network) Lease(node *cluster.Node) {
	n.changed(node.ID)
	n.configs[node.ID] = true
	if o := node.Info.Overlay; n.Enabled() && o != nil && o.PublicKey != "" && len(node.Blocks) == 0 {
		n.takeAgain(node)
	}
	n.Grow(node)
}

// takeAgain gives a node the blocks that it says it has, where nobody else has them: the manager has lost its state, and what runs there shall
// keep its addresses.
func (n *Network) takeAgain(node *cluster.Node) {
	for _, text := range node.Info.Overlay.Blocks {
		b, err := netip.ParsePrefix(text)
		if err == nil {
			err = n.leases.TakeBlock(nodeOwner(node.ID), b)
		}
		if err == nil && !slices.Contains(node.Blocks, b) {
			node.Blocks, n.whole = append(node.Blocks, b), true
		}
	}
}

func (n *Network) forgetKey(owner string) {
	delete(n.keys, n.keyOf[owner])
	delete(n.keyOf, owner)
}

// endRelay ends the relay's stream of a key that is not the node's any more.
func (n *Network) endRelay(id messages.NodeID, before string) {
	if before != "" && before != n.keyOf[nodeOwner(id)] {
		n.out = append(n.out, Out{EndRelay: before})
	}
}

// NodeKey reports whether a public key is that of a node's tunnel.
func (n *Network) NodeKey(key string) bool { return strings.HasPrefix(n.keys[key], nodeOwner("")) }

func (n *Network) setKey(key, owner string) { n.keys[key], n.keyOf[owner] = owner, key }

// Grow gives a node a further block where what is placed there comes near to filling those that it has. It reports whether it did; the caller
// records the node then.
func (n *Network) Grow(node *cluster.Node) bool {
	if !n.Enabled() || node.Info.Overlay == nil || node.Info.Overlay.PublicKey == "" || n.refused[node.ID] != "" {
		return false
	}
	grown := false
	for len(node.Blocks) == 0 || len(node.Instances)+headroom > len(node.Blocks)*ipam.Size {
		b, err := n.leases.Block(nodeOwner(node.ID))
		if err != nil {
			n.log.Warn("no block for a node", "node_id", node.ID, "err", err)
			break
		}
		node.Blocks = append(node.Blocks, b)
		grown = true
	}
	if grown {
		n.changed(node.ID)
		n.configs[node.ID], n.whole = true, true
	}
	return grown
}

// Vacate forgets the tunnel of a node whose name waits for another board. Its blocks stay.
func (n *Network) Vacate(node *cluster.Node) {
	before := n.keyOf[nodeOwner(node.ID)]
	n.forgetKey(nodeOwner(node.ID))
	n.endRelay(node.ID, before)
	delete(n.refused, node.ID)
	delete(n.streams, node.ID)
	node.Info.Overlay, node.NAT, node.RelayOnly = nil, "", false
	n.changed(node.ID)
	n.configs[node.ID] = true
}

// Remove gives back all that a node has.
func (n *Network) Remove(node *cluster.Node) {
	n.setInterest(node.ID, nil)
	n.Vacate(node)
	if n.leases != nil {
		for _, b := range node.Blocks {
			n.leases.ReturnBlock(b)
		}
	}
	node.Blocks, n.whole = nil, true
	n.say(messages.Topic{Kind: messages.NetStatusTopic, Node: node.ID}, nil, true)
	for _, g := range n.guestsOf(node.ID) { // they need another node, and a new configuration
		if gateway, err := n.gateway("", node.ID); err == nil {
			moved := *g
			moved.Gateway = gateway
			n.st.PutGuest(&moved)
			n.guestChanged(&moved)
		}
	}
}
