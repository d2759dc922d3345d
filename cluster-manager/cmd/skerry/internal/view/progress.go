package view

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"skerry.internal/messages"
)

// barWidth is the length of a bar of progress in characters.
const barWidth = 16

// pulled writes how far a pull has come.
func pulled(p messages.Progress) string {
	if p.TotalBytes <= 0 {
		return bytes(p.DoneBytes)
	}
	return fmt.Sprintf("%s of %s (%d %%)", bytes(p.DoneBytes), bytes(p.TotalBytes), percent(p))
}

func percent(p messages.Progress) int64 {
	if p.TotalBytes <= 0 {
		return 0
	}
	return int64(100 * max(0, min(float64(p.DoneBytes)/float64(p.TotalBytes), 1)))
}

func bytes(n int64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d B", max(n, 0))
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	default:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	}
}

func bar(p messages.Progress) string {
	if p.TotalBytes <= 0 {
		return ""
	}
	full := int(percent(p)) * barWidth / 100
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "] "
}

// Sentence says in words how a command ended, or that it began.
func Sentence(r messages.Result) string {
	text := about(r) + " " + string(r.Phase)
	if r.Code != "" {
		text += " (" + string(r.Code) + ")"
	}
	if r.Message != "" {
		text += ": " + r.Message
	}
	return Clean(text)
}

// about names the command that a Result answers, and its job, node or guest.
func about(r messages.Result) string {
	return joined(" of ", string(r.Command), cmp.Or(string(r.Job), string(r.Node), r.Guest))
}

// Result says how a command goes on; "" for what is said as an error.
func (s Style) Result(r messages.Result) string {
	switch r.Phase {
	case messages.Accepted:
		return Clean(fmt.Sprintf("%s %s (rev %d)", about(r), r.Phase, r.Rev))
	case messages.Done:
		return s.paint(green, Sentence(r))
	default:
		return ""
	}
}

// Failure shows what nodes or instances say about a command that did not succeed.
func (s Style) Failure(r messages.Result) string {
	if len(r.Nodes) > 0 {
		return s.Refusal(r.Nodes)
	}
	var rows [][]string
	for _, i := range r.Instances {
		if i.State != messages.Running || !i.Healthy {
			rows = append(rows, []string{string(i.Instance), string(i.Node), s.state(stateWord(i)), orDash(s.why(i))})
		}
	}
	if len(rows) == 0 {
		return ""
	}
	return s.grid([]string{"instance", "node", "state", "reason"}, rows)
}

// doing is the state of an instance in one phrase.
func (s Style) doing(i messages.InstanceReport) string {
	word := s.state(stateWord(i))
	if i.State == messages.Running {
		word += map[bool]string{true: ", healthy", false: ", not healthy"}[i.Healthy]
	}
	if i.Attempt > 0 {
		word += fmt.Sprintf(", attempt %d", i.Attempt)
	}
	return word
}

// Changes finds what is new in the status of a job.
type Changes struct {
	said map[messages.InstanceID]string
	wait map[int]string
}

// quarter is how much of a pull is worth a line of its own, in percent.
const quarter = 25

// Next returns one line for each instance that has changed since the last call.
func (c *Changes) Next(s Style, j messages.JobStatus) []string {
	var lines []string
	said := map[messages.InstanceID]string{}
	for _, i := range j.Instances {
		key := fmt.Sprint(i.State, i.Healthy, i.Attempt, i.Reason, i.Run, i.Node, i.Code)
		if i.Progress != nil {
			key += fmt.Sprint(percent(*i.Progress) / quarter)
		}
		said[i.Instance] = key
		if c.said[i.Instance] != key {
			lines = append(lines, Clean(joined("  ", string(i.Instance), string(i.Node), s.doing(i), s.why(i))))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.said)) {
		if said[id] == "" {
			lines = append(lines, string(id)+"  gone")
		}
	}
	wait := map[int]string{}
	for _, w := range j.Waiting {
		wait[w.Ordinal] = w.Reason
		if c.wait[w.Ordinal] != w.Reason {
			lines = append(lines, Clean(fmt.Sprintf("copy %d  waits for a node  %s", w.Ordinal, w.Reason)))
		}
	}
	c.said, c.wait = said, wait
	return lines
}

// Live returns the lines that show a job under way, at most most of them (0: all).
func (s Style) Live(j messages.JobStatus, since time.Duration, most int) []string {
	state := string(j.State)
	if state == "" {
		state = "gone"
	}
	lines := []string{Clean(fmt.Sprintf("%s  %s  %d/%d running, %d healthy  %s", s.paint(bold, string(j.Job)), s.state(state), j.Running, j.Replicas, j.Healthy, span(since)))}
	rows := make([][]string, 0, len(j.Instances))
	for _, i := range j.Instances {
		why := s.why(i)
		if p := i.Progress; p != nil && i.State == messages.Preparing && p.TotalBytes > 0 {
			why = strings.Replace(why, "pulled ", bar(*p), 1)
		}
		rows = append(rows, []string{"  " + string(i.Instance), string(i.Node), s.doing(i), why})
	}
	lines = append(lines, aligned(rows)...)
	for _, w := range j.Waiting {
		lines = append(lines, Clean(fmt.Sprintf("  copy %d waits for a node: %s", w.Ordinal, w.Reason)))
	}
	if most > 1 && len(lines) > most {
		hidden := len(lines) - most + 1
		lines = append(lines[:most-1], fmt.Sprintf("  … and %d more", hidden))
	}
	return lines
}

// aligned pads the cells of each column but the last to one width. A line feed within a cell becomes a space.
func aligned(rows [][]string) []string {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			r[i] = strings.ReplaceAll(Clean(c), "\n", " ")
			widths[i] = max(widths[i], Width(r[i]))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-Width(c)+2))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// Width is how many columns a line takes on a terminal.
func Width(line string) int { return text.StringWidthWithoutEscSequences(line) }

// Cut shortens a line to a number of columns.
func Cut(line string, width int) string { return text.Trim(line, max(width, 1)) }
