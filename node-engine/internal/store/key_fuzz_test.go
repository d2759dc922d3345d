package store

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzKey holds for a key file whose checksum is right and whose content is anything: it is a key that can sign, or damaged, so that it is put aside.
// It is beside the Store, whose every start waits for the disk.
func FuzzKey(f *testing.F) {
	dir := f.TempDir() // each worker is a process
	f.Fuzz(func(t *testing.T, content []byte, armoured bool) {
		if armoured {
			content = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: content})
		}
		if err := os.WriteFile(filepath.Join(dir, keyFile), seal(content), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := readKey(dir)
		if err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("%v is not taken for damage: no start any more", err)
		}
		if err == nil && !ed25519.Verify(key.Public().(ed25519.PublicKey), content, ed25519.Sign(key, content)) {
			t.Error("the key does not sign")
		}
	})
}
