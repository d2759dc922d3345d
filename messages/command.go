package messages

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Verb is what a command asks for. Of these a manager sends Deploy and Delete to nodes.
type Verb string

// The verbs of commands about jobs.
const (
	Deploy    Verb = "deploy"
	Delete    Verb = "delete"
	Move      Verb = "move"
	Replicate Verb = "replicate"
)

// Verbs lists every verb of a Command.
func Verbs() []Verb { return []Verb{Deploy, Delete, Move, Replicate} }

// Validate reports whether the verb is one of a Command.
func (v Verb) Validate() error {
	switch v {
	case Deploy, Delete, Move, Replicate:
		return nil
	default:
		return fmt.Errorf("verb %q: want deploy, delete, move or replicate", clip(string(v)))
	}
}

// Command is what a client publishes to control/<verb>.
type Command struct {
	Command Verb     `json:"command"`
	Job     Job      `json:"job"`
	Cluster []string `json:"cluster,omitempty"` // empty: whoever hears it
	Worker  []NodeID `json:"worker,omitempty"`  // the nodes that may take instances; for move: the targets
	From    []NodeID `json:"from,omitempty"`    // for move: the nodes to leave
	// RequestID names the command towards its client. The same command with it within ten minutes repeats the first Result, another one is refused.
	RequestID string `json:"request_id,omitempty"`
}

// DecodeCommand parses and validates a command that came on the topic of verb. Where it returns an error, the Command holds
// only what the Result that refuses it may carry: the verb, and the request id, job name and job id where they are valid.
func DecodeCommand(payload []byte, verb Verb) (Command, error) {
	var c Command
	err := Decode(payload, &c)
	if err == nil && c.Command != verb {
		err = fmt.Errorf("command %q came on control/%s: they must be equal", clip(string(c.Command)), verb)
	}
	if err != nil {
		return answerable(payload, verb), err
	}
	return c, nil
}

// answerable finds in a refused payload what its sender knows the command by. A broken field does not hide the others.
func answerable(payload []byte, verb Verb) Command {
	c := Command{Command: verb}
	if len(payload) > MaxPayload || !utf8.Valid(payload) {
		return c
	}
	var top struct {
		Job       json.RawMessage `json:"job"`
		RequestID json.RawMessage `json:"request_id"`
	}
	var job struct {
		ID   json.RawMessage `json:"id"`
		Name json.RawMessage `json:"name"`
	}
	if json.Unmarshal(payload, &top) != nil {
		return c
	}
	if s := text(top.RequestID); checkRequestID(s) == nil {
		c.RequestID = s
	}
	if len(top.Job) == 0 || json.Unmarshal(top.Job, &job) != nil {
		return c
	}
	if s := text(job.Name); CheckName("job.name", s) == nil {
		c.Job.Name = JobName(s)
	}
	if id := (ClientID{}); len(job.ID) > 0 && id.UnmarshalJSON(job.ID) == nil {
		c.Job.ID = id
	}
	return c
}

// text returns the string that b holds as JSON, or none.
func text(b json.RawMessage) string {
	var s string
	if len(b) == 0 || json.Unmarshal(b, &s) != nil {
		return ""
	}
	return s
}

// Validate reports all that is wrong with the command.
func (c *Command) Validate() error {
	var p problems
	p.add(c.Command.Validate(), checkRequestID(c.RequestID), checkNodes("worker", c.Worker), checkNodes("from", c.From))
	for _, name := range c.Cluster {
		p.add(CheckName("cluster", name))
	}
	switch c.Command {
	case Deploy:
		p.add(c.Job.Validate())
	case Replicate:
		p.add(CheckName("job.name", string(c.Job.Name)), c.Job.validateCount())
		if c.Job.Replicas == nil {
			p.add(errors.New("job.replicas: missing"))
		}
	case Move:
		p.add(CheckName("job.name", string(c.Job.Name)))
		if len(c.Worker) == 0 && len(c.From) == 0 {
			p.add(errors.New("move: name the nodes to leave (from), the nodes to go to (worker), or both"))
		}
	default:
		p.add(CheckName("job.name", string(c.Job.Name)))
	}
	return p.err()
}

// maxNodes is the most nodes that one command may name; more do not fit a payload.
const maxNodes = 10_000

func checkNodes(field string, nodes []NodeID) error {
	if len(nodes) > maxNodes {
		return fmt.Errorf("%s: %d names, at most %d", field, len(nodes), maxNodes)
	}
	for _, n := range nodes {
		if err := CheckName(field, string(n)); err != nil {
			return err
		}
	}
	return nil
}

// Phase says how far a command has come.
type Phase string

// The phases of a command: one of the first two once, then after Accepted one of the last two once.
const (
	Accepted Phase = "accepted" // durable
	Refused  Phase = "refused"
	Done     Phase = "done"   // the observed state has reached what was asked
	Failed   Phase = "failed" // it cannot be reached, or another command took its place
)

// Code names the reason of a refusal or a failure for programs.
type Code string

// The codes.
const (
	BadPayload     Code = "bad_payload"
	UnknownJob     Code = "unknown_job"
	UnknownNode    Code = "unknown_node"
	UnknownGuest   Code = "unknown_guest"
	WrongCluster   Code = "wrong_cluster"
	NoCapacity     Code = "no_capacity"
	NoTechnology   Code = "no_technology"
	NoNodeMatches  Code = "no_node_matches"
	NotAllowed     Code = "not_allowed"
	ImageNotFound  Code = "image_not_found"
	ImageWrongArch Code = "image_wrong_arch"
	PortInUse      Code = "port_in_use"
	Unhealthy      Code = "unhealthy"
	Exited         Code = "exited" // the program ended by itself and the restart policy gave up
	DriverFailed   Code = "driver_failed"
	Timeout        Code = "timeout"
	Superseded     Code = "superseded"
	// Unavailable says that the manager cannot take the command now (its disk refuses, or a copy is just being replaced): try again.
	Unavailable Code = "unavailable"
)

// Codes lists every code, in the order of the documentation.
func Codes() []Code {
	return []Code{BadPayload, UnknownJob, UnknownNode, UnknownGuest, WrongCluster, NoCapacity, NoTechnology, NoNodeMatches, NotAllowed,
		ImageNotFound, ImageWrongArch, PortInUse, Unhealthy, Exited, DriverFailed, Timeout, Superseded, Unavailable}
}

// Result answers a command about a job, a node or a guest: once when it is durable or refused, and once when it is done or failed.
type Result struct {
	RequestID   string           `json:"request_id,omitempty"`
	Command     Verb             `json:"command"`
	Job         JobName          `json:"job,omitempty"`
	Node        NodeID           `json:"node,omitempty"`         // of a command about a node
	Guest       string           `json:"guest,omitempty"`        // of a command about a guest
	GuestConfig *GuestConfig     `json:"guest_config,omitempty"` // done: what its WireGuard client needs
	ID          ClientID         `json:"id,omitzero"`            // the client's own key, echoed
	Phase       Phase            `json:"phase"`
	Code        Code             `json:"code,omitempty"` // of refused and failed
	Message     string           `json:"message,omitempty"`
	Nodes       []Passed         `json:"nodes,omitempty"` // refused for placement: why each node was passed over
	Instances   []InstanceReport `json:"instances,omitempty"`
	Rev         uint64           `json:"rev,omitempty"`
	At          Time             `json:"at"`
}

// Validate reports whether the Result can be understood.
func (r *Result) Validate() error {
	switch r.Phase {
	case Accepted, Refused, Done, Failed:
		return nil
	default:
		return fmt.Errorf("phase %q: want accepted, refused, done or failed", clip(string(r.Phase)))
	}
}

// Last reports whether no further Result follows this one.
func (r *Result) Last() bool { return r.Phase != Accepted }

// Passed says why one node was passed over: the first reason found.
type Passed struct {
	Node   NodeID `json:"node"`
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
}
