package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// errFull says that a job more does not fit.
var errFull = errors.New("all addresses of this node are in use")

// lease is what one instance holds of the node's network.
type lease struct {
	Instance messages.InstanceID `json:"instance"`
	Address  netip.Addr          `json:"address"`
	Ports    []messages.Port     `json:"ports,omitempty"`
}

// book holds the leases of a node's blocks. It is not safe for concurrent use.
type book struct {
	blocks []ipam.Block
	leases map[messages.InstanceID]lease
	last   netip.Addr
}

func newBook(kept []lease) *book {
	b := &book{leases: map[messages.InstanceID]lease{}}
	for _, l := range kept {
		b.leases[l.Instance] = l
		b.last = l.Address
	}
	return b
}

// list returns the leases in the order of their instances.
func (b *book) list() []lease {
	list := make([]lease, 0, len(b.leases))
	for _, id := range slices.Sorted(maps.Keys(b.leases)) {
		list = append(list, b.leases[id])
	}
	return list
}

// setBlocks says which blocks are the node's. Leases outside of them are dropped and returned: their addresses are somebody else's.
func (b *book) setBlocks(blocks []ipam.Block) (dropped []lease) {
	b.blocks = blocks
	for id, l := range b.leases {
		if !b.holds(l.Address) {
			dropped = append(dropped, l)
			delete(b.leases, id)
		}
	}
	return dropped
}

// jobs returns the jobs whose instances hold a lease, in the order of their names.
func (b *book) jobs() []messages.JobName {
	jobs := map[messages.JobName]bool{}
	for id := range b.leases {
		if job, _, _, err := id.Split(); err == nil {
			jobs[job] = true
		}
	}
	return slices.Sorted(maps.Keys(jobs))
}

func (b *book) holds(a netip.Addr) bool {
	return slices.ContainsFunc(b.blocks, func(k ipam.Block) bool { return k.Prefix().Contains(a) })
}

// take returns the lease of an instance, a new one where it has none.
func (b *book) take(id messages.InstanceID) (l lease, fresh bool, err error) {
	if l, ok := b.leases[id]; ok {
		return l, false, nil
	}
	used := make(map[netip.Addr]bool, len(b.leases))
	for _, l := range b.leases {
		used[l.Address] = true
	}
	// An address rests before it is given out again: the search goes on behind the last one, also into the next block.
	from := max(0, slices.IndexFunc(b.blocks, func(k ipam.Block) bool { return k.Prefix().Contains(b.last) }))
	for i := range b.blocks {
		a, ok := b.blocks[(from+i)%len(b.blocks)].Next(b.last, func(a netip.Addr) bool { return used[a] })
		if ok {
			l = lease{Instance: id, Address: a}
			b.leases[id], b.last = l, a
			return l, true, nil
		}
	}
	return lease{}, false, fmt.Errorf("%w: %d instances hold one", errFull, len(used))
}

func (b *book) drop(id messages.InstanceID) (lease, bool) {
	l, ok := b.leases[id]
	delete(b.leases, id)
	return l, ok
}
