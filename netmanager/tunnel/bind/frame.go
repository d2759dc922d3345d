package bind

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/chacha20poly1305"

	"skerry.internal/netmanager/relay"
)

// A probe is a datagram of ours between WireGuard's: it asks whether a way works, answers that, or asks the other side to try too. It is
//
//	magic (4) | tag (8) | nonce (24) | sealed with XChaCha20-Poly1305: kind, flags, boot, generation, transaction, body
//
// The key comes from both nodes' static keys, so that only the two can make or read one. The tag names the sender to the one receiver that
// knows the pair; it tells others neither key.
const (
	magic       = "\xd5SkP" // no type of WireGuard's, which begin with a small number, and no STUN, which begins with two zero bits
	tagSize     = 8
	headSize    = len(magic) + tagSize + chacha20poly1305.NonceSizeX
	frameExtra  = headSize + chacha20poly1305.Overhead
	fixedSize   = 2 + 8 + 4 + 8 // kind, flags, boot, generation, transaction
	addrSize    = 16 + 2
	maxOffered  = 16                    // endpoints in a punch; more than a board has
	minPingSize = fixedSize + addrSize  // so that no answer is larger than its question
	maxFrame    = 9000                  // the largest MTU that is looked for
	maxPlain    = maxFrame - frameExtra // of a probe's insides
)

const flagSession = 1

type kind byte

const (
	ping  kind = 1 // is this way open? Padded when it asks for a size.
	pong  kind = 2 // yes; and from where your question came
	punch kind = 3 // I try to reach you: these are my endpoints, try them now. Through the relay only.
)

// message is what is inside a probe.
type message struct {
	kind    kind
	session bool   // the sender holds a WireGuard session with the receiver
	boot    uint64 // by chance, when the sender began to run
	gen     uint32 // counts the changes of the sender's addresses
	tx      uint64 // a pong repeats that of its ping
	seen    netip.AddrPort
	offer   []netip.AddrPort
	pad     int // bytes after the rest of a ping
}

var errFrame = errors.New("not a probe")

// isFrame says whether a datagram claims to be a probe.
func isFrame(b []byte) bool { return len(b) >= frameExtra && string(b[:len(magic)]) == magic }

// box seals and opens the probes between this node and one peer.
type box struct {
	aead   cipher.AEAD
	ours   [tagSize]byte // on what we send
	theirs [tagSize]byte // on what they send
}

func newBox(private, public, peer relay.Key) (box, error) {
	secret, err := private.Shared(peer)
	if err != nil {
		return box{}, err
	}
	derive := func(info string, n int) ([]byte, error) { return hkdf.Key(sha256.New, secret, nil, info, n) }
	key, errKey := derive("skerry probe key", chacha20poly1305.KeySize)
	ours, errOurs := derive("skerry probe tag"+string(public[:]), tagSize)
	theirs, errTheirs := derive("skerry probe tag"+string(peer[:]), tagSize)
	if err := errors.Join(errKey, errOurs, errTheirs); err != nil {
		return box{}, fmt.Errorf("derive: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return box{}, fmt.Errorf("cipher: %w", err)
	}
	return box{aead: aead, ours: [tagSize]byte(ours), theirs: [tagSize]byte(theirs)}, nil
}

// seal returns m as a datagram.
func (x *box) seal(m message) []byte {
	plain := m.append(make([]byte, 0, minPingSize+len(m.offer)*addrSize+1+m.pad))
	frame := make([]byte, headSize, len(plain)+frameExtra)
	copy(frame, magic)
	copy(frame[len(magic):], x.ours[:])
	_, _ = rand.Read(frame[len(magic)+tagSize:]) // never fails
	return x.aead.Seal(frame, frame[len(magic)+tagSize:headSize], plain, frame[:len(magic)+tagSize])
}

// open returns the message in a datagram for which isFrame is true.
func (x *box) open(frame []byte) (message, error) {
	if len(frame) > maxFrame || !bytes.Equal(frame[len(magic):len(magic)+tagSize], x.theirs[:]) {
		return message{}, errFrame
	}
	plain, err := x.aead.Open(nil, frame[len(magic)+tagSize:headSize], frame[headSize:], frame[:len(magic)+tagSize])
	if err != nil {
		return message{}, errFrame
	}
	return parseMessage(plain)
}

func (m message) append(b []byte) []byte {
	b = append(b, byte(m.kind), 0)
	if m.session {
		b[len(b)-1] = flagSession
	}
	b = binary.BigEndian.AppendUint64(b, m.boot)
	b = binary.BigEndian.AppendUint32(b, m.gen)
	b = binary.BigEndian.AppendUint64(b, m.tx)
	switch m.kind {
	case ping:
		b = append(b, make([]byte, addrSize+m.pad)...)
	case pong:
		b = appendAddr(b, m.seen)
	case punch:
		offer := m.offer[:min(len(m.offer), maxOffered)]
		b = append(b, byte(len(offer)))
		for _, a := range offer {
			b = appendAddr(b, a)
		}
	}
	return b
}

func parseMessage(b []byte) (message, error) {
	if len(b) < fixedSize {
		return message{}, errFrame
	}
	m := message{
		kind:    kind(b[0]),
		session: b[1]&flagSession != 0,
		boot:    binary.BigEndian.Uint64(b[2:]),
		gen:     binary.BigEndian.Uint32(b[10:]),
		tx:      binary.BigEndian.Uint64(b[14:]),
	}
	b = b[fixedSize:]
	switch m.kind {
	case ping:
		if len(b) < addrSize {
			return message{}, errFrame
		}
		m.pad = len(b) - addrSize
	case pong:
		if len(b) != addrSize {
			return message{}, errFrame
		}
		m.seen = parseAddr(b)
	case punch:
		if len(b) < 1 || int(b[0]) > maxOffered || len(b) != 1+int(b[0])*addrSize {
			return message{}, errFrame
		}
		for b = b[1:]; len(b) > 0; b = b[addrSize:] {
			m.offer = append(m.offer, parseAddr(b))
		}
	default:
		return message{}, errFrame
	}
	return m, nil
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	raw := ip.As16()
	return binary.BigEndian.AppendUint16(append(b, raw[:]...), a.Port())
}

func parseAddr(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), binary.BigEndian.Uint16(b[16:]))
}
