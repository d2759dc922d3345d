package broker

import "strings"

// tree holds retained messages by the levels of their topics, so that those under a filter are found without a look at the others. The library's own
// index copies a packet of 800 bytes for each topic, and all that a filter finds at once.
type tree struct {
	below   map[string]*tree // by the next level; nil: there is none
	message *message         // nil: none
}

// sizeBranch is what a level takes that no other topic has.
const sizeBranch = 320

// get returns what is retained at a topic, or nil.
func (t *tree) get(topic string) *message {
	for level := range levels(topic) {
		if t = t.below[level]; t == nil {
			return nil
		}
	}
	return t.message
}

// missing returns how many levels of a topic would be new.
func (t *tree) missing(topic string) int {
	n := 0
	for level := range levels(topic) {
		if t != nil {
			t = t.below[level]
		}
		if t == nil {
			n++
		}
	}
	return n
}

// put makes m what is retained at its topic.
func (t *tree) put(m *message) {
	for level := range levels(m.topic) {
		next := t.below[level]
		if next == nil {
			if t.below == nil {
				t.below = map[string]*tree{}
			}
			next = &tree{}
			t.below[strings.Clone(level)] = next // of a topic that may go before its levels do
		}
		t = next
	}
	t.message = m
}

// remove clears a topic, and the levels that were only there for it, and returns how many that were.
func (t *tree) remove(topic string) (gone int) {
	level, rest, more := strings.Cut(topic, "/")
	next := t.below[level]
	if next == nil {
		return 0
	}
	if more {
		gone = next.remove(rest)
	} else {
		next.message = nil
	}
	if next.message == nil && len(next.below) == 0 {
		delete(t.below, level)
		gone++
	}
	return gone
}

// under hands over what is retained under a filter, in no order. "a/#" is "a" too.
func (t *tree) under(filter string, each func(*message)) {
	level, rest, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		t.all(each)
	case "+":
		for _, next := range t.below {
			next.on(rest, more, each)
		}
	default:
		if next := t.below[level]; next != nil {
			next.on(rest, more, each)
		}
	}
}

// on goes on with the rest of a filter, where there is more of it.
func (t *tree) on(rest string, more bool, each func(*message)) {
	if more {
		t.under(rest, each)
	} else if t.message != nil {
		each(t.message)
	}
}

// all hands over everything.
func (t *tree) all(each func(*message)) {
	if t.message != nil {
		each(t.message)
	}
	for _, next := range t.below {
		next.all(each)
	}
}
