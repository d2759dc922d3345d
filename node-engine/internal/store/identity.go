package store

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const keyFile = "key"

// Identity returns the node's private key. The first call of a new directory makes it. A damaged key is put aside and a new one made: the node is
// another one then, which its manager will refuse under the old name until it is told to replace it. One that cannot be read now is an error:
// it may be readable the next time.
func (s *Store) Identity() (ed25519.PrivateKey, error) {
	key, err := readKey(s.dir)
	if err == nil {
		return key, s.tighten()
	}
	switch {
	case errors.Is(err, errDamaged):
		s.putAside(s.dir, keyFile, err)
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("read node key: %w", err)
	}
	_, key, err = ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode node key: %w", err)
	}
	if err := write(s.dir, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, fmt.Errorf("write node key: %w", err)
	}
	return key, nil
}

func readKey(dir string) (ed25519.PrivateKey, error) {
	body, err := read(dir, keyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return nil, fmt.Errorf("not PEM: %w", errDamaged)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T: %w", parsed, errDamaged)
	}
	return key, nil
}

// tighten takes the key's rights back from group and others, where a copy gave them some.
func (s *Store) tighten() error {
	path := filepath.Join(s.dir, keyFile)
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm() != 0o600 {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("rights of the node key: %w", err)
	}
	return nil
}
