package store

import (
	"context"
	"sync"
)

// Memory is a Store that lives as long as its value. The zero Memory is empty and ready.
type Memory struct {
	// Fail, where set, is asked before every Commit; its error is returned and nothing is changed.
	Fail func([]Change) error

	mu   sync.Mutex // guards data
	data map[Bucket]map[string][]byte
}

var _ Store = (*Memory)(nil)

// Load calls each with a copy of what is held.
func (m *Memory) Load(_ context.Context, each func(Bucket, string, []byte) error) error {
	for _, c := range m.copy() {
		if err := each(c.Bucket, c.Key, c.Value); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) copy() []Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Change
	for b, keys := range m.data {
		for k, v := range keys {
			all = append(all, Change{b, k, append([]byte{}, v...)})
		}
	}
	return all
}

// Commit applies the changes.
func (m *Memory) Commit(_ context.Context, changes []Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail != nil {
		if err := m.Fail(changes); err != nil {
			return err
		}
	}
	if m.data == nil {
		m.data = map[Bucket]map[string][]byte{}
	}
	for _, c := range changes {
		if m.data[c.Bucket] == nil {
			m.data[c.Bucket] = map[string][]byte{}
		}
		if c.Value == nil {
			delete(m.data[c.Bucket], c.Key)
		} else {
			m.data[c.Bucket][c.Key] = append([]byte{}, c.Value...)
		}
	}
	return nil
}

// Close does nothing: the data stay for the next who opens them.
func (m *Memory) Close() error { return nil }

// Clone returns a Memory that holds the same, as a backup does.
func (m *Memory) Clone() *Memory {
	c := new(Memory)
	_ = c.Commit(context.Background(), m.copy()) // without Fail it takes everything
	return c
}
