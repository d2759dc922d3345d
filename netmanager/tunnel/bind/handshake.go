package bind

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"time"

	"skerry.internal/netmanager/relay"
)

// WireGuard's messages of a handshake, by their first byte and length.
const (
	initiation       = 1
	initiationLength = 148
	response         = 2
	responseLength   = 92
	macLength        = 16 // of the second one, at the end; zero where no cookie was asked for
)

const (
	copiesKept = 64          // messages among which a further copy is known
	digesting  = time.Second // that WireGuard may take over an answer, on a machine that has other things to do
)

// handshakes keeps the messages of a handshake apart. WireGuard works on several at once and looks away in between, so that two that belong to the same
// peer can make a session of halves, which neither side knows for one until it has been silent for 15 s. That happens where a message goes both ways, by the
// relay and straight, and where a handshake is begun anew while the answer to the last one is being worked on.
type handshakes struct {
	mu     sync.Mutex         // guards the rest, and asked and answered of the peers
	begun  map[uint32]*Peer   // by the number of the last initiation to each
	copies [copiesKept]uint64 // hashes of the last messages that came in
	next   int                // the oldest of them
	seed   maphash.Seed
}

// sent notes an initiation. The answer to the one before it is nobody's from now on, for WireGuard as well.
func (b *Bind) sent(p *Peer, packet []byte) {
	if packet[0] != initiation || len(packet) != initiationLength {
		return
	}
	h := &b.handshakes
	h.mu.Lock()
	defer h.mu.Unlock()
	if b.table.Load().byKey[p.key] != p {
		return // it has been taken away, and nobody would forget it again
	}
	h.endLocked(p)
	p.asked, p.answered = binary.LittleEndian.Uint32(packet[4:]), time.Time{}
	h.begun[p.asked] = p
}

func (h *handshakes) endLocked(p *Peer) {
	if h.begun[p.asked] == p {
		delete(h.begun, p.asked)
	}
}

// end forgets a peer.
func (h *handshakes) end(p *Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endLocked(p)
}

// pass says whether WireGuard shall have a packet: a message of a handshake once, and an answer only to the last initiation. What passes must reach
// WireGuard. (Where its queue is full it is lost all the same, and so is the handshake, until it is repeated.)
func (h *handshakes) pass(packet []byte) bool {
	switch {
	case packet[0] == initiation && len(packet) == initiationLength, packet[0] == response && len(packet) == responseLength:
	default:
		return packet[0] != initiation && packet[0] != response
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if packet[0] == response {
		p := h.begun[binary.LittleEndian.Uint32(packet[8:])]
		if p == nil {
			return false
		}
		if p.answered.IsZero() { // not of a later one, or somebody who saw the number could hold off the next handshake for good
			p.answered = time.Now()
		}
	}
	if [macLength]byte(packet[len(packet)-macLength:]) != [macLength]byte{} {
		return true // it proves where it comes from to a peer that is busy, which is the way of one copy and not of the other
	}
	sum := maphash.Bytes(h.seed, packet)
	for _, known := range h.copies {
		if known == sum {
			return false
		}
	}
	h.copies[h.next] = sum
	h.next = (h.next + 1) % copiesKept
	return true
}

// Renounce makes an answer to the last initiation to a peer be nobody's, so that another one can be sent. It returns false where an answer has come in
// already: WireGuard is about to have a session.
func (b *Bind) Renounce(key relay.Key) bool {
	p := b.table.Load().byKey[key]
	if p == nil {
		return true
	}
	h := &b.handshakes
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(p.answered) < digesting {
		return false
	}
	h.endLocked(p)
	return true
}
