package messages

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// The verbs of commands about nodes.
const (
	// Replace gives a node's name to the board that registers with it next: what was placed there runs on that one.
	Replace Verb = "replace"
	// Remove forgets a node that is not connected: what was placed there is placed elsewhere.
	Remove Verb = "remove"
)

// NodeVerbs lists every verb of a NodeCommand.
func NodeVerbs() []Verb { return []Verb{Replace, Remove} }

// checkNodeVerb reports whether the verb is one of a NodeCommand.
func checkNodeVerb(v Verb) error {
	switch v {
	case Replace, Remove:
		return nil
	default:
		return fmt.Errorf("verb %q: want replace or remove", clip(string(v)))
	}
}

// NodeCommand is what an operator publishes to control/node/<verb>.
type NodeCommand struct {
	Command Verb     `json:"command"`
	Node    NodeID   `json:"node"`
	Cluster []string `json:"cluster,omitempty"` // empty: whoever hears it
	// RequestID names the command towards its client. The same command with it within ten minutes repeats the first Result, another one is refused.
	RequestID string `json:"request_id,omitempty"`
}

// DecodeNodeCommand parses and validates a command that came on the topic of verb. Where it returns an error, the NodeCommand holds
// only what the Result that refuses it may carry: the verb, and the request id and the node where they are valid.
func DecodeNodeCommand(payload []byte, verb Verb) (NodeCommand, error) {
	var c NodeCommand
	err := Decode(payload, &c)
	if err == nil && c.Command != verb {
		err = fmt.Errorf("command %q came on control/node/%s: they must be equal", clip(string(c.Command)), verb)
	}
	if err != nil {
		return answerableNode(payload, verb), err
	}
	return c, nil
}

// answerableNode is answerable for commands about nodes.
func answerableNode(payload []byte, verb Verb) NodeCommand {
	c := NodeCommand{Command: verb}
	if len(payload) > MaxPayload || !utf8.Valid(payload) {
		return c
	}
	var top struct {
		Node      json.RawMessage `json:"node"`
		RequestID json.RawMessage `json:"request_id"`
	}
	if json.Unmarshal(payload, &top) != nil {
		return c
	}
	if s := text(top.RequestID); checkRequestID(s) == nil {
		c.RequestID = s
	}
	if s := text(top.Node); CheckName("node", s) == nil {
		c.Node = NodeID(s)
	}
	return c
}

// Validate reports all that is wrong with the command.
func (c *NodeCommand) Validate() error {
	var p problems
	p.add(checkNodeVerb(c.Command), checkRequestID(c.RequestID), CheckName("node", string(c.Node)))
	for _, name := range c.Cluster {
		p.add(CheckName("cluster", name))
	}
	return p.err()
}
