package service

import "sync"

// keptFragments bounds how many packets may be on their way in fragments; fragmentLife is how many seconds the later ones may take.
const (
	keptFragments = 1024
	fragmentLife  = 30
)

// fragments remembers what became of first fragments, for those that follow. It is off the fast path.
type fragments struct {
	mu    sync.Mutex // guards the rest
	known map[fragmentKey]fragmentFate
	ring  [keptFragments]fragmentKey // in the order of coming, so that the oldest makes room
	next  int
}

type fragmentKey struct {
	src, dst addr
	id       uint32
	proto    uint8
	way      way
}

type fragmentFate struct {
	change change
	until  uint32
	mtu    uint16 // on the way out, 0: not known
	where  uint8
}

func keyOf(w way, p *packet) fragmentKey {
	key := fragmentKey{src: p.src, dst: p.dst, id: p.fragment, proto: p.proto, way: w}
	if p.v6 { // there the fragments of a packet may name different headers
		key.proto = 0
	}
	return key
}

func (fs *fragments) remember(w way, p *packet, fate fragmentFate, now uint32) {
	key := keyOf(w, p)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.known == nil {
		fs.known = make(map[fragmentKey]fragmentFate, keptFragments)
	}
	if _, ok := fs.known[key]; !ok {
		delete(fs.known, fs.ring[fs.next])
		fs.ring[fs.next] = key
		fs.next = (fs.next + 1) % keptFragments
	}
	fate.until = now + fragmentLife
	fs.known[key] = fate
}

func (fs *fragments) recall(w way, p *packet, now uint32) (fragmentFate, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fate, ok := fs.known[keyOf(w, p)]
	return fate, ok && fate.until >= now
}
