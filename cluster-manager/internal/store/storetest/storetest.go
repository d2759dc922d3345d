// Package storetest holds the suite that every implementation of store.Store passes. It is for tests only.
package storetest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/cluster-manager/internal/store"
)

// Run checks one implementation. open returns the same store each time it is called within one test, closed in between.
func Run(t *testing.T, newPlace func(t *testing.T) (open func() store.Store)) {
	t.Run("what is committed is loaded", func(t *testing.T) {
		open := newPlace(t)
		s := open()
		commit(t, s, store.Change{Bucket: store.Jobs, Key: "a", Value: []byte("1")},
			store.Change{Bucket: store.Nodes, Key: "a", Value: []byte("2")},
			store.Change{Bucket: store.Jobs, Key: "b", Value: []byte{}})
		commit(t, s, store.Change{Bucket: store.Jobs, Key: "a", Value: []byte("3")})
		want := map[string]string{"jobs/a": "3", "nodes/a": "2", "jobs/b": ""}
		compare(t, s, want)
		closeStore(t, s)
		s = open()
		compare(t, s, want)
		closeStore(t, s)
	})
	t.Run("a deleted key is gone, deleting it again is no error", func(t *testing.T) {
		open := newPlace(t)
		s := open()
		commit(t, s, store.Change{Bucket: store.Meta, Key: "a", Value: []byte("1")})
		for range 2 {
			commit(t, s, store.Change{Bucket: store.Meta, Key: "a"})
		}
		closeStore(t, s)
		s = open()
		compare(t, s, map[string]string{})
		closeStore(t, s)
	})
	t.Run("changes of one commit apply in order", func(t *testing.T) {
		s := newPlace(t)()
		commit(t, s, store.Change{Bucket: store.Meta, Key: "a", Value: []byte("1")},
			store.Change{Bucket: store.Meta, Key: "a"}, store.Change{Bucket: store.Meta, Key: "a", Value: []byte("2")})
		compare(t, s, map[string]string{"meta/a": "2"})
		closeStore(t, s)
	})
	t.Run("an empty key is refused or kept, never half of a commit", func(t *testing.T) {
		s := newPlace(t)()
		err := s.Commit(t.Context(), []store.Change{{Bucket: store.Jobs, Key: "x", Value: []byte("1")}, {Bucket: store.Jobs, Key: "", Value: []byte("2")}})
		got := load(t, s)
		if _, there := got["jobs/x"]; there != (err == nil) {
			t.Errorf("commit said %v, but half of it is there: %v", err, got)
		}
		closeStore(t, s)
	})
}

func commit(t *testing.T, s store.Store, changes ...store.Change) {
	t.Helper()
	if err := s.Commit(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
}

func closeStore(t *testing.T, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := s.Load(t.Context(), func(b store.Bucket, k string, v []byte) error {
		got[string(b)+"/"+k] = string(v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func compare(t *testing.T, s store.Store, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, load(t, s)); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}
