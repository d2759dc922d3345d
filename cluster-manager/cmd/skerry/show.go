package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
)

// shower tells a person or a program how a command goes.
type shower interface {
	result(r messages.Result, raw []byte)
	status(s messages.JobStatus)
	note(text string)
	tick()                           // time has passed
	failed(r messages.Result) string // what to say at the end of a command that did not succeed
	close()
}

// shower returns the one that fits where the output goes.
func (a *app) shower() shower {
	_, _, terminal := isTerminal(a.out)
	switch {
	case a.json:
		return &jsonShow{out: a.out, err: a.err}
	case terminal && a.getenv("TERM") != "dumb":
		return &liveShow{lineShow: lineShow{app: a}}
	default:
		return &lineShow{app: a}
	}
}

// jsonShow prints the Results as they came.
type jsonShow struct{ out, err io.Writer }

func (s *jsonShow) result(_ messages.Result, raw []byte) { fmt.Fprintf(s.out, "%s\n", raw) }
func (s *jsonShow) status(messages.JobStatus)            {}
func (s *jsonShow) note(text string)                     { fmt.Fprintln(s.err, "skerry:", text) }
func (s *jsonShow) tick()                                {}
func (s *jsonShow) failed(r messages.Result) string      { return view.Sentence(r) }
func (s *jsonShow) close()                               {}

// lineShow prints one line for each change.
type lineShow struct {
	app     *app
	changes view.Changes
}

func (s *lineShow) result(r messages.Result, _ []byte) {
	if text := s.app.style().Result(r); text != "" {
		fmt.Fprintln(s.app.out, text)
	}
}

func (s *lineShow) status(j messages.JobStatus) {
	for _, l := range s.changes.Next(s.app.style(), j) {
		fmt.Fprintln(s.app.out, l)
	}
}

func (s *lineShow) note(text string) { fmt.Fprintln(s.app.err, "skerry:", text) }
func (s *lineShow) tick()            {}
func (s *lineShow) close()           {}

// failed adds what each node or instance says.
func (s *lineShow) failed(r messages.Result) string {
	style := s.app.style()
	_, _, terminal := isTerminal(s.app.err)
	style.Color = style.Color && terminal
	text := view.Sentence(r)
	if detail := style.Failure(r); detail != "" {
		text += "\n" + strings.TrimRight(detail, "\n")
	}
	return text
}

// liveShow redraws a few lines in place.
type liveShow struct {
	lineShow
	job   *messages.JobStatus
	drawn []string // the lines on the screen
	began time.Time
}

func (s *liveShow) result(r messages.Result, raw []byte) {
	s.erase()
	if r.Last() && s.job != nil && s.job.State != "" { // of a job that is gone there is nothing to leave on the screen
		for _, l := range s.app.style().Live(*s.job, time.Since(s.began), 0) {
			fmt.Fprintln(s.app.out, l)
		}
	}
	if r.Last() {
		s.job = nil
	}
	s.lineShow.result(r, raw)
}

func (s *liveShow) status(j messages.JobStatus) {
	if s.job == nil {
		s.began = time.Now()
	}
	s.job = &j
	s.draw()
}

func (s *liveShow) note(text string) {
	s.erase()
	s.lineShow.note(text)
	s.draw()
}

func (s *liveShow) tick() { s.draw() }

// draw puts the lines on the screen, each cut to its width so that it stays one line.
func (s *liveShow) draw() {
	if s.job == nil {
		return
	}
	width, height, ok := isTerminal(s.app.out)
	if !ok {
		return
	}
	lines := s.app.style().Live(*s.job, time.Since(s.began), height-2)
	for i := range lines {
		lines[i] = view.Cut(lines[i], width-1)
	}
	s.erase()
	s.drawn = lines
	fmt.Fprint(s.app.out, strings.Join(lines, "\n")+"\n")
}

// erase removes what was drawn. Where the terminal has become narrower since, a line takes several rows.
func (s *liveShow) erase() {
	if len(s.drawn) == 0 {
		return
	}
	width, _, _ := isTerminal(s.app.out)
	rows := 0
	for _, l := range s.drawn {
		rows += max(1, (view.Width(l)+max(width, 1)-1)/max(width, 1))
	}
	fmt.Fprintf(s.app.out, "\x1b[%dA\r\x1b[J", rows)
	s.drawn = nil
}

// close leaves the last state on the screen.
func (s *liveShow) close() { s.drawn = nil }
