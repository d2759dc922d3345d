package messages

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// wrongType is what an UnmarshalJSON of this package returns: package json adds to this type of error, and to no other, the
// name of the field.
func wrongType(value []byte, into any) error {
	return &json.UnmarshalTypeError{Value: clip(string(value)), Type: reflect.TypeOf(into).Elem()}
}

// explain turns an error of package json into one that names the field as it stands in the payload and says what belongs there.
func explain(err error) error {
	wrong, ok := errors.AsType[*json.UnmarshalTypeError](err)
	if !ok {
		return fmt.Errorf("parse: %w", err)
	}
	levels := strings.Split(wrong.Field, ".")
	kept := levels[:0]
	for _, level := range levels {
		if level != "Spec" && level != "InstanceStatus" && level != "OverlayUse" && level != "Guest" { // embedded structs have no level of their own
			kept = append(kept, level)
		}
	}
	return fmt.Errorf("%s: want %s, not %s", strings.Join(kept, "."), wanted(wrong.Type), clip(wrong.Value))
}

// wanted says in words what a field of type t holds.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Time]():
		return "a time in RFC 3339, such as \"2026-01-02T15:04:05.000Z\""
	case reflect.TypeFor[Duration]():
		return "a string with a unit, such as \"30s\" or \"1m30s\""
	case reflect.TypeFor[ClientID]():
		return fmt.Sprintf("a number or a string of at most %d bytes", maxClientID)
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Uint64:
		return "a whole number of 0 or more"
	case reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	default:
		return "an object"
	}
}

// maxProblems bounds what one validation reports: a payload of 256 KiB could otherwise fill a log line of many MiB.
const maxProblems = 16

// problems collects errors up to maxProblems and counts the rest. The zero problems are ready to use.
type problems struct {
	errs []error
	more int
}

// add takes up what is not nil.
func (p *problems) add(errs ...error) {
	for _, err := range errs {
		switch {
		case err == nil:
		case len(p.errs) < maxProblems:
			p.errs = append(p.errs, err)
		default:
			p.more++
		}
	}
}

// err joins what was added.
func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(p.errs, fmt.Errorf("and %d more", p.more))...)
	}
	return errors.Join(p.errs...)
}
