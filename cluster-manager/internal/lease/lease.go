// Package lease knows which nodes are alive. A node that is connected holds a lease; from the moment it is not, the lease runs
// out: after the time that a job allows, its instance there counts as lost. Times are the caller's and must come from a monotonic
// clock (time.Now in one process), so that a board's or manager's wrong date changes nothing. It does no input or output and has
// no clock.
package lease

import (
	"time"

	"skerry.internal/messages"
)

// Table holds the leases. It is not safe for concurrent use.
type Table struct {
	away map[messages.NodeID]time.Time // since when; a node that is connected is not in it
}

// NewTable returns a Table in which every node is connected until Down is called.
func NewTable() *Table { return &Table{away: map[messages.NodeID]time.Time{}} }

// Up says that the node is connected.
func (t *Table) Up(node messages.NodeID) { delete(t.away, node) }

// Down says that the node is not connected. Where that is known, the lease goes on running. It returns since when it runs.
func (t *Table) Down(node messages.NodeID, now time.Time) time.Time {
	if _, known := t.away[node]; !known {
		t.away[node] = now
	}
	return t.away[node]
}

// Forget drops a node that was removed.
func (t *Table) Forget(node messages.NodeID) { delete(t.away, node) }

// Away returns for how long the node has been away, 0 where it is connected.
func (t *Table) Away(node messages.NodeID, now time.Time) time.Duration {
	since, away := t.away[node]
	if !away {
		return 0
	}
	return max(now.Sub(since), time.Nanosecond)
}
