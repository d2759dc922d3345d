package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"skerry.internal/messages"
)

// Record is what survives of one instance.
type Record struct {
	Assignment messages.Assignment     `json:"assignment"`
	Status     messages.InstanceStatus `json:"status"`
	// Acked says that the manager's broker had taken Status when this was written. It is a hint: an acknowledgement alone causes no write.
	Acked bool `json:"acked,omitempty"`
	// SeqBound is above every Seq that has been published of this instance.
	SeqBound uint64 `json:"seq_bound"`
	// Failures counts attempts that failed in a row, Tries the last of them that failed for the same Cause.
	Failures int           `json:"failures,omitempty"`
	Tries    int           `json:"tries,omitempty"`
	Cause    messages.Code `json:"cause,omitempty"`
	// Made is the hash of the spec that Status speaks of; Assignment may ask for another one by now.
	Made string `json:"made,omitempty"`
	// BootID is the boot of the board in which this was written.
	BootID string `json:"boot_id,omitempty"`
}

func (r *Record) validate(name string) error {
	if err := r.Assignment.Validate(); err != nil {
		return err
	}
	if string(r.Assignment.Instance) != name || r.Status.Instance != r.Assignment.Instance {
		return fmt.Errorf("holds instance %s: %w", r.Assignment.Instance, errDamaged)
	}
	if r.Failures < 0 || r.Tries < 0 {
		return fmt.Errorf("negative count: %w", errDamaged)
	}
	return r.Status.Validate()
}

// Save makes the record durable.
func (s *Store) Save(r Record) error {
	if err := r.Assignment.Instance.Validate(); err != nil { // it becomes a file name
		return err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of %s: %w", r.Assignment.Instance, err)
	}
	if err := write(s.instances(), string(r.Assignment.Instance), body); err != nil {
		return fmt.Errorf("write record of %s: %w", r.Assignment.Instance, err)
	}
	return nil
}

// Delete removes the record for good; that there is none is no error.
func (s *Store) Delete(id messages.InstanceID) error {
	if err := id.Validate(); err != nil {
		return err
	}
	if err := remove(s.instances(), string(id)); err != nil {
		return fmt.Errorf("delete record of %s: %w", id, err)
	}
	return nil
}

// Load returns every record in the order of their names. Those that are damaged are put aside; damaged names them.
func (s *Store) Load() (records []Record, damaged []messages.InstanceID, err error) {
	entries, err := os.ReadDir(s.instances())
	if err != nil {
		return nil, nil, fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		r, err := readRecord(s.instances(), e.Name())
		if err == nil {
			records = append(records, r)
			continue
		}
		if passing(err) {
			return nil, nil, fmt.Errorf("read record of %s: %w", e.Name(), err)
		}
		s.putAside(s.instances(), e.Name(), err)
		if id := messages.InstanceID(e.Name()); id.Validate() == nil {
			damaged = append(damaged, id)
		}
	}
	return records, damaged, nil
}

func readRecord(dir, name string) (Record, error) {
	var r Record
	body, err := read(dir, name)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, err
	}
	return r, r.validate(name)
}

// Put makes a named value durable as JSON. A name is a DNS label.
func (s *Store) Put(name string, v any) error {
	return s.put(name, v, write)
}

// Note keeps a named value over the end of the process, but not always over a power cut: it waits for no disk. Get counts one that the
// power cut has damaged as none.
func (s *Store) Note(name string, v any) error {
	return s.put(name, v, func(dir, name string, body []byte) error {
		return place(dir, name, body, func(*os.File) error { return nil })
	})
}

func (s *Store) put(name string, v any, write func(dir, name string, body []byte) error) error {
	if err := messages.CheckName("value", name); err != nil {
		return err
	}
	body, err := json.Marshal(v)
	if err == nil {
		err = write(s.values(), name, body)
	}
	if err != nil {
		return fmt.Errorf("write value %s: %w", name, err)
	}
	return nil
}

// Get reads a named value into v, a pointer, and reports whether there was one. One that is damaged is put aside and counts as none;
// v may have been written to in part then.
func (s *Store) Get(name string, v any) (bool, error) {
	if err := messages.CheckName("value", name); err != nil {
		return false, err
	}
	body, err := read(s.values(), name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(body, v)
	}
	if passing(err) {
		return false, fmt.Errorf("read value %s: %w", name, err)
	}
	if err != nil {
		s.putAside(s.values(), name, err)
		return false, nil
	}
	return true, nil
}

func (s *Store) instances() string { return filepath.Join(s.dir, instancesDir) }
func (s *Store) values() string    { return filepath.Join(s.dir, valuesDir) }
