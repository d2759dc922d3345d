package service

// flat is a map from addresses to small numbers without a pointer in it, so that a table of 100,000 services costs the garbage collector
// nothing. It is filled once and then only read. The unspecified address is never in it.
type flat struct {
	keys []addr
	refs []uint32 // beside the keys: together they would be padded
}

func newFlat(n int) flat {
	size := n + n/4 + 8 // a fifth is free, so that searches are short
	return flat{make([]addr, size), make([]uint32, size)}
}

// place is where a search for a begins. Addresses come in ranges: the multiplication spreads them.
func (f *flat) place(a addr) int {
	return int(mix(a.lo^0x9e3779b97f4a7c15, a.hi^0xd6e8feb86659fd93) >> 32 * uint64(len(f.keys)) >> 32)
}

// find returns where a is, or the free place for it.
func (f *flat) find(a addr) int {
	for at := f.place(a); ; at++ {
		if at == len(f.keys) {
			at = 0
		}
		if k := &f.keys[at]; *k == a || *k == (addr{}) {
			return at
		}
	}
}

// put keeps what is there already.
func (f *flat) put(a addr, ref uint32) {
	if a == (addr{}) {
		return
	}
	if at := f.find(a); f.keys[at] != a {
		f.keys[at], f.refs[at] = a, ref
	}
}

func (f *flat) get(a addr) (uint32, bool) {
	if a == (addr{}) {
		return 0, false
	}
	at := f.find(a)
	return f.refs[at], f.keys[at] == a
}
