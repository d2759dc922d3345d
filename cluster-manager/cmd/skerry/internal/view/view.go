// Package view turns statuses into text for people: tables, details, and the lines of a command under way. It knows nothing of
// connections, and prints nothing itself.
package view

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"skerry.internal/messages"
)

// Style says how to write.
type Style struct {
	Color bool
	Now   time.Time // what ages are counted from
}

// grid lays out rows below a header. Columns are as wide as what they hold: a name that was cut could not be used again.
func (s Style) grid(header []string, rows [][]string) string {
	t := table.NewWriter()
	t.SetStyle(table.Style{Box: table.BoxStyle{MiddleVertical: "  ", UnfinishedRow: ""}, Options: table.Options{SeparateColumns: true}})
	titles := make(table.Row, len(header))
	for i, h := range header {
		titles[i] = s.paint(bold, strings.ToUpper(h))
	}
	t.AppendHeader(titles)
	for _, r := range rows {
		t.AppendRow(cells(r))
	}
	t.SuppressTrailingSpaces()
	return t.Render() + "\n"
}

func cells(row []string) table.Row {
	out := make(table.Row, len(row))
	for i, c := range row {
		out[i] = Clean(c)
	}
	return out
}

// facts lays out names and what they stand for, without those that stand for nothing.
func (s Style) facts(pairs [][2]string) string {
	width := 0
	for _, p := range pairs {
		if p[1] != "" {
			width = max(width, len(p[0]))
		}
	}
	var b strings.Builder
	for _, p := range pairs {
		if p[1] == "" {
			continue
		}
		name := p[0] + ":" + strings.Repeat(" ", width-len(p[0]))
		fmt.Fprintf(&b, "%s  %s\n", s.paint(bold, name), strings.ReplaceAll(Clean(p[1]), "\n", "\n"+strings.Repeat(" ", width+3)))
	}
	return b.String()
}

// Clean replaces what would command a terminal: the text comes from the network. Line feeds and the colours of this package stay.
func Clean(s string) string {
	safe := func(r rune) bool { return r == '\n' || r == '\t' || (r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f)) }
	var b strings.Builder
	for i, r := range s {
		switch {
		case safe(r), r == '\x1b' && ours(s[i:]):
			b.WriteRune(r)
		default:
			b.WriteRune('�')
		}
	}
	return b.String()
}

// ours reports whether an escape sequence is one that sets a colour.
func ours(s string) bool {
	rest, found := strings.CutPrefix(s, "\x1b[")
	if !found {
		return false
	}
	rest = strings.TrimLeft(rest, "0123456789;")
	return strings.HasPrefix(rest, "m")
}

// color is the number of a graphic rendition of ECMA-48.
type color int

const (
	bold   color = 1
	faint  color = 2
	red    color = 31
	green  color = 32
	yellow color = 33
)

func (s Style) paint(c color, word string) string {
	if !s.Color || word == "" {
		return word
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, word)
}

// state colours a word by what it means for a person.
func (s Style) state(word string) string {
	switch word {
	case string(messages.NodeOnline), string(messages.Running), string(messages.JobDone):
		return s.paint(green, word)
	case string(messages.NodeLost), string(messages.FailedState):
		return s.paint(red, word)
	case string(messages.Stopped), string(messages.ExitedState), string(messages.NodeExpected):
		return s.paint(faint, word)
	default:
		return s.paint(yellow, word)
	}
}

// Age writes how long ago a time was, in its two largest units; "-" for no time.
func (s Style) Age(t messages.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(s.Now.Sub(t.Time))
}

func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// when writes a time with its age.
func (s Style) when(t messages.Time) string {
	if t.IsZero() {
		return ""
	}
	exact := t.In(s.Now.Location()).Format(time.RFC3339)
	if t.After(s.Now) {
		return fmt.Sprintf("in %s (%s)", span(t.Sub(s.Now)), exact)
	}
	return fmt.Sprintf("%s ago (%s)", s.Age(t), exact)
}

// number writes a figure without what it does not have.
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// megabytes writes MiB in the unit that a person would take.
func megabytes(mb int64) string {
	if mb < 1024 {
		return fmt.Sprintf("%d MiB", mb)
	}
	return fmt.Sprintf("%.1f GiB", float64(mb)/1024)
}

// orDash stands in for what is not there.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
