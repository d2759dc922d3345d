package messages

import (
	"encoding/json"
	"strings"
	"time"
)

// Time is a point in time that is written as RFC 3339 with milliseconds in UTC. The zero Time is written as an empty string.
type Time struct{ time.Time }

// timeLayout is RFC 3339 with exactly three digits of milliseconds.
const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// At returns t as a Time, cut to milliseconds in UTC, so that what is sent equals what is read back. A time in a year that
// RFC 3339 cannot write, as a board with a broken clock may have it, becomes the zero Time.
func At(t time.Time) Time {
	t = t.UTC().Truncate(time.Millisecond)
	if t.IsZero() || t.Year() < 0 || t.Year() > 9999 {
		return Time{}
	}
	return Time{t}
}

// MarshalJSON writes the time in the form that the contract asks for.
func (t Time) MarshalJSON() ([]byte, error) {
	t = At(t.Time)
	if t.IsZero() {
		return []byte(`""`), nil
	}
	return []byte(`"` + t.Format(timeLayout) + `"`), nil
}

// UnmarshalJSON reads RFC 3339 with or without fractions of a second; an empty string is the zero Time.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return wrongType(b, t)
	}
	if s == "" {
		*t = Time{}
		return nil
	}
	parsed, err := time.Parse(time.RFC3339Nano, s)
	// Parse takes an hour of one digit and a decimal comma, which RFC 3339 and other readers do not.
	if err != nil || s[13] != ':' || strings.Contains(s, ",") {
		return wrongType(b, t)
	}
	if y := parsed.UTC().Year(); y < 0 || y > 9999 {
		return wrongType(b, t)
	}
	*t = At(parsed)
	return nil
}
