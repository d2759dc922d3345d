package view

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"skerry.internal/messages"
)

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// Trace shows which instance a request goes to, over which path, and how long that takes.
func (s Style) Trace(from string, a messages.TraceAnswer) string {
	choice := ""
	if a.Service != "" {
		choice = joined(", ", joined(" ", string(a.Service), string(a.Policy)), fmt.Sprintf("%d healthy", a.Healthy))
	}
	trip := ""
	switch {
	case a.Lost:
		trip = s.paint(red, "no reply")
	case a.RTTMS > 0:
		trip = RoundTrip(a.RTTMS)
		if a.Again {
			trip += ", after a first packet without a reply"
		}
	}
	return s.facts([][2]string{{"from", from}, {"name", a.Name}, {"addresses", strings.Join(a.Addresses, "\n")}, {"service", choice}, {"instance", chosen(a)},
		{"path", s.way(a)}, {"round trip", trip}, {"error", s.paint(red, Clean(a.Error))}})
}

// chosen names the instance that answered, and where it is.
func chosen(a messages.TraceAnswer) string {
	text := string(a.Instance)
	if a.Node != "" {
		text = joined(" on ", text, string(a.Node))
	}
	if a.Address != "" {
		text = joined(" at ", text, a.Address)
	}
	return text
}

// way says how packets get there.
func (s Style) way(a messages.TraceAnswer) string {
	path := ""
	switch {
	case a.Local:
		path = "on the same node"
	case a.Path != "":
		path = joined(" to ", s.path(a.Path), a.Endpoint)
	}
	if a.MTU > 0 && path != "" {
		path += ", MTU " + strconv.Itoa(a.MTU)
	}
	return path
}

// Ping writes one answer of many.
func (s Style) Ping(a messages.TraceAnswer) string {
	text := fmt.Sprintf("%d: %s", a.N+1, chosen(a))
	switch {
	case a.Lost || a.Error != "":
		why := a.Error
		if why == "" {
			why = "no reply"
		}
		text = joined("  ", text, s.paint(red, Clean(why)))
	default:
		text = joined("  ", text, RoundTrip(a.RTTMS), s.way(a))
	}
	return Clean(text)
}

// Pings sums up the answers to a ping.
type Pings struct {
	sent, lost    int
	min, max, sum float64
}

// Add counts one answer.
func (p *Pings) Add(a messages.TraceAnswer) {
	p.sent++
	if a.Lost || a.Error != "" {
		p.lost++
		return
	}
	if p.sent-p.lost == 1 || a.RTTMS < p.min {
		p.min = a.RTTMS
	}
	p.max, p.sum = max(p.max, a.RTTMS), p.sum+a.RTTMS
}

// Answered returns how many were answered.
func (p *Pings) Answered() int { return p.sent - p.lost }

// Text is the sum in words.
func (p *Pings) Text() string {
	if p.sent == 0 {
		return "nothing was sent"
	}
	text := fmt.Sprintf("%d sent, %d answered, %d %% lost", p.sent, p.Answered(), 100*p.lost/p.sent)
	if n := p.Answered(); n > 0 {
		text += fmt.Sprintf("; round trip %s at least, %s on average, %s at most", RoundTrip(p.min), RoundTrip(p.sum/float64(n)), RoundTrip(p.max))
	}
	return text
}
