// Package sysfstest makes file system trees that look like a board's, for tests on machines that are none.
package sysfstest

import (
	"os"
	"path/filepath"
	"testing"

	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// Make returns a Tree in a directory of the test with the given files, path to text.
func Make(t testing.TB, files map[string]string) sysfs.Tree {
	t.Helper()
	tree := sysfs.At(t.TempDir())
	for path, text := range files {
		Write(t, tree, path, text)
	}
	return tree
}

// Write makes or changes one file of a tree.
func Write(t testing.TB, tree sysfs.Tree, path, text string) {
	t.Helper()
	path = tree.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Link makes a symbolic link at path to target.
func Link(t testing.TB, tree sysfs.Tree, path, target string) {
	t.Helper()
	path = tree.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
