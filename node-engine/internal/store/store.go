// Package store is what of a node survives a restart: one small file per instance, the node's key, and a few named values. It is
// written when something changes and at no other time: flash cards wear out. It must not know what the records mean.
//
//	<dir>/lock               held (flock) while a Store is open: one engine per directory
//	<dir>/key                the node's private key, mode 0600
//	<dir>/instances/<id>     one Record
//	<dir>/values/<name>      one named value
//	<dir>/damaged/           files that could not be read, put aside for a person to look at
//
// A file is written whole beside its place, synced, renamed into it, and its directory synced, so a power cut leaves the old or the
// new content. Each file carries a checksum, so a card that returns something else is noticed. What cannot be read is moved to
// damaged/ with a warning, and the program runs on: the manager's next sync brings back what was lost.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrLocked says that another engine uses the directory.
var ErrLocked = errors.New("in use by another node engine")

// The folders of a Store.
const (
	instancesDir = "instances"
	valuesDir    = "values"
	damagedDir   = "damaged"
)

// tempMark begins the names of files that are being written. No name of an instance or a value begins with a dot.
const tempMark = ".tmp-"

// Store is an open data directory. Its methods may be called concurrently; who writes one record from two goroutines keeps them in order.
type Store struct {
	dir  string
	lock *os.File
	log  *slog.Logger
}

// Open makes the directory where there is none, locks it and removes what an interrupted write left behind. An error wraps ErrLocked
// where another process, or another Store of this one, has it open.
func Open(dir string, log *slog.Logger) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, instancesDir), filepath.Join(dir, valuesDir), filepath.Join(dir, damagedDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	s := &Store{dir: dir, lock: lock, log: log}
	if err := s.sweep(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close gives the directory free. Everything is on disk already.
func (s *Store) Close() error { return s.lock.Close() }

// Exists reports by nil that a directory is the data of a node.
func Exists(dir string) error {
	_, err := os.Stat(filepath.Join(dir, keyFile))
	return err
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	return nil, errors.Join(err, f.Close())
}

// sweep removes temporary files.
func (s *Store) sweep() error {
	for _, dir := range []string{s.dir, filepath.Join(s.dir, instancesDir), filepath.Join(s.dir, valuesDir)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("read data directory: %w", err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), tempMark) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove a leftover: %w", err)
			}
		}
	}
	return nil
}
