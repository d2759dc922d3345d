package store_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/cluster-manager/internal/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) func() store.Store {
		m := new(store.Memory)
		return func() store.Store { return m }
	})
}

func openBolt(t *testing.T, dir string) *store.Bolt {
	t.Helper()
	b, err := store.OpenBolt(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBolt(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() store.Store {
		dir := t.TempDir()
		return func() store.Store { return openBolt(t, dir) }
	})
}

func TestBoltInUse(t *testing.T) {
	dir := t.TempDir()
	b := openBolt(t, dir)
	defer b.Close()
	if _, err := store.OpenBolt(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrInUse) {
		t.Errorf("second open: got %v, want ErrInUse", err)
	}
}

// A damaged file is put aside and the store starts empty, whatever part of the file is damaged.
func TestBoltDamaged(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/3] },
		"zeroed":    func(b []byte) []byte { return make([]byte, len(b)) },
		"text":      func([]byte) []byte { return []byte("not a database") },
		"pages": func(b []byte) []byte {
			for i := 3 * os.Getpagesize(); i < len(b); i++ {
				b[i] ^= 0xa5
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := openBolt(t, dir)
			for i := range 50 {
				value := make([]byte, 1000)
				if err := b.Commit(t.Context(), []store.Change{{Bucket: store.Jobs, Key: string(rune('a' + i)), Value: value}}); err != nil {
					t.Fatal(err)
				}
			}
			b.Close()
			path := filepath.Join(dir, "state.db")
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(content), 0o600); err != nil {
				t.Fatal(err)
			}
			b = openBolt(t, dir)
			defer b.Close()
			if err := b.Commit(t.Context(), []store.Change{{Bucket: store.Jobs, Key: "x", Value: []byte("1")}}); err != nil {
				t.Errorf("commit to the new store: %v", err)
			}
			aside, err := filepath.Glob(path + ".damaged-*")
			if err != nil || len(aside) != 1 {
				t.Errorf("put aside: %v %v, want one file", aside, err)
			}
		})
	}
}
