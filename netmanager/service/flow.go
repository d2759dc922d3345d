package service

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"unsafe"
)

// flow is one slot of the flow memory: plain numbers, no pointers, so that it can lie in memory shared with a file. See the package comment
// for its ends. The order of the fields is the format of that memory; a change of it wants a new magic.
type flow struct {
	local, seen, real   addr
	lport, sport        uint16 // the ports of local and seen
	outPort, realPort   uint16 // the same on the wire: of local and real
	lastOut, lastIn     uint32 // seconds of the Device's clock, 0: never
	out, in             uint64 // packets
	addresses, numbers  uint16 // the deltas of the way out
	rev                 uint32 // of the table that the flow was checked with
	asked               uint32 // when the path MTU was asked for
	waiting             uint32 // since when an instance that is gone has not answered
	mtu                 uint16
	proto, state, where uint8
	used                uint8
	told                uint16 // the path MTU of IPv6 by those beyond the tunnel; 0: they have said nothing
	sent, received      uint64 // bytes since they were last asked for
	_                   [8]byte
}

const flowSize = 128

var _ [flowSize]byte = [unsafe.Sizeof(flow{})]byte{}

// What a flow's state remembers.
const (
	finOut = 1 << iota
	finIn
	reset
	served // made on the way in: the container of this node is the server
	absent // the table no longer has its instance
)

// Where the real end is, as far as that is not behind the tunnel.
const (
	atPeer  = iota
	atHome  // a container of this node
	atGuest // a guest whose tunnel ends here: its packets go out, but are rewritten here
)

// How long a flow is remembered without a packet, in seconds.
const (
	idleTCP    = 24 * 3600 // an idle connection is a good one; the room is bounded anyway
	idleClosed = 60        // after both FINs, for what is sent again
	idleReset  = 10
	idleOpen   = 120 // one way only: a SYN that nobody answers
	idleUDP    = 180
	idleEcho   = 30
	idleOther  = 600
	idleLeast  = idleReset // of all
)

// idle returns how long the flow may be silent.
func (f *flow) idle() uint32 {
	switch f.proto {
	case protoTCP:
		switch {
		case f.state&reset != 0:
			return idleReset
		case f.state&(finOut|finIn) == finOut|finIn:
			return idleClosed
		case f.out == 0 || f.in == 0:
			return idleOpen
		}
		return idleTCP
	case protoUDP:
		return idleUDP
	case protoICMP, protoICMP6:
		return idleEcho
	}
	return idleOther
}

func (f *flow) last() uint32 { return max(f.lastOut, f.lastIn) }

// closed says that the ends are through with the flow, or it was silent for too long.
func (f *flow) closed(now uint32) bool {
	return f.state&reset != 0 || f.state&(finOut|finIn) == finOut|finIn || f.expired(now)
}

// expired says that the flow was silent for too long.
func (f *flow) expired(now uint32) bool { return f.last()+f.idle() < now }

// changeOut returns what becomes of the packets of the flow on the way out, changeIn on the way in.
func (f *flow) changeOut() change {
	return change{f.local, f.real, f.outPort, f.realPort, f.addresses, f.numbers}
}

func (f *flow) changeIn() change {
	return change{f.seen, f.local, f.sport, f.lport, negated(f.addresses), negated(f.numbers)}
}

// settle computes the deltas from the ends.
func (f *flow) settle() {
	f.addresses = f.seen.delta(f.real)
	f.numbers = sum(deltaPort(f.lport, f.outPort), deltaPort(f.sport, f.realPort))
}

// shards is how many parts the flow table has, each with a lock of its own.
const shards = 64

// flows is the flow table. Both ends of a flow lie in one shard, chosen by what the inside and the wire have in common.
type flows struct {
	seed   [3]uint64
	opened atomic.Uint64
	forced atomic.Uint64
	back   func(offset, length int) error // see Options.Back
	shard  [shards]shard
}

// shard is a part of the flow table. An index entry is 16 bits of the hash and the number of the slot plus one; zero ends a search.
type shard struct {
	mu     sync.Mutex // guards everything below
	slots  []flow
	inside []uint32 // by local and seen
	wire   []uint32 // by local and real
	free   []uint16 // slots given back
	fresh  int      // slots from here on were never used
	mark   *uint16  // fresh as the flow memory has it, for the next process
	hand   int      // where the search for old flows goes on
	backed int      // slots that there is memory for
	_      [8]byte
}

func (t *flows) init(slots []flow, marks *[shards]uint16, seed [3]uint64) {
	t.seed = seed
	per := len(slots) / shards
	size := 1
	for size < 2*per {
		size *= 2
	}
	indexes := make([]uint32, 2*shards*size) // in one piece, so that it is fresh memory: what no flow needs is not touched
	for i := range t.shard {
		s := &t.shard[i]
		s.slots, s.mark = slots[i*per:(i+1)*per:(i+1)*per], &marks[i]
		s.inside, indexes = indexes[:size:size], indexes[size:]
		s.wire, indexes = indexes[:size:size], indexes[size:]
	}
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// golden is an odd number without a pattern in its bits.
const golden = 0x9e3779b97f4a7c15

// base is the part of a hash that is the same inside and on the wire, but for ports that were changed; it chooses the shard. It mixes twice: after once
// the ports that a client takes one after the other are evenly spaced, and for one seed in 64 they all come into a few shards.
func (t *flows) base(local addr, lport, sport uint16, proto uint8) uint64 {
	return mix(mix(local.lo^t.seed[0], local.hi^t.seed[1]^uint64(lport)<<48^uint64(sport)<<32^uint64(proto)<<24), golden)
}

func (t *flows) full(base uint64, peer addr) uint64 { return mix(base^peer.lo, peer.hi^t.seed[2]) }

func (t *flows) of(base uint64) *shard { return &t.shard[base>>8%shards] }

// find returns the slot whose packets look like that, inside or on the wire.
func (s *shard) findInside(h uint64, local, seen addr, lport, sport uint16, proto uint8) *flow {
	mask := uint64(len(s.inside) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		e := s.inside[at]
		if e == 0 {
			return nil
		}
		if uint16(e>>16) != uint16(h>>48) {
			continue
		}
		if f := &s.slots[e&0xffff-1]; f.lport == lport && f.sport == sport && f.proto == proto && f.local == local && f.seen == seen {
			return f
		}
	}
}

func (s *shard) findWire(h uint64, local, real addr, outPort, realPort uint16, proto uint8) *flow {
	mask := uint64(len(s.wire) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		e := s.wire[at]
		if e == 0 {
			return nil
		}
		if uint16(e>>16) != uint16(h>>48) {
			continue
		}
		if f := &s.slots[e&0xffff-1]; f.outPort == outPort && f.realPort == realPort && f.proto == proto && f.local == local && f.real == real {
			return f
		}
	}
}

func (t *flows) hashInside(f *flow) uint64 {
	return t.full(t.base(f.local, f.lport, f.sport, f.proto), f.seen)
}

func (t *flows) hashWire(f *flow) uint64 {
	return t.full(t.base(f.local, f.outPort, f.realPort, f.proto), f.real)
}

func put(index []uint32, h uint64, slot int) {
	mask := uint64(len(index) - 1)
	at := h & mask
	for index[at] != 0 {
		at = (at + 1) & mask
	}
	index[at] = uint32(h>>48)<<16 | uint32(slot+1)
}

// cut takes an entry out and moves those behind it up, so that no search ends too early.
func cut(index []uint32, h uint64, slot int, hash func(slot int) uint64) {
	mask := uint64(len(index) - 1)
	at := h & mask
	for index[at]&0xffff != uint32(slot+1) {
		if index[at] == 0 {
			return
		}
		at = (at + 1) & mask
	}
	hole := at
	for {
		at = (at + 1) & mask
		e := index[at]
		if e == 0 {
			break
		}
		home := hash(int(e&0xffff)-1) & mask
		if (at-home)&mask >= (at-hole)&mask {
			index[hole], hole = e, at
		}
	}
	index[hole] = 0
}

// remove forgets a flow of the shard.
func (t *flows) remove(s *shard, f *flow) {
	slot := int((uintptr(unsafe.Pointer(f)) - uintptr(unsafe.Pointer(&s.slots[0]))) / flowSize)
	cut(s.inside, t.hashInside(f), slot, func(i int) uint64 { return t.hashInside(&s.slots[i]) })
	cut(s.wire, t.hashWire(f), slot, func(i int) uint64 { return t.hashWire(&s.slots[i]) })
	f.used = 0
	s.free = append(s.free, uint16(slot))
}

// spare returns how well the table can do without the flow: its silence, and more when it is closed or was never answered.
func (f *flow) spare(now uint32) uint32 {
	silent := now - f.last() + 1
	switch {
	case f.closed(now):
		silent += idleTCP
	case f.in == 0 || f.out == 0:
		silent += idleTCP / 2
	}
	return silent
}

// looked is how many slots are looked at to find the one that was silent for longest, when there is no room.
const looked = 64

// room returns a slot for a new flow, nil where there is no memory for any. With every new flow a few old ones are looked at, so that what is over goes by itself.
func (t *flows) room(s *shard, now uint32) (*flow, int) {
	t.sweep(s, now, 2)
	if n := len(s.free); n > 0 {
		slot := int(s.free[n-1])
		s.free = s.free[:n-1]
		return &s.slots[slot], slot
	}
	if s.fresh < len(s.slots) && t.has(s, s.fresh+1) {
		s.fresh++
		*s.mark = uint16(s.fresh)
		return &s.slots[s.fresh-1], s.fresh - 1
	}
	if s.fresh == 0 {
		return nil, 0
	}
	oldest, most := s.hand, uint32(0)
	for range min(looked, s.fresh) {
		s.hand = (s.hand + 1) % s.fresh
		f := &s.slots[s.hand]
		if score := f.spare(now); score > most {
			oldest, most = s.hand, score
		}
	}
	t.forced.Add(1)
	t.remove(s, &s.slots[oldest])
	s.free = s.free[:len(s.free)-1]
	return &s.slots[oldest], oldest
}

// backedAtOnce is how many slots there is asked for memory for: a page.
const backedAtOnce = 4096 / flowSize

// has sees to it that there is memory for the first n slots of a shard, and says whether there is.
func (t *flows) has(s *shard, n int) bool {
	if n <= s.backed {
		return true
	}
	to := min((n+backedAtOnce-1)/backedAtOnce*backedAtOnce, len(s.slots))
	if t.back != nil {
		start := memoryHeader + int(uintptr(unsafe.Pointer(&s.slots[0]))-uintptr(unsafe.Pointer(&t.shard[0].slots[0])))
		if t.back(start+s.backed*flowSize, (to-s.backed)*flowSize) != nil {
			return false
		}
	}
	s.backed = to
	return true
}

// sweep forgets what was silent for too long among the next n slots.
func (t *flows) sweep(s *shard, now uint32, n int) {
	for range min(n, s.fresh) {
		if s.hand++; s.hand >= s.fresh {
			s.hand = 0
		}
		if f := &s.slots[s.hand]; f.used != 0 && f.expired(now) {
			t.remove(s, f)
		}
	}
}

// insert remembers a flow that is not there yet on the side where it was made (out: inside, otherwise on the wire). Where the other side is taken
// by a living flow, the port that the flow's maker chose is changed there. It returns nil when there is no way.
func (t *flows) insert(s *shard, like *flow, made way, now uint32) *flow {
	if !t.part(s, like, made, now) {
		return nil
	}
	like.settle()
	f, slot := t.room(s, now)
	if f == nil {
		return nil
	}
	*f = *like
	f.used = 1
	put(s.inside, t.hashInside(f), slot)
	put(s.wire, t.hashWire(f), slot)
	t.opened.Add(1)
	return f
}

// way is a direction.
type way uint8

const (
	out way = iota
	in
)

// tries bounds the search for a free port; one in 64 falls into the same shard.
const tries = 8192

// part sees to it that the flow is alone on both sides.
func (t *flows) part(s *shard, like *flow, made way, now uint32) bool {
	other := func() *flow {
		if made == out {
			return s.findWire(t.hashWire(like), like.local, like.real, like.outPort, like.realPort, like.proto)
		}
		return s.findInside(t.hashInside(like), like.local, like.seen, like.lport, like.sport, like.proto)
	}
	// Ends that are the same on the wire could not be told apart: a container that dials itself from the port that it dials.
	same := func() bool { return like.local == like.real && like.outPort == like.realPort }
	taken := other()
	if taken == nil && !same() {
		return true
	}
	if taken != nil && (taken.closed(now) || like.lport == 0 && like.sport == 0) && !same() {
		t.remove(s, taken)
		return true
	}
	if like.lport == 0 && like.sport == 0 { // nothing to change: no ports
		return taken == nil
	}
	if like.proto == protoSCTP { // its checksum covers the ports, and is none that a change could be added to
		return false
	}
	port := &like.outPort
	switch {
	case made == in && like.sport != 0:
		port = &like.sport
	case made == in:
		port = &like.lport
	case like.outPort == 0:
		port = &like.realPort
	}
	for range tries {
		*port = 32768 + uint16(rand.Uint32N(28000))
		base := t.base(like.local, like.outPort, like.realPort, like.proto)
		if made == in {
			base = t.base(like.local, like.lport, like.sport, like.proto)
		}
		if t.of(base) == s && !same() && other() == nil {
			return true
		}
	}
	return false
}
