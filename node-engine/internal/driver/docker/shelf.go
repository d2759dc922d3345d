package docker

import (
	"encoding/json"
	"fmt"
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
)

// shelf remembers which images this driver has brought, in a file. What is lost with the file is never removed; so a damaged one counts as
// none.
type shelf struct {
	file string // "": in memory only

	mu     sync.Mutex // guards what follows
	images map[string]pulled
	noted  map[string]time.Time // Used as it is in the file
}

func openShelf(file string) *shelf {
	s := &shelf{file: file, images: map[string]pulled{}, noted: map[string]time.Time{}}
	if body, err := os.ReadFile(file); err == nil && (json.Unmarshal(body, &s.images) != nil || s.images == nil) { // nil: the file says null
		s.images = map[string]pulled{}
	}
	for ref, p := range s.images {
		s.noted[ref] = p.Used
	}
	return s
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
		err = os.WriteFile(s.file+".new", body, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+".new", s.file)
	}
	if err != nil {
		return fmt.Errorf("note images in %s: %w", s.file, err)
	}
	for ref, p := range s.images {
		s.noted[ref] = p.Used
	}
	return nil
}
