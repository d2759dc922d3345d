package engine

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/store"
)

// identityValue is the name of the stored identity.
const identityValue = "node"

// identity is how the node is called. Its key, which is what it is, is the store's.
type identity struct {
	Workloads messages.NodeID // the name that its workloads carry; never changes, so that they are found again

	mu      sync.Mutex // guards what follows
	Name    messages.NodeID
	Cluster string
	stored  bool
}

// saved is the form on disk.
type saved struct {
	Name      messages.NodeID `json:"name"`
	Workloads messages.NodeID `json:"workloads"`
	Cluster   string          `json:"cluster"`
}

// readIdentity returns the stored identity, or a first one that is called asked or after the host. It is stored once a manager has
// admitted the node under it: until then there are no workloads, and the operator may choose again.
func readIdentity(st *store.Store, asked string, log *slog.Logger) (*identity, error) {
	var s saved
	found, err := st.Get(identityValue, &s)
	if err != nil {
		return nil, err
	}
	if found && messages.CheckName("node", string(s.Name)) == nil && messages.CheckName("node", string(s.Workloads)) == nil {
		if asked != "" && asked != string(s.Name) {
			log.Warn("name ignored: the data directory is that of a node with another", "node_id", s.Name, "asked", asked)
		}
		return &identity{Name: s.Name, Workloads: s.Workloads, Cluster: s.Cluster, stored: true}, nil
	}
	name := messages.NodeID(asked)
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("host name: %w", err)
		}
		name = nodeName(host)
	}
	return &identity{Name: name, Workloads: name}, nil
}

func (i *identity) name() messages.NodeID {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.Name
}

// accept takes over what the manager says and stores it where that is new.
func (i *identity) accept(w messages.Welcome, st *store.Store) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stored && i.Name == w.ID && i.Cluster == w.Cluster {
		return nil
	}
	i.Name, i.Cluster = w.ID, w.Cluster
	if err := st.Put(identityValue, saved{Name: w.ID, Workloads: i.Workloads, Cluster: w.Cluster}); err != nil {
		return err
	}
	i.stored = true
	return nil
}
