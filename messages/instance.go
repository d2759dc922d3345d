package messages

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
)

// State is where an instance is in its life. Within one attempt it only moves forward:
//
//	pending → preparing → starting → running → stopped | exited | failed
//
// A restart on the same node by the job's policy is the next attempt. Lost is said by the manager alone.
type State string

// The states.
const (
	Pending       State = "pending"   // assigned, nothing done yet; or waiting for its next attempt
	Preparing     State = "preparing" // its image is being brought
	Starting      State = "starting"
	Running       State = "running"
	Stopped       State = "stopped" // because it was asked to
	ExitedState   State = "exited"  // by itself, and not to be started again
	FailedState   State = "failed"  // could not start, or the restart policy gave up
	Lost          State = "lost"    // its node has been away for longer than lost_after
	UnknownStatus State = "unknown" // the manager has started and the node has not reported yet
)

// Rank orders the states of one attempt; a higher rank is later. Unknown words have rank -1.
func (s State) Rank() int {
	switch s {
	case Pending:
		return 0
	case Preparing:
		return 1
	case Starting:
		return 2
	case Running:
		return 3
	case Stopped, ExitedState, FailedState:
		return 4
	default:
		return -1
	}
}

// Terminal reports whether an instance in this state ends there unless it is told otherwise.
func (s State) Terminal() bool { return s.Rank() == 4 }

// InstanceStatus is what a node reports of one instance. Seq grows by one with every status of an instance and survives
// restarts of the node engine, so that a late or repeated message never takes a state back.
type InstanceStatus struct {
	Instance   InstanceID  `json:"instance"`
	Job        JobName     `json:"job"`
	Rev        uint64      `json:"rev"` // of the Assignment acted on
	Generation int         `json:"generation"`
	Attempt    int         `json:"attempt"` // 0 is the first
	Seq        uint64      `json:"seq"`
	State      State       `json:"state"`
	Healthy    bool        `json:"healthy"`
	ExitCode   *int        `json:"exit_code,omitempty"` // of the last exit
	OOM        bool        `json:"oom,omitempty"`       // the last exit was the kernel's, for want of memory
	Code       Code        `json:"code,omitempty"`      // why, for programs
	Reason     string      `json:"reason,omitempty"`    // why, one sentence a person can act on
	Address    string      `json:"address,omitempty"`   // where the container is reached from its node
	Network    NetworkMode `json:"network,omitempty"`   // how it is connected
	Names      []string    `json:"names,omitempty"`     // by which others find it in the overlay
	Ports      []Port      `json:"ports,omitempty"`     // as published, with the host ports that the node chose
	StartedAt  Time        `json:"started_at,omitzero"`
	NextAt     Time        `json:"next_attempt_at,omitzero"` // pending restart
	Progress   *Progress   `json:"progress,omitempty"`       // while preparing
	ImageID    string      `json:"image_id,omitempty"`       // what really runs, such as sha256:…
	Workload   string      `json:"workload,omitempty"`       // the driver's own name for it, such as a container id
	At         Time        `json:"at"`
}

// Progress says how far a pull has come. Total 0: not known yet.
type Progress struct {
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// Validate reports all that is wrong with the status.
func (s *InstanceStatus) Validate() error {
	job, _, generation, err := s.Instance.Split()
	if err != nil {
		return err
	}
	var errs []error
	if s.Job != job || s.Generation != generation {
		errs = append(errs, fmt.Errorf("instance %s: job or generation differ from its name", s.Instance))
	}
	if s.State.Rank() < 0 {
		errs = append(errs, fmt.Errorf("state %q: not one that a node reports", clip(string(s.State))))
	}
	if s.Attempt < 0 || s.Attempt > maxNumber {
		errs = append(errs, fmt.Errorf("attempt: %d, want 0 or more", s.Attempt))
	}
	if p := s.Progress; p != nil && (p.DoneBytes < 0 || p.TotalBytes < 0) {
		errs = append(errs, errors.New("progress: want done_bytes and total_bytes of 0 or more"))
	}
	for i, p := range s.Ports[:min(len(s.Ports), maxListed)] {
		if !p.valid() {
			errs = append(errs, fmt.Errorf("ports[%d]: want container 1 to 65535, host 0 to 65535, protocol tcp or udp", i))
			break
		}
	}
	errs = append(errs, oneOf("network", s.Network, Overlay, HostNetwork, NoNetwork, BridgeNetwork))
	for _, n := range s.Names[:min(len(s.Names), maxListed)] {
		if len(n) > 255 {
			errs = append(errs, errors.New("names: longer than 255 characters"))
			break
		}
	}
	if len(s.Reason) > 4096 || len(s.Ports) > maxListed || len(s.Names) > maxListed || len(s.Address) > 256 || len(s.ImageID) > 512 || len(s.Workload) > 256 {
		errs = append(errs, errors.New("reason, ports, names, address, image_id or workload: too long"))
	}
	return errors.Join(errs...)
}

// Assignment tells a node that an instance shall run, or shall not. Of two with one instance the one with the higher
// (Epoch, Rev) holds; an equal one is a repeat.
type Assignment struct {
	Instance InstanceID `json:"instance"`
	Rev      uint64     `json:"rev"`
	Epoch    uint64     `json:"epoch"`
	Run      bool       `json:"run"`
	Spec     *Spec      `json:"spec,omitempty"` // present where Run
}

// Newer reports whether a replaces b.
func (a *Assignment) Newer(b *Assignment) bool {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Rev, b.Rev)) > 0
}

// Validate reports all that is wrong with the assignment.
func (a *Assignment) Validate() error {
	if err := a.Instance.Validate(); err != nil {
		return err
	}
	if !a.Run {
		return nil
	}
	if a.Spec == nil {
		return fmt.Errorf("instance %s: shall run, but spec is missing", a.Instance)
	}
	if a.Spec.Image == "" || a.Spec.Technology == "" {
		return fmt.Errorf("instance %s: spec without image or technology", a.Instance)
	}
	return a.Spec.Validate()
}

// Sync is the whole set of a node's assignments. What a node holds and Sync does not name is not to run.
type Sync struct {
	Epoch       uint64       `json:"epoch"`
	Rev         uint64       `json:"rev"` // the manager's when it was made; assignments the node holds with a higher one stay
	Assignments []Assignment `json:"assignments"`
}

// Validate reports all that is wrong with the sync.
func (s *Sync) Validate() error {
	var p problems
	seen := make(map[InstanceID]bool, len(s.Assignments))
	for i := range s.Assignments {
		a := &s.Assignments[i]
		if err := a.Validate(); err != nil {
			p.add(err)
			continue
		}
		if seen[a.Instance] {
			p.add(fmt.Errorf("instance %s: listed twice", a.Instance))
		}
		seen[a.Instance] = true
	}
	return p.err()
}

// Digest is a short value that is equal for equal sets of (instance, rev, epoch) that shall run, in any order, and differs for
// others but for a chance of 2^-64. Assignments with Run false do not count: a node forgets them once they are done.
func Digest(assignments []Assignment) string {
	keys := make([]string, 0, len(assignments))
	for _, a := range assignments {
		if a.Run {
			keys = append(keys, fmt.Sprintf("%s %d %d\n", a.Instance, a.Rev, a.Epoch))
		}
	}
	slices.Sort(keys)
	h := fnv.New64a()
	for _, k := range keys {
		h.Write([]byte(k)) //nolint:errcheck // a hash.Hash never returns an error, by its contract
	}
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, h.Sum64()))
}
