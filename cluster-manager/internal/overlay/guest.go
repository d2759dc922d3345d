package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// maxGuests bounds the guests of a cluster: all of them stand in one retained message.
const maxGuests = 1000

// Errors of guests.
var (
	ErrGuestKey = errors.New("the public key is another one's")
	ErrGateway  = errors.New("no node can let a guest in")
	ErrGuests   = fmt.Errorf("there are %d guests already", maxGuests)
	ErrOff      = errors.New("the manager runs without an overlay")
)

// AddGuest lets a guest in. The same guest again keeps its address, and its gateway unless another one is named.
func (n *Network) AddGuest(name, key string, gateway messages.NodeID, now messages.Time) (*cluster.Guest, error) {
	if !n.Enabled() {
		return nil, ErrOff
	}
	if owner, taken := n.keys[key]; taken && owner != guestOwner(name) {
		return nil, fmt.Errorf("%w: that of %s", ErrGuestKey, owner)
	}
	old := n.st.Guests[name]
	if old == nil && len(n.st.Guests) >= maxGuests {
		return nil, ErrGuests
	}
	g := &cluster.Guest{Name: name, PublicKey: key, Since: now}
	if old != nil {
		g.Address, g.Since = old.Address, old.Since
		if n.st.Nodes[old.Gateway] != nil { // else another one is chosen
			gateway = cmp.Or(gateway, old.Gateway)
		}
	}
	var err error
	if g.Gateway, err = n.gateway(gateway, ""); err != nil {
		return nil, err
	}
	if old == nil {
		if g.Address, err = n.guestAddress(); err != nil {
			return nil, &ErrNoAddress{err}
		}
	} else {
		n.guestChanged(old)
	}
	n.forgetKey(guestOwner(name))
	n.setKey(key, guestOwner(name))
	n.st.PutGuest(g)
	n.guestChanged(g)
	return g, nil
}

// guestChanged says that the node that lets a guest in, and its peers, are to be told anew.
func (n *Network) guestChanged(g *cluster.Guest) {
	n.changed(g.Gateway)
	n.configs[g.Gateway], n.whole = true, true
}

// gateway checks the node that shall let a guest in, or chooses one other than not: it is online, it says where it is reached, and it has the fewest guests.
func (n *Network) gateway(named, not messages.NodeID) (messages.NodeID, error) {
	if named != "" {
		node := n.st.Nodes[named]
		if node == nil {
			return "", fmt.Errorf("%w: there is no node %s", ErrGateway, named)
		}
		if reason, up := n.Up(node); !up {
			return "", fmt.Errorf("%w: %s is not part of the network: %s", ErrGateway, named, reason)
		}
		return named, nil
	}
	guests := map[messages.NodeID]int{}
	for _, g := range n.st.Guests {
		guests[g.Gateway]++
	}
	var best *cluster.Node
	for _, id := range slices.Sorted(maps.Keys(n.st.Nodes)) {
		node := n.st.Nodes[id]
		if _, up := n.Up(node); !up || id == not || !node.Online || node.RelayOnly || len(node.Info.Overlay.Endpoints) == 0 {
			continue
		}
		if best == nil || guests[id] < guests[best.ID] {
			best = node
		}
	}
	if best == nil {
		return "", fmt.Errorf("%w: none is online that says where its tunnel is reached", ErrGateway)
	}
	return best.ID, nil
}

// guestAddress finds a free address in the blocks of guests, or in a further one.
func (n *Network) guestAddress() (netip.Addr, error) {
	used := map[netip.Addr]bool{}
	blocks := map[netip.Prefix]bool{}
	for _, g := range n.st.Guests {
		used[g.Address] = true
		if owner, leased := n.leases.Owner(g.Address); leased && owner == guestsOwner { // one that is not may be of the network before
			blocks[netip.PrefixFrom(g.Address, ipam.BlockBits).Masked()] = true
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(blocks), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) {
		if a, ok := n.guestIn(p, used); ok {
			return a, nil
		}
	}
	p, err := n.leases.Block(guestsOwner)
	if err != nil {
		return netip.Addr{}, err
	}
	a, _ := n.guestIn(p, used)
	return a, nil
}

func (n *Network) guestIn(p netip.Prefix, used map[netip.Addr]bool) (netip.Addr, bool) {
	b, err := ipam.BlockOf(p)
	if err != nil {
		return netip.Addr{}, false
	}
	a, ok := b.Next(n.lastIP[p], func(a netip.Addr) bool { return used[a] })
	if ok {
		n.lastIP[p] = a
	}
	return a, ok
}

// RemoveGuest ends a guest. Its block goes back with the last guest in it.
func (n *Network) RemoveGuest(g *cluster.Guest) {
	n.forgetKey(guestOwner(g.Name))
	n.st.DropGuest(g)
	n.guestChanged(g)
	block := netip.PrefixFrom(g.Address, ipam.BlockBits).Masked()
	for _, other := range n.st.Guests {
		if block.Contains(other.Address) {
			return
		}
	}
	if n.leases != nil {
		n.leases.ReturnBlock(block)
		delete(n.lastIP, block)
	}
}

// restoreGuest takes up a guest's address and key. One whose address is not of this network any more gets another.
func (n *Network) restoreGuest(g *cluster.Guest) {
	n.setKey(g.PublicKey, guestOwner(g.Name))
	err := ipam.ErrForeign
	if g.Address.Is4() {
		err = n.leases.TakeBlock(guestsOwner, netip.PrefixFrom(g.Address, ipam.BlockBits).Masked())
	}
	if err == nil {
		return
	}
	n.log.Warn("address of a guest given up", "guest", g.Name, "err", err)
	n.st.DropGuest(g)
	if g.Address, err = n.guestAddress(); err == nil {
		n.st.PutGuest(g)
	}
}

// guestsOf returns the guests that a node lets in, by name.
func (n *Network) guestsOf(id messages.NodeID) []*cluster.Guest {
	var all []*cluster.Guest
	for _, g := range n.st.Guests {
		if g.Gateway == id {
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b *cluster.Guest) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (n *Network) guest(g *cluster.Guest) messages.Guest {
	out := messages.Guest{Guest: g.Name, PublicKey: g.PublicKey, Address: g.Address.String(), Gateway: g.Gateway, Since: g.Since}
	if n.Enabled() {
		out.Address6 = n.cfg.Plan.Map(g.Address).String()
	}
	return out
}

// GuestConfig returns what a guest's client needs.
func (n *Network) GuestConfig(g *cluster.Guest) *messages.GuestConfig {
	c := &messages.GuestConfig{Guest: n.guest(g), Allowed: []string{n.cfg.Plan.V4.String(), n.cfg.Plan.V6.String()}}
	node := n.st.Nodes[g.Gateway]
	if node == nil || node.Info.Overlay == nil || len(node.Blocks) == 0 {
		return c
	}
	c.GatewayKey, c.Endpoints = node.Info.Overlay.PublicKey, node.Info.Overlay.Endpoints
	if b, err := ipam.BlockOf(node.Blocks[0]); err == nil {
		c.DNS = []string{b.Gateway().String(), n.cfg.Plan.Map(b.Gateway()).String()}
	}
	return c
}
