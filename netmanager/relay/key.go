package relay

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

// Key is a Curve25519 key, private or public; a node's public key is its identity in the overlay. Its text form is base64, as in WireGuard's
// own files.
type Key [32]byte

// GenerateKey returns a new private key.
func GenerateKey() (Key, error) {
	var k Key
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("random key: %w", err)
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// ParseKey reads the text form.
func ParseKey(s string) (Key, error) {
	var k Key
	return k, k.UnmarshalText([]byte(s))
}

// Public returns the public key of a private one.
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{} // only for a wrong length, which the type rules out
	}
	return Key(private.PublicKey().Bytes())
}

// IsZero says whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// Shares says whether a secret can be shared with the public key: not with the few points of small order, zero among them, which are nobody's.
func (k Key) Shares() bool {
	_, err := Key{}.Shared(k) // every private key shares zero with such a point
	return err == nil
}

// String returns the text form.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns the text form.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the text form.
func (k *Key) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if len(raw) != len(k) {
		return fmt.Errorf("key of %d bytes, want %d", len(raw), len(k))
	}
	copy(k[:], raw)
	return nil
}

// Shared returns the secret that the holders of the two private keys have in common.
func (k Key) Shared(public Key) ([]byte, error) {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	remote, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	secret, err := private.ECDH(remote)
	if err != nil {
		return nil, fmt.Errorf("shared secret: %w", err)
	}
	return secret, nil
}
