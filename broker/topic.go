package broker

import (
	"errors"
	"strings"
	"unicode/utf8"
)

var (
	errTopicEmpty  = errors.New("topic is empty")
	errTopicLong   = errors.New("topic is too long or too deep")
	errTopicChars  = errors.New("topic is not valid UTF-8 without NUL")
	errTopicWild   = errors.New("topic holds a wildcard")
	errFilterWild  = errors.New("filter has a wildcard inside a level or # before its end")
	errFilterShare = errors.New("shared filter has no group or nothing after it")
)

// validName checks what topics and filters have in common.
func validName(s string) error {
	switch {
	case s == "":
		return errTopicEmpty
	case len(s) > maxTopic || strings.Count(s, "/") >= maxLevels:
		return errTopicLong
	case !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0:
		return errTopicChars
	}
	return nil
}

// validTopic checks a topic that is published to.
func validTopic(s string) error {
	if err := validName(s); err != nil {
		return err
	}
	if strings.ContainsAny(s, "+#") {
		return errTopicWild
	}
	return nil
}

// validFilter checks a filter and returns the part of it that topics are matched with: all of it, or what follows
// "$share/group/". The index takes that prefix in any case of letters, so this does too.
func validFilter(s string) (inner string, err error) {
	if err := validName(s); err != nil {
		return "", err
	}
	inner = s
	if first, rest, _ := strings.Cut(s, "/"); strings.EqualFold(first, "$share") {
		group, filter, ok := strings.Cut(rest, "/")
		if !ok || group == "" || filter == "" || strings.ContainsAny(group, "+#") {
			return "", errFilterShare
		}
		inner = filter
	}
	for level, last := range levels(inner) {
		if strings.ContainsAny(level, "+#") && len(level) > 1 || level == "#" && !last {
			return "", errFilterWild
		}
	}
	return inner, nil
}

// levels yields each level of s and whether it is the last one.
func levels(s string) func(func(string, bool) bool) {
	return func(yield func(string, bool) bool) {
		for {
			level, rest, more := strings.Cut(s, "/")
			if !yield(level, !more) || !more {
				return
			}
			s = rest
		}
	}
}
