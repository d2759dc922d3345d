package dispatch

import (
	"cmp"
	"container/heap"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// Anybody who reaches the manager may register under a name that is free. So those that have registered and opened no session yet have bounds.
const (
	// maxUnmet is their number. A cluster that starts at once stays below it: each is met as soon as it is connected.
	maxUnmet = 1024
	// unmetFor is how long one is remembered after its last registration.
	unmetFor = 10 * time.Minute
	// unmetGrace is the time that it has for its session before it may have to make room for another.
	unmetGrace = 30 * time.Second
)

// makeRoom sees to it that one more node may come whose name is not known yet.
func (c *Core) makeRoom(now time.Time) *messages.Refusal {
	if len(c.unmet) < maxUnmet {
		return nil
	}
	oldest := c.oldestUnmet()
	if now.Sub(oldest.Since) < unmetGrace {
		return &messages.Refusal{Code: messages.RefusedBusy, Message: "too many nodes have registered and not connected yet", Hint: "try again in a while"}
	}
	c.forgetNode(oldest, now, ": it did not connect, and another one came")
	return nil
}

// awaitSession begins the time in which a node that was not met yet is to open its session.
func (c *Core) awaitSession(n *cluster.Node, now time.Time) {
	n.Since = now
	c.unmet[n.ID] = true
	c.watchUnmet()
}

// meet notes that a node has opened a session: from now on it has a place, and its part of the network.
func (c *Core) meet(n *cluster.Node) {
	n.Unmet = false
	delete(c.unmet, n.ID)
	c.net.Lease(n)
	c.netNow = true // before it is told what it shall run
	c.st.PutNode(n)
}

// forgetUnmet forgets those whose time is over.
func (c *Core) forgetUnmet(now time.Time) {
	for n := c.oldestUnmet(); n != nil && now.Sub(n.Since) >= unmetFor; n = c.oldestUnmet() {
		c.forgetNode(n, now, ": it did not connect")
	}
	c.watchUnmet()
}

// watchUnmet asks to be called when the time of the oldest is over. One such wake is enough.
func (c *Core) watchUnmet() {
	if c.watching {
		return
	}
	if oldest := c.oldestUnmet(); oldest != nil {
		c.watching = true
		heap.Push(&c.wakes, wake{at: oldest.Since.Add(unmetFor), unmet: true})
	}
}

// oldestUnmet returns the one that has registered before all others, nil where there is none.
func (c *Core) oldestUnmet() *cluster.Node {
	var oldest *cluster.Node
	for id := range c.unmet {
		n := c.st.Nodes[id]
		if oldest == nil || cmp.Or(n.Since.Compare(oldest.Since), cmp.Compare(n.ID, oldest.ID)) < 0 {
			oldest = n
		}
	}
	return oldest
}
