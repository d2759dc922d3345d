package messages

import (
	"errors"
	"fmt"
)

// TraceKind says what a TraceRequest asks for.
type TraceKind string

// The kinds of trace.
const (
	TraceResolve TraceKind = "resolve" // what the name means on this node
	TracePath    TraceKind = "trace"   // which instance a flow would go to, over which path, and how long that takes
	TracePing    TraceKind = "ping"    // the same, several times
)

// TraceRequest asks a node how its instances reach a service. The answers come at nodes/<node>/net/answers/<request_id>.
type TraceRequest struct {
	RequestID string     `json:"request_id"`
	Kind      TraceKind  `json:"kind"`
	Instance  InstanceID `json:"instance,omitempty"` // from whose point of view; default: the node's
	Name      string     `json:"name"`               // web, closest.web, 0.web, with or without the zone, or an address
	Count     int        `json:"count,omitempty"`    // of ping: how many times, once a second; default 1
}

// Validate reports all that is wrong with the request.
func (r *TraceRequest) Validate() error {
	var p problems
	if r.RequestID == "" {
		p.add(errors.New("request_id: missing"))
	}
	if r.Kind == "" {
		p.add(errors.New("kind: missing"))
	}
	if r.Name == "" || len(r.Name) > 255 {
		p.add(errors.New("name: want one of 1 to 255 characters"))
	}
	if r.Count < 0 || r.Count > maxTries {
		p.add(fmt.Errorf("count: %d, want 0 to %d", r.Count, maxTries))
	}
	p.add(checkRequestID(r.RequestID), oneOf("kind", r.Kind, TraceResolve, TracePath, TracePing))
	if r.Instance != "" {
		p.add(r.Instance.Validate())
	}
	return p.err()
}

// TraceAnswer is one answer to a TraceRequest.
type TraceAnswer struct {
	RequestID string    `json:"request_id"`
	Kind      TraceKind `json:"kind"`
	N         int       `json:"n"` // counts the answers to a request from 0
	Last      bool      `json:"last,omitempty"`
	Error     string    `json:"error,omitempty"` // why there is no better answer
	Name      string    `json:"name,omitempty"`  // in full
	// Addresses are what the name resolves to, IPv4 first.
	Addresses []string `json:"addresses,omitempty"`
	Service   JobName  `json:"service,omitempty"`
	Policy    Policy   `json:"policy,omitempty"`
	Healthy   int      `json:"healthy,omitempty"` // how many instances there are to choose from
	// Instance is the one that was chosen, with where it is and how it was reached.
	Instance InstanceID `json:"instance,omitempty"`
	Address  string     `json:"address,omitempty"`
	Node     NodeID     `json:"node,omitempty"`
	Local    bool       `json:"local,omitempty"` // on this node
	Path     PathState  `json:"path,omitempty"`
	Endpoint string     `json:"endpoint,omitempty"`
	RTTMS    float64    `json:"rtt_ms,omitempty"`
	Lost     bool       `json:"lost,omitempty"`  // no reply came in time
	Again    bool       `json:"again,omitempty"` // of a trace: the first packet got no reply in time, and what is said is about a second one
	MTU      int        `json:"mtu,omitempty"`   // of packets inside the tunnel, as in NetStatus
	At       Time       `json:"at"`
}

// Validate reports whether the answer can be understood.
func (a *TraceAnswer) Validate() error {
	return oneOf("kind", a.Kind, TraceResolve, TracePath, TracePing)
}

// MarshalJSON writes the answer with a time that JSON can hold.
func (a TraceAnswer) MarshalJSON() ([]byte, error) {
	type plain TraceAnswer
	zeroUnlessFinite(&a.RTTMS)
	return Encode(plain(a)), nil
}
