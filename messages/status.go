package messages

import (
	"errors"
	"fmt"
)

// JobState says in one word how a job stands.
type JobState string

// The states of a job.
const (
	JobPending  JobState = "pending"  // some copy has never been up since the last change
	JobRolling  JobState = "rolling"  // copies are being replaced
	JobRunning  JobState = "running"  // every copy runs and is healthy
	JobDegraded JobState = "degraded" // some copy is not healthy, lost or waiting for a node
	JobFailed   JobState = "failed"   // some copy has failed for good
	JobDone     JobState = "done"     // batch: every copy has exited with code 0
	JobDeleting JobState = "deleting"
	JobHeld     JobState = "held" // found on its nodes by a manager that did not know it: nothing is changed until a command for it
)

// JobStatus is what a manager says of a job, retained at jobs/<job>/status. An empty retained payload: there is no such job.
type JobStatus struct {
	Job       JobName          `json:"job"`
	ID        ClientID         `json:"id,omitzero"`
	State     JobState         `json:"state"`
	Reason    string           `json:"reason,omitempty"`
	Image     string           `json:"image"`
	Replicas  int              `json:"replicas"`
	Running   int              `json:"running"`
	Healthy   int              `json:"healthy"`
	Instances []InstanceReport `json:"instances"`
	Waiting   []WaitingCopy    `json:"waiting,omitempty"` // copies that no node can take now
	Spec      *Job             `json:"spec,omitempty"`    // as deployed, defaults filled in
	Worker    []NodeID         `json:"worker,omitempty"`
	Rev       uint64           `json:"rev"`
	At        Time             `json:"at"`
}

// InstanceReport is the status of an instance as the manager knows it, with the node that it is placed on.
type InstanceReport struct {
	Node NodeID `json:"node"`
	// Run is false while the instance is being stopped.
	Run bool `json:"run"`
	InstanceStatus
}

// WaitingCopy is a copy without a node.
type WaitingCopy struct {
	Ordinal int      `json:"ordinal"`
	Code    Code     `json:"code"`
	Reason  string   `json:"reason"`
	Nodes   []Passed `json:"nodes,omitempty"`
}

// Validate reports whether the status can be understood.
func (s *JobStatus) Validate() error { return CheckName("job", string(s.Job)) }

// Validate reports whether the report can be understood. Unlike a node's own status it may say lost or unknown.
func (r *InstanceReport) Validate() error { return r.Instance.Validate() }

// NodeState says in one word how a node stands.
type NodeState string

// The states of a node.
const (
	NodeExpected NodeState = "expected" // a core node that has never been seen, or a name that waits for its board after replace
	NodeOnline   NodeState = "online"
	NodeAway     NodeState = "away" // disconnected, its lease runs
	NodeLost     NodeState = "lost" // disconnected, its lease has run out
)

// NodeStatus is what a manager says of a node, retained at nodes/<node>/status.
type NodeStatus struct {
	Node         NodeID            `json:"node"`
	Kind         string            `json:"kind"`
	State        NodeState         `json:"state"`
	Since        Time              `json:"since,omitzero"` // of the state
	Key          string            `json:"key,omitempty"`
	Version      string            `json:"version,omitempty"`
	Arch         string            `json:"arch,omitempty"`
	OS           string            `json:"os,omitempty"`
	Kernel       string            `json:"kernel,omitempty"`
	Addresses    []string          `json:"addresses,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Technologies []TechnologyInfo  `json:"technologies,omitempty"`
	CPU          CPUInfo           `json:"cpu,omitzero"`
	MemoryMB     int               `json:"memory_mb,omitempty"`
	DiskMB       int               `json:"disk_mb,omitempty"`
	GPUs         []GPUInfo         `json:"gpus,omitempty"`
	Sensors      []SensorInfo      `json:"sensors,omitempty"`
	Reserved     Resources         `json:"reserved,omitzero"`
	Instances    []InstanceID      `json:"instances,omitempty"`
	ClockSkewMS  int64             `json:"clock_skew_ms,omitempty"`
	Epoch        uint64            `json:"epoch,omitempty"`
	Overlay      *OverlayStatus    `json:"overlay,omitempty"`
	At           Time              `json:"at"`
}

// Validate reports whether the status can be understood.
func (s *NodeStatus) Validate() error { return CheckName("node", string(s.Node)) }

// ClusterStatus is what a manager says of itself, retained at cluster/status.
type ClusterStatus struct {
	Cluster   string         `json:"cluster"`
	Version   string         `json:"version"`
	Protocol  int            `json:"protocol"`
	StartedAt Time           `json:"started_at"`
	Nodes     map[string]int `json:"nodes"`     // by state, and by kind: core, spare
	Jobs      map[string]int `json:"jobs"`      // by state
	Instances map[string]int `json:"instances"` // by state
	Rev       uint64         `json:"rev"`
	At        Time           `json:"at"`
}

// Validate reports whether the status can be understood.
func (s *ClusterStatus) Validate() error { return CheckName("cluster", s.Cluster) }

// The kinds of event.
const (
	NodeJoined     = "node-joined"
	NodeOnlineEv   = "node-online"
	NodeAwayEv     = "node-away"
	NodeLostEv     = "node-lost"
	NodeRemovedEv  = "node-removed"
	JobDeployed    = "job-deployed"
	JobChanged     = "job-changed"
	JobReverted    = "job-reverted"
	JobFound       = "job-found"
	JobDeleted     = "job-deleted"
	InstancePlaced = "instance-placed"
	InstanceState  = "instance-state"
	InstanceLost   = "instance-lost"
	InstanceGone   = "instance-gone"
)

// Event is one thing that happened, at events/<kind>.
type Event struct {
	Kind     string     `json:"kind"`
	At       Time       `json:"at"`
	Node     NodeID     `json:"node,omitempty"`
	Job      JobName    `json:"job,omitempty"`
	Instance InstanceID `json:"instance,omitempty"`
	State    State      `json:"state,omitempty"`
	Message  string     `json:"message"`
}

// Validate reports whether the event can be understood.
func (e *Event) Validate() error { return CheckName("kind", e.Kind) }

// LogsRequest asks a node for the output of an instance.
type LogsRequest struct {
	Instance  InstanceID `json:"instance"`
	Since     Time       `json:"since,omitzero"`
	Tail      int        `json:"tail,omitempty"` // lines; 0: all that is kept
	Follow    bool       `json:"follow,omitempty"`
	RequestID string     `json:"request_id"`
}

// Validate reports all that is wrong with the request.
func (r *LogsRequest) Validate() error {
	if r.Tail < 0 || r.Tail > maxNumber {
		return fmt.Errorf("tail: %d, want 0 to %d lines", r.Tail, maxNumber)
	}
	if r.RequestID == "" {
		return errors.New("request_id: missing")
	}
	return errors.Join(r.Instance.Validate(), checkRequestID(r.RequestID))
}

// LogChunk is a piece of an instance's output.
type LogChunk struct {
	RequestID string     `json:"request_id"`
	Instance  InstanceID `json:"instance"`
	N         uint64     `json:"n"`                // counts the chunks of a request from 0
	Stream    string     `json:"stream,omitempty"` // stdout or stderr
	Text      string     `json:"text"`
	Last      bool       `json:"last,omitempty"`
	Error     string     `json:"error,omitempty"` // with Last: why the output ends here
}

// Validate reports whether the chunk can be understood.
func (c *LogChunk) Validate() error {
	if c.Stream != "" && c.Stream != "stdout" && c.Stream != "stderr" {
		return fmt.Errorf("stream %q: want stdout or stderr", clip(c.Stream))
	}
	return c.Instance.Validate()
}
