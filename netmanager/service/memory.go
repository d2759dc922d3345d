package service

import (
	"encoding/binary"
	"math/rand/v2"
	"unsafe"
)

// The flow memory begins with a magic, the number of slots, the seed of the hashes, and for each shard how many of its slots were ever used; the
// slots follow. What was never used is not even read, so that a file with holes takes only the memory that the flows need.
const (
	memoryMagic  = "skerryf4"
	memoryMarks  = 40
	memoryHeader = 256
	defaultFlows = 1 << 16
	mostFlows    = shards << 15 // a slot's number and one must fit into 16 bits of an index
)

// MemorySize returns how many bytes Options.Memory takes for that many flows; 0: the default.
func MemorySize(flows int) int { return memoryHeader + slotCount(flows)*flowSize }

// slotCount returns a number of flows that every shard gets the same part of.
func slotCount(flows int) int {
	if flows <= 0 {
		flows = defaultFlows
	}
	return (min(flows, mostFlows) + shards - 1) / shards * shards
}

// open sets up the flow table in memory, or in memory of its own when that is nil or too small, and takes up the flows that are in it.
func (t *flows) open(memory []byte, back func(offset, length int) error, want int, now uint32) {
	count := slotCount(want)
	if len(memory) < MemorySize(want) || back != nil && back(0, memoryHeader) != nil || uintptr(unsafe.Pointer(unsafe.SliceData(memory)))%8 != 0 {
		t.init(make([]flow, count), new([shards]uint16), randomSeed())
		return
	}
	t.back = back
	marks := (*[shards]uint16)(unsafe.Pointer(&memory[memoryMarks]))
	slots := unsafe.Slice((*flow)(unsafe.Pointer(&memory[memoryHeader])), count)
	if string(memory[:8]) != memoryMagic || binary.NativeEndian.Uint64(memory[8:]) != uint64(count) {
		clear(memory[:memoryHeader])
		seed := randomSeed()
		copy(memory, memoryMagic)
		binary.NativeEndian.PutUint64(memory[8:], uint64(count))
		for i, v := range seed {
			binary.NativeEndian.PutUint64(memory[16+8*i:], v)
		}
		t.init(slots, marks, seed)
		return
	}
	var seed [3]uint64
	for i := range seed {
		seed[i] = binary.NativeEndian.Uint64(memory[16+8*i:])
	}
	t.init(slots, marks, seed)
	for i := range t.shard {
		t.adopt(&t.shard[i], now)
	}
}

func randomSeed() [3]uint64 {
	return [3]uint64{rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1}
}

// adopt takes up the flows of a former process. What does not make sense, such as one that was being written when it died, is cleared.
func (t *flows) adopt(s *shard, now uint32) {
	if s.fresh = min(int(*s.mark), len(s.slots)); !t.has(s, s.fresh) {
		s.fresh = 0
	}
	for i := range s.fresh {
		f := &s.slots[i]
		if f.used == 0 {
			continue
		}
		if !t.sound(s, f) {
			*f = flow{}
			continue
		}
		f.settle()
		f.rev, f.asked, f.waiting = 0, 0, 0
		if f.lastOut != 0 {
			f.lastOut = now
		}
		if f.lastIn != 0 {
			f.lastIn = now
		}
		put(s.inside, t.hashInside(f), i)
		put(s.wire, t.hashWire(f), i)
	}
	for i := range s.fresh {
		if s.slots[i].used == 0 {
			s.free = append(s.free, uint16(i))
		}
	}
}

func (t *flows) sound(s *shard, f *flow) bool {
	if f.used != 1 || f.where > atGuest || f.local == (addr{}) || f.local.is4() != f.seen.is4() || f.local.is4() != f.real.is4() {
		return false
	}
	return t.of(t.base(f.local, f.lport, f.sport, f.proto)) == s && t.of(t.base(f.local, f.outPort, f.realPort, f.proto)) == s &&
		s.findInside(t.hashInside(f), f.local, f.seen, f.lport, f.sport, f.proto) == nil &&
		s.findWire(t.hashWire(f), f.local, f.real, f.outPort, f.realPort, f.proto) == nil
}
