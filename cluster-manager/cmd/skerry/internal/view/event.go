package view

import (
	"strings"
	"time"

	"skerry.internal/messages"
)

// Event writes an event as one line: when, what, and in words.
func (s Style) Event(e messages.Event) string {
	kind := e.Kind
	switch e.Kind {
	case messages.NodeLostEv, messages.InstanceLost, messages.JobReverted:
		kind = s.paint(red, kind)
	case messages.NodeAwayEv:
		kind = s.paint(yellow, kind)
	}
	pad := max(0, len(messages.InstancePlaced)-len(e.Kind))
	return Clean(e.At.In(s.Now.Location()).Format(time.DateTime) + "  " + kind + strings.Repeat(" ", pad+2) + e.Message)
}
