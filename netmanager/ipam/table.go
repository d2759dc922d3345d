package ipam

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// Errors of leases.
var (
	ErrExhausted = errors.New("no address is left")
	ErrTaken     = errors.New("leased to somebody else")
	ErrForeign   = errors.New("not of this network")
)

// Table holds what is leased of a Plan, and to whom. It is not safe for concurrent use.
type Table struct {
	plan      Plan
	blocks    pool
	addresses pool
}

// NewTable returns a Table in which nothing is leased.
func NewTable(p Plan) *Table {
	return &Table{plan: p, blocks: newPool(base(p.V4), 32-BlockBits, 3*p.quarter()>>(32-BlockBits)),
		addresses: newPool(base(p.Services()), 0, p.quarter())}
}

// Block leases a block.
func (t *Table) Block(owner string) (netip.Prefix, error) {
	n, err := t.blocks.lease(owner)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("block for %s: %w", owner, err)
	}
	return netip.PrefixFrom(number(n), BlockBits), nil
}

// TakeBlock leases the given block, as it was leased before a restart. Taking it again for the same owner does nothing.
func (t *Table) TakeBlock(owner string, p netip.Prefix) error {
	if _, err := BlockOf(p); err != nil {
		return err
	}
	return named(p, t.blocks.take(owner, base(p)))
}

// ReturnBlock gives a block back. One that is not leased is left alone.
func (t *Table) ReturnBlock(p netip.Prefix) {
	if _, err := BlockOf(p); err == nil {
		t.blocks.give(base(p))
	}
}

// Address leases a service address.
func (t *Table) Address(owner string) (netip.Addr, error) {
	n, err := t.addresses.lease(owner)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("service address for %s: %w", owner, err)
	}
	return number(n), nil
}

// TakeAddress leases the given service address, as it was leased before a restart.
func (t *Table) TakeAddress(owner string, a netip.Addr) error {
	if !a.Is4() {
		return named(a, ErrForeign)
	}
	return named(a, t.addresses.take(owner, word(a)))
}

// ReturnAddress gives a service address back. One that is not leased is left alone.
func (t *Table) ReturnAddress(a netip.Addr) {
	if a.Is4() {
		t.addresses.give(word(a))
	}
}

// Owner returns who has leased the service address, or the block that holds the address.
func (t *Table) Owner(a netip.Addr) (string, bool) {
	if !a.Is4() || !t.plan.V4.Contains(a) {
		return "", false
	}
	if owner, ok := t.addresses.owner(word(a)); ok {
		return owner, true
	}
	return t.blocks.owner(word(a))
}

// Leased returns how many blocks and service addresses are leased.
func (t *Table) Leased() (blocks, addresses int) {
	return len(t.blocks.owners), len(t.addresses.owners)
}

// Free returns how many blocks and service addresses are left.
func (t *Table) Free() (blocks, addresses int) {
	return int(t.blocks.size) - len(t.blocks.owners), int(t.addresses.size) - len(t.addresses.owners)
}

func named(what fmt.Stringer, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// pool leases units of 2^shift addresses from first on. The search goes on behind the last lease and comes round, so that what was given
// back rests as long as there is anything else.
type pool struct {
	first  uint32
	shift  int
	size   uint32
	next   uint32
	owners map[uint32]string // by index
	used   []uint64          // a bit for each unit
	full   []uint64          // a bit for each word of used that has none left
}

func newPool(first uint32, shift int, size uint32) pool {
	words := (size + 63) / 64
	p := pool{first: first, shift: shift, size: size, owners: map[uint32]string{}, used: make([]uint64, words), full: make([]uint64, (words+63)/64)}
	for i := size; i < words*64; i++ { // what is beyond the end is never free
		p.mark(i)
	}
	for w := words; w < uint32(len(p.full))*64; w++ {
		p.full[w/64] |= 1 << (w % 64)
	}
	return p
}

func (p *pool) mark(i uint32) {
	w := i / 64
	p.used[w] |= 1 << (i % 64)
	if p.used[w] == ^uint64(0) {
		p.full[w/64] |= 1 << (w % 64)
	}
}

func (p *pool) lease(owner string) (uint32, error) {
	i, ok := p.free(p.next)
	if !ok {
		i, ok = p.free(0)
	}
	if !ok {
		return 0, ErrExhausted
	}
	p.set(i, owner)
	return p.first + i<<p.shift, nil
}

func (p *pool) set(i uint32, owner string) {
	p.owners[i] = owner
	p.mark(i)
	p.next = (i + 1) % p.size
}

// free returns the first unit from i on that is not leased. It looks at one word of units, then at words of words.
func (p *pool) free(i uint32) (uint32, bool) {
	w := i / 64
	if left := ^p.used[w] & (^uint64(0) << (i % 64)); left != 0 {
		return w*64 + uint32(bits.TrailingZeros64(left)), true
	}
	for w++; w < uint32(len(p.used)); w = (w/64 + 1) * 64 {
		if left := ^p.full[w/64] & (^uint64(0) << (w % 64)); left != 0 {
			w = w/64*64 + uint32(bits.TrailingZeros64(left))
			return w*64 + uint32(bits.TrailingZeros64(^p.used[w])), true
		}
	}
	return 0, false
}

// index returns the number of the unit that holds an address.
func (p *pool) index(address uint32) (uint32, bool) {
	i := (address - p.first) >> p.shift
	return i, address >= p.first && i < p.size
}

func (p *pool) take(owner string, address uint32) error {
	i, ok := p.index(address)
	if !ok {
		return ErrForeign
	}
	if known, taken := p.owners[i]; taken {
		if known != owner {
			return fmt.Errorf("%w: %s", ErrTaken, known)
		}
		return nil
	}
	next := p.next
	p.set(i, owner)
	p.next = max(next, p.next) // after a restart, behind all that is leased: the order of taking does not matter
	return nil
}

func (p *pool) give(address uint32) {
	i, ok := p.index(address)
	if _, taken := p.owners[i]; !ok || !taken {
		return
	}
	delete(p.owners, i)
	p.used[i/64] &^= 1 << (i % 64)
	p.full[i/64/64] &^= 1 << (i / 64 % 64)
}

func (p *pool) owner(address uint32) (string, bool) {
	i, ok := p.index(address)
	if !ok {
		return "", false
	}
	owner, taken := p.owners[i]
	return owner, taken
}
