package relay

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
)

// A stream begins with the relay's question, a fresh public key. The node answers with its own public key and a code that only the holder
// of its private key can compute from the question. The relay says yes with one byte, or ends the stream.
const (
	proofSize  = sha256.Size
	answerSize = 32 + proofSize
	accepted   = 1
	refused    = 0
)

func proof(secret []byte, question, node Key) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "skerry relay proof", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(question[:])
	mac.Write(node[:])
	return mac.Sum(nil), nil
}

// answer returns what a node answers.
func answer(private, question Key) ([]byte, error) {
	secret, err := private.Shared(question)
	if err != nil {
		return nil, err
	}
	node := private.Public()
	code, err := proof(secret, question, node)
	if err != nil {
		return nil, err
	}
	return append(node[:], code...), nil
}

// verify returns the key of the node that answered the question whose private half is given.
func verify(private Key, given []byte) (Key, error) {
	if len(given) != answerSize {
		return Key{}, fmt.Errorf("answer of %d bytes", len(given))
	}
	node := Key(given)
	secret, err := private.Shared(node)
	if err != nil {
		return Key{}, err
	}
	want, err := proof(secret, private.Public(), node)
	if err != nil {
		return Key{}, err
	}
	if !hmac.Equal(want, given[32:]) {
		return Key{}, fmt.Errorf("node %s: it does not hold that key", node)
	}
	return node, nil
}

// readKey reads 32 bytes.
func readKey(r io.Reader) (Key, error) {
	var k Key
	_, err := io.ReadFull(r, k[:])
	return k, err
}
