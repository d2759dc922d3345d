// Package store keeps the desired state on disk. It holds keys and values in a few buckets and knows nothing of what they mean;
// package cluster encodes them. Bolt is the implementation in the process; Memory serves tests and simulations. storetest holds
// the suite that every implementation passes.
package store

import (
	"context"
	"errors"
)

// Bucket names a set of keys.
type Bucket string

// The buckets.
const (
	Jobs       Bucket = "jobs"
	Placements Bucket = "placements"
	Nodes      Bucket = "nodes"
	Requests   Bucket = "requests"  // first Results by request id
	Interests  Bucket = "interests" // by node: the services that it wants to hear of
	Guests     Bucket = "guests"
	Meta       Bucket = "meta"
	Floors     Bucket = "floors"  // which generations the names of deleted jobs have used
	Damaged    Bucket = "damaged" // what could not be read, put aside under bucket/key
)

// Buckets lists every bucket.
func Buckets() []Bucket {
	return []Bucket{Jobs, Placements, Nodes, Requests, Interests, Guests, Meta, Floors, Damaged}
}

// ErrInUse says that another process holds the store.
var ErrInUse = errors.New("in use by another process")

// Change sets one key, or deletes it where Value is nil.
type Change struct {
	Bucket Bucket
	Key    string
	Value  []byte
}

// Store survives a restart. Its methods may be repeated; Commit is called by one goroutine at a time.
type Store interface {
	// Load calls each with every key and value, in any order. value may be kept.
	Load(ctx context.Context, each func(bucket Bucket, key string, value []byte) error) error
	// Commit makes all changes durable, or none. When it returns nil they survive a loss of power.
	Commit(ctx context.Context, changes []Change) error
	// Close releases the store.
	Close() error
}
