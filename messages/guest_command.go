package messages

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Add lets a guest into the network; it is a verb of commands about guests, as Remove is.
const (
	Add Verb = "add"
)

// GuestVerbs lists every verb of a GuestCommand.
func GuestVerbs() []Verb { return []Verb{Add, Remove} }

// checkGuestVerb reports whether the verb is one of a GuestCommand.
func checkGuestVerb(v Verb) error {
	switch v {
	case Add, Remove:
		return nil
	default:
		return fmt.Errorf("verb %q: want add or remove", clip(string(v)))
	}
}

// GuestCommand is what an operator publishes to control/guest/<verb>.
type GuestCommand struct {
	Command   Verb     `json:"command"`
	Guest     string   `json:"guest"`                // its name, a DNS label
	PublicKey string   `json:"public_key,omitempty"` // for add: of WireGuard; the private key stays with the guest
	Gateway   NodeID   `json:"gateway,omitempty"`    // for add: the node that lets it in; default: the manager chooses
	Cluster   []string `json:"cluster,omitempty"`    // empty: whoever hears it
	// RequestID names the command towards its client. The same command with it within ten minutes repeats the first Result, another one is refused.
	RequestID string `json:"request_id,omitempty"`
}

// DecodeGuestCommand parses and validates a command that came on the topic of verb. Where it returns an error, the GuestCommand holds
// only what the Result that refuses it may carry: the verb, and the request id and the guest where they are valid.
func DecodeGuestCommand(payload []byte, verb Verb) (GuestCommand, error) {
	var c GuestCommand
	err := Decode(payload, &c)
	if err == nil && c.Command != verb {
		err = fmt.Errorf("command %q came on control/guest/%s: they must be equal", clip(string(c.Command)), verb)
	}
	if err != nil {
		return answerableGuest(payload, verb), err
	}
	return c, nil
}

// answerableGuest is answerable for commands about guests.
func answerableGuest(payload []byte, verb Verb) GuestCommand {
	c := GuestCommand{Command: verb}
	if len(payload) > MaxPayload || !utf8.Valid(payload) {
		return c
	}
	var top struct {
		Guest     json.RawMessage `json:"guest"`
		RequestID json.RawMessage `json:"request_id"`
	}
	if json.Unmarshal(payload, &top) != nil {
		return c
	}
	if s := text(top.RequestID); checkRequestID(s) == nil {
		c.RequestID = s
	}
	if s := text(top.Guest); CheckName("guest", s) == nil {
		c.Guest = s
	}
	return c
}

// Validate reports all that is wrong with the command.
func (c *GuestCommand) Validate() error {
	var p problems
	p.add(checkGuestVerb(c.Command), checkRequestID(c.RequestID), CheckName("guest", c.Guest),
		checkOptional("gateway", string(c.Gateway), CheckName))
	if c.Command == Add || c.PublicKey != "" {
		p.add(CheckKey("public_key", c.PublicKey))
	}
	for _, name := range c.Cluster {
		p.add(CheckName("cluster", name))
	}
	return p.err()
}
