package messages

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// NodeID names a node in its cluster; it is a DNS label.
type NodeID string

// JobName names a job in its cluster; it is a DNS label and the job's identity.
type JobName string

// InstanceID names one life of one copy of a job: "web.0.2" is the third life (generation 2) of the first copy (ordinal 0) of web.
type InstanceID string

// maxNumber bounds ordinals and generations so that they fit an int on every processor.
const maxNumber = 1 << 30

// NewInstanceID builds the InstanceID of one generation of one ordinal of a job.
func NewInstanceID(job JobName, ordinal, generation int) InstanceID {
	return InstanceID(string(job) + "." + strconv.Itoa(ordinal) + "." + strconv.Itoa(generation))
}

// Split returns the parts of the id, or an error where it does not have the form <job>.<ordinal>.<generation>.
func (id InstanceID) Split() (job JobName, ordinal, generation int, err error) {
	parts := strings.Split(string(id), ".")
	if len(parts) != 3 {
		return "", 0, 0, fmt.Errorf("instance %q: want <job>.<ordinal>.<generation>", clip(string(id)))
	}
	if err := CheckName("job", parts[0]); err != nil {
		return "", 0, 0, fmt.Errorf("instance %q: %w", clip(string(id)), err)
	}
	ordinal, err = number(parts[1])
	if err == nil {
		generation, err = number(parts[2])
	}
	if err != nil {
		return "", 0, 0, fmt.Errorf("instance %q: %w", clip(string(id)), err)
	}
	return JobName(parts[0]), ordinal, generation, nil
}

// Validate reports whether the id has the form of an InstanceID.
func (id InstanceID) Validate() error {
	_, _, _, err := id.Split()
	return err
}

// number parses a canonical decimal: no sign, no leading zero, at most maxNumber.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > maxNumber || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", clip(s), maxNumber)
	}
	return n, nil
}

// CheckName reports whether s is a DNS label, the form of every name in the contract. What says which name is meant.
func CheckName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: name missing", what)
	case len(s) > 63:
		return fmt.Errorf("%s %q: longer than 63 characters", what, clip(s))
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("%s %q: must begin and end with a letter or digit", what, s)
	}
	for _, r := range s {
		if r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return fmt.Errorf("%s %q: only lower-case letters, digits and hyphens", what, s)
		}
	}
	return nil
}

// checkRequestID reports whether s can stand as one level of a topic. Empty passes: a request id is optional.
func checkRequestID(s string) error {
	if len(s) > 64 {
		return errors.New("request_id: longer than 64 characters")
	}
	for _, r := range s {
		letter := (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9')
		if !letter && r != '-' && r != '_' && r != '.' && r != ':' {
			return fmt.Errorf("request_id %q: want only letters, digits and any of -_.: here", s)
		}
	}
	return nil
}

// ValidRequestID reports whether s can name a request: not empty and usable as one level of a topic.
func ValidRequestID(s string) bool { return s != "" && checkRequestID(s) == nil }

// clip shortens what came from outside for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}
