package ipam

import (
	"fmt"
	"net/netip"
)

// Block is the addresses of one node, or of guests.
type Block struct {
	prefix netip.Prefix
}

// BlockOf returns the block of a prefix, as a manager has leased it.
func BlockOf(p netip.Prefix) (Block, error) {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() != BlockBits || p != p.Masked() {
		return Block{}, fmt.Errorf("block %s: want an IPv4 prefix of /%d", p, BlockBits)
	}
	return Block{p}, nil
}

// Prefix returns the block's prefix.
func (b Block) Prefix() netip.Prefix { return b.prefix }

// Gateway returns the address of the node itself. It is used in a node's first block only, and kept free in all.
func (b Block) Gateway() netip.Addr { return number(base(b.prefix) + 1) }

// Size is how many containers a block has addresses for.
const Size = 1<<(32-BlockBits) - 3

// Next returns an address that is not in use: the first one behind last, going round, so that an address that was given back rests
// before somebody else gets it. The zero last begins at the beginning. It reports false where all are in use.
func (b Block) Next(last netip.Addr, used func(netip.Addr) bool) (netip.Addr, bool) {
	from := uint32(0)
	if b.prefix.Contains(last) {
		if at := word(last) - base(b.prefix); at >= 2 && at < 2+Size {
			from = at - 1 // the one behind it, counted from the first container
		}
	}
	for i := range uint32(Size) {
		a := number(base(b.prefix) + 2 + (from+i)%Size)
		if !used(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
