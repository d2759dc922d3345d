// Package relay carries the overlay's sealed packets between nodes that cannot reach one another directly: each holds one stream to the
// relay (an HTTP Upgrade on the manager's port), and the relay hands every packet to the stream of the node that it is for. What it carries
// is WireGuard's: the relay sees keys and sizes, never contents. The reflector beside it tells a node the address that others see it from.
//
// A stream begins with a proof of the node's identity (proof.go), then carries frames both ways (frame.go). Nothing waits for a slow node:
// what does not fit its queue is dropped, as a router drops.
//
// The package knows no tunnel and no WireGuard, so that the manager can serve it without carrying either.
package relay

import "time"

// Protocol is the name that both ends of a stream give in the Upgrade header.
const Protocol = "skerry-relay/1"

// Path is where the manager serves the relay.
const Path = "/relay"

const (
	greetTime = 10 * time.Second // for the proof, and for a dial
	beatEvery = 5 * time.Second  // a stream on which nothing is sent for so long gets a beat
	beatLimit = 15 * time.Second // a stream on which nothing comes in for so long is dead
	writeTime = 10 * time.Second // for one write of everything that is queued
)
