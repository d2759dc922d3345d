// Package messages is the wire contract between clients, a cluster manager and its nodes: every topic, payload, state and
// code, with builders, parsers and validation. It imports the standard library only and does no input or output, so that any
// program can speak to Skerry by importing it alone.
//
// Decoding follows three rules: a payload above its size limit is refused before it is parsed, unknown fields pass (nodes are
// upgraded one by one), and a known field with a wrong value is refused with an error that names the field.
package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Protocol is the number of this contract, said in both directions at registration.
const Protocol = 1

// MaxPayload is the largest payload in bytes that a receiver parses: 256 KiB holds some hundred instances with full specs.
const MaxPayload = 256 << 10

// MaxFromManager is the largest payload in bytes that a manager sends: a sync carries all assignments of one node and a job's
// status all of its instances, so they may exceed MaxPayload.
const MaxFromManager = 1 << 20

// MaxPacket is the largest MQTT packet in bytes that a manager's broker takes from anybody, and so the largest that a node or an operator's command may be
// sent: a payload with its topic and packet id.
const MaxPacket = MaxFromManager + 4<<10

// ErrTooLarge is wrapped by decoding errors of payloads above their limit.
var ErrTooLarge = errors.New("payload too large")

// validator is what a payload implements so that Decode can check it whole.
type validator interface {
	Validate() error
}

// Decode parses one payload of at most MaxPayload bytes into v and validates it.
func Decode(payload []byte, v validator) error {
	return decode(payload, MaxPayload, v)
}

// DecodeFromManager parses one payload of at most MaxFromManager bytes into v and validates it.
func DecodeFromManager(payload []byte, v validator) error {
	return decode(payload, MaxFromManager, v)
}

func decode(payload []byte, limit int, v validator) error {
	if len(payload) > limit {
		return fmt.Errorf("%d bytes, at most %d: %w", len(payload), limit, ErrTooLarge)
	}
	if !utf8.Valid(payload) {
		return errors.New("not valid UTF-8")
	}
	trimmed := bytes.TrimLeft(payload, " \t\r\n")
	if len(trimmed) == 0 {
		return errors.New("empty payload, want a JSON object")
	}
	if trimmed[0] != '{' {
		return errors.New("want a JSON object")
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return explain(err)
	}
	return v.Validate()
}

// Encode renders one payload. It panics only for a type of this package that cannot be marshalled, which is a bug here.
// It does not write <, > and & as escapes of six bytes each: that could lift an accepted job above the limit of its receiver.
func Encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("messages: encode %T: %v", v, err))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Duration is a length of time that is written as a string such as "30s" or "1m30s".
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns the form that is written.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a string such as "30s"; numbers are refused because their unit would be a guess.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return wrongType(b, d)
	}
	if s == "" {
		*d = 0
		return nil
	}
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return wrongType(b, d)
	}
	*d = Duration(parsed)
	return nil
}

// maxClientID is the longest ClientID, in bytes of the number as written or of the string's text: longer ones are content.
const maxClientID = 128

// ClientID is a key that a client gives to a job: a JSON number or string that is kept and echoed as it came. Of a string the
// value is kept, not the choice of escapes, so that equal keys are equal and what was accepted once is accepted again.
type ClientID struct{ raw string }

// NumberID returns the ClientID that is written as the number n.
func NumberID(n int64) ClientID { return ClientID{fmt.Sprintf("%d", n)} }

// IsZero reports whether no ClientID was given.
func (c ClientID) IsZero() bool { return c.raw == "" }

// String returns the ClientID as it stands in JSON.
func (c ClientID) String() string { return c.raw }

// MarshalJSON writes the ClientID as it came.
func (c ClientID) MarshalJSON() ([]byte, error) {
	if c.raw == "" {
		return []byte("null"), nil
	}
	return []byte(c.raw), nil
}

// UnmarshalJSON takes a number or a string of at most 128 bytes.
func (c *ClientID) UnmarshalJSON(b []byte) error {
	var v any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return wrongType(b, c)
	}
	switch v := v.(type) {
	case nil:
		*c = ClientID{}
		return nil
	case json.Number:
		if len(v) <= maxClientID {
			*c = ClientID{v.String()}
			return nil
		}
	case string:
		if len(v) <= maxClientID {
			*c = ClientID{string(Encode(v))}
			return nil
		}
	}
	return wrongType(b, c)
}
