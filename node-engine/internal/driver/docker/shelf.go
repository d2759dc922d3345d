package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// pulled is what is known of an image that this driver has brought itself.
type pulled struct {
	ID   string    `json:"id"`
	Used time.Time `json:"used"` // last, to within usedStep
}

const (
	// usedStep is how much a noted time of use may lag behind: a start of a container is not to cost a write each time.
	usedStep = time.Hour
	// maxShelf bounds how many images are noted; those beyond are never removed.
	maxShelf = 10_000
	// maxShelfFile bounds what is read of the file: so many images with long names.
	maxShelfFile = 8 << 20
)

// shelf remembers which images this driver has brought, in a file. What is lost with the file is never removed; a damaged one counts as none, and
// is put aside. One that cannot be read now stays as it is, and is read before anything is written in its place.
type shelf struct {
	file string // "": in memory only
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	images map[string]pulled
	noted  map[string]time.Time // Used as it is in the file
	read   bool                 // the file, with all that it says
}

func openShelf(file string, log *slog.Logger) *shelf {
	s := &shelf{file: file, log: log, images: map[string]pulled{}, noted: map[string]time.Time{}, read: file == ""}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.readLocked(); err != nil {
		log.Warn("file cannot be read now: until it can be, the images that it names are not removed where nobody uses them", "file", file, "err", err)
	}
	return s
}

// errDamaged says that a file could be read, and what it says is nothing.
var errDamaged = errors.New("damaged")

// readLocked takes over what the file says, once. What has been noted since the start is newer.
func (s *shelf) readLocked() error {
	if s.read {
		return nil
	}
	images, err := loadShelf(s.file)
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, syscall.EIO), errors.Is(err, syscall.EBADMSG), errors.Is(err, syscall.EUCLEAN): // or the card is
		aside := s.file + ".damaged"
		if moved := os.Rename(s.file, aside); moved != nil {
			s.log.Warn("damaged file stays in its place", "file", s.file, "err", errors.Join(err, moved))
		} else {
			s.log.Warn("damaged file put aside: the images that it names are not removed where nobody uses them", "file", aside, "err", err)
		}
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	s.read = true
	for ref, p := range images {
		if _, newer := s.images[ref]; !newer {
			s.images[ref] = p
		}
		s.noted[ref] = p.Used
	}
	return nil
}

// loadShelf returns what a file says; errDamaged where that is nothing.
func loadShelf(file string) (images map[string]pulled, err error) {
	info, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would block whoever opens it
		return nil, fmt.Errorf("not a regular file: %w", errDamaged)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxShelfFile+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxShelfFile {
		return nil, fmt.Errorf("over %d bytes: %w", maxShelfFile, errDamaged)
	}
	if err := json.Unmarshal(body, &images); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return images, nil
}

// all returns what is noted, without a file that cannot be read now.
func (s *shelf) all() map[string]pulled {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.readLocked() // said when it was opened, and where something is noted
	return maps.Clone(s.images)
}

// add notes an image that was brought.
func (s *shelf) add(ref, id string, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.images) >= maxShelf {
		return fmt.Errorf("%d images are noted already", maxShelf)
	}
	s.images[ref] = pulled{id, now}
	return s.saveLocked()
}

// used notes that an image, where it is one of these, is used.
func (s *shelf) used(ref string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.readLocked() // as in all
	p, ok := s.images[ref]
	if !ok {
		return
	}
	p.Used = now
	s.images[ref] = p
	if now.Sub(s.noted[ref]) > usedStep {
		_ = s.saveLocked() // it is but a little out of date
	}
}

func (s *shelf) forget(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.readLocked() // as in all
	delete(s.images, ref)
	delete(s.noted, ref)
	_ = s.saveLocked() // it is found to be gone the next time
}

// saveLocked writes the file anew, by rename.
func (s *shelf) saveLocked() error {
	if s.file == "" {
		return nil
	}
	err := s.readLocked() // or it would be lost
	body := []byte(nil)
	if err == nil {
		body, err = json.Marshal(s.images)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(s.file), 0o700)
	}
	if err == nil {
		err = writeWhole(s.file, body)
	}
	if err != nil {
		return fmt.Errorf("note images in %s: %w", s.file, err)
	}
	for ref, p := range s.images {
		s.noted[ref] = p.Used
	}
	return nil
}

// writeWhole puts a file in its place so that after a power cut it has the new content, or the old one where this has not returned yet.
func writeWhole(file string, body []byte) error {
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
