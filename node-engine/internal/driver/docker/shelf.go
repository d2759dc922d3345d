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
// is put aside.
type shelf struct {
	file string // "": in memory only

	mu     sync.Mutex // guards what follows
	images map[string]pulled
	noted  map[string]time.Time // Used as it is in the file
}

func openShelf(file string, log *slog.Logger) *shelf {
	s := &shelf{file: file, images: map[string]pulled{}, noted: map[string]time.Time{}}
	if file == "" {
		return s
	}
	err := s.load()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		aside := file + ".damaged"
		log.Warn("damaged file put aside: the images that it names are not removed where nobody uses them", "file", aside, "err", err)
		if err := os.Rename(file, aside); err != nil {
			log.Warn("damaged file stays in its place", "file", file, "err", err)
		}
	}
	if err != nil || s.images == nil { // nil: the file says null
		s.images = map[string]pulled{}
	}
	for ref, p := range s.images {
		s.noted[ref] = p.Used
	}
	return s
}

func (s *shelf) load() error {
	info, err := os.Lstat(s.file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // a pipe would block whoever opens it
		return errors.New("not a regular file")
	}
	f, err := os.Open(s.file)
	if err != nil {
		return err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxShelfFile+1))
	if err != nil {
		return err
	}
	if len(body) > maxShelfFile {
		return fmt.Errorf("over %d bytes", maxShelfFile)
	}
	return json.Unmarshal(body, &s.images)
}

func (s *shelf) all() map[string]pulled {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	delete(s.images, ref)
	delete(s.noted, ref)
	_ = s.saveLocked() // it is found to be gone the next time
}

// saveLocked writes the file anew, by rename.
func (s *shelf) saveLocked() error {
	if s.file == "" {
		return nil
	}
	body, err := json.Marshal(s.images)
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

// writeWhole puts a file in its place so that after a power cut it has the old or the new content.
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
	return os.Rename(file+".new", file)
}
