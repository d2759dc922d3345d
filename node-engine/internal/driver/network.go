package driver

import (
	"context"
	"errors"
	"net/netip"

	"skerry.internal/messages"
)

// ErrNetworkDown says that a workload cannot be joined to the overlay of a node that can have one: it is not up yet, or not now. The caller waits
// and repeats; no attempt is used up.
var ErrNetworkDown = errors.New("the node's overlay is not up")

// Network joins workloads to the node's overlay. A driver that is given one asks it for every workload that wants to be there; without one
// a technology's own network is all there is. All methods may be called concurrently and may be repeated.
type Network interface {
	// Ready returns nil where workloads can be joined, else why not, as ErrNetworkDown where that can change by itself. While it is not known yet,
	// as after a start, it waits a little.
	Ready(ctx context.Context) error
	// Attach gives a namespace the interface of an instance, before anything of the workload runs in it. Again for the same namespace it
	// changes nothing; for another one the interface is there from then on, with the same addresses and ports. The error is ErrPortInUse
	// where a host port is taken.
	Attach(ctx context.Context, a Attachment) (Attached, error)
	// Detach takes the interface of an instance away and gives its addresses and ports back. That there is none is no error.
	Detach(ctx context.Context, id messages.InstanceID) error
	// Attached returns the instances that hold an interface or an address.
	Attached() []messages.InstanceID
}

// Attachment is what shall be joined.
type Attachment struct {
	Instance  messages.InstanceID
	Namespace string          // path of the network namespace, such as /proc/123/ns/net
	Ports     []messages.Port // to be published on the node; host port 0: one is chosen, and kept while the instance is attached
}

// Attached is what has come of it.
type Attached struct {
	Address, Address6 netip.Addr
	Names             []string        // by which other workloads find it
	Ports             []messages.Port // host ports filled in
	DNS               netip.Addr      // answers names of the overlay and all others; invalid where the host's servers are to be asked
	Search            string          // the domain that names of the overlay may be used without
}
