package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figure is one line of the table.
type figure struct {
	Name  string  `json:"name"`
	Goal  string  `json:"goal,omitempty"`
	Value float64 `json:"value"` // median
	Unit  string  `json:"unit"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	Runs  int     `json:"runs"`
	// Floor is the median of the same work without Skerry, in the same unit; 0: there is none.
	Floor     float64 `json:"floor,omitempty"`
	FloorName string  `json:"floor_name,omitempty"`
	// Ratio is the median of the ratios run by run, or that of the medians where a run's floor was 0; 0: no floor, or one of 0.
	Ratio float64 `json:"ratio,omitempty"`
	Note  string  `json:"note,omitempty"`
	// Commit is where it was measured, if not at the report's.
	Commit string `json:"commit,omitempty"`
}

// of makes a figure of samples.
func of(name, unit, goal string, samples []float64) figure {
	return figure{Name: name, Goal: goal, Unit: unit, Value: median(samples), Min: slices.Min(samples), Max: slices.Max(samples), Runs: len(samples)}
}

// over adds the floor's samples, taken in turn with the figure's own.
func (f figure) over(name string, own, floor []float64) figure {
	f.Floor, f.FloorName = median(floor), name
	if slices.Min(floor) == 0 { // too little to be seen in each run, or nothing at all, which has no ratio
		if f.Floor > 0 {
			f.Ratio = f.Value / f.Floor
		}
		return f
	}
	ratios := make([]float64, len(own))
	for i := range own {
		ratios[i] = own[i] / floor[i]
	}
	f.Ratio = median(ratios)
	return f
}

// median returns the middle of the samples.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// String returns the figure in one line.
func (f figure) String() string {
	s := fmt.Sprintf("%s: %s %s (%s to %s, %d runs)", f.Name, number(f.Value), f.Unit, number(f.Min), number(f.Max), f.Runs)
	if f.Ratio > 0 {
		s += fmt.Sprintf(", %.2f x %s (%s)", f.Ratio, f.FloorName, number(f.Floor))
	}
	if f.Goal != "" {
		s += ", goal " + f.Goal
	}
	return s
}

func number(v float64) string {
	switch {
	case v == 0 || v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v > 0 && v < 0.1:
		return fmt.Sprintf("%.3f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// report is what one run of bench has found, and where.
type report struct {
	Date    string   `json:"date"`
	Commit  string   `json:"commit"`
	Machine string   `json:"machine"`
	Docker  string   `json:"docker"`
	Go      string   `json:"go"`
	Load    string   `json:"load"` // of the machine before the run
	Figures []figure `json:"figures"`
}

func newReport(ctx context.Context) *report {
	return &report{Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), Commit: output(ctx, "git", "describe", "--always", "--dirty"),
		Machine: machine(ctx), Docker: output(ctx, "docker", "version", "--format", "{{.Server.Version}}"), Go: runtime.Version(), Load: load()}
}

// output returns what a command prints, "unknown" where it fails.
func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machine(ctx context.Context) string {
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, Linux %s", runtime.NumCPU(), model, output(ctx, "uname", "-r"))
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// table renders the figures as Markdown.
func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, commit %s, %s, Docker %s, %s, load before the run %s.\n\n", r.Date, r.Commit, r.Machine, r.Docker, r.Go, r.Load)
	b.WriteString("| figure | median | range (runs) | floor in the same run | ratio | goal |\n|---|---|---|---|---|---|\n")
	for _, f := range r.Figures {
		floor, ratio := "", ""
		if f.FloorName != "" {
			floor = fmt.Sprintf("%s %s: %s", number(f.Floor), f.Unit, f.FloorName)
		}
		if f.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f×", f.Ratio)
		}
		name := f.Name
		if notes := slices.DeleteFunc([]string{f.Note, f.Commit}, func(s string) bool { return s == "" }); len(notes) > 0 {
			name += " (" + strings.Join(notes, "; ") + ")"
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s–%s (%d) | %s | %s | %s |\n", name, number(f.Value), f.Unit, number(f.Min), number(f.Max), f.Runs, floor, ratio, f.Goal)
	}
	return b.String()
}

// deliver prints the table and writes the files that were asked for.
func (r *report) deliver(o options, stdout io.Writer) error {
	fmt.Fprintln(stdout, r.table())
	if o.only != "" && o.out != "" {
		if err := r.keep(o.out); err != nil {
			return err
		}
	}
	if o.compare != "" {
		if err := r.compare(o.compare, stdout); err != nil {
			return err
		}
	}
	if o.out != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.out, append(b, '\n'), 0o600); err != nil {
			return err
		}
	}
	if o.readme != "" {
		return r.insert(o.readme)
	}
	return nil
}

// keep takes from an earlier report what was not measured this time, each figure at its place.
func (r *report) keep(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var old report
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	same := func(f figure) func(figure) bool {
		return func(g figure) bool { return f.Name == g.Name && f.Note == g.Note }
	}
	var figures []figure
	for _, f := range old.Figures {
		if at := slices.IndexFunc(r.Figures, same(f)); at >= 0 {
			f = r.Figures[at]
		} else if f.Commit == "" && old.Commit != r.Commit {
			f.Commit = "at " + old.Commit
		}
		figures = append(figures, f)
	}
	for _, f := range r.Figures {
		if !slices.ContainsFunc(figures, same(f)) {
			figures = append(figures, f)
		}
	}
	r.Figures = figures
	return nil
}

// The table stands between these lines in the Markdown file.
const (
	begin = "<!-- figures: written by make bench -->"
	end   = "<!-- end of figures -->"
)

func (r *report) insert(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(old, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s: no place for the table: it goes between %q and %q", path, begin, end)
	}
	return os.WriteFile(path, slices.Concat(before, []byte(begin+"\n\n"+r.table()+"\n"+end), after), 0o600)
}

// compare prints what has changed since an earlier report, as ratios: of the ratios to the floor where there is one, since
// those are comparable between machines.
func (r *report) compare(path string, stdout io.Writer) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var old report
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(stdout, "Against %s, commit %s, %s:\n", old.Date, old.Commit, old.Machine)
	for _, f := range r.Figures {
		at := slices.IndexFunc(old.Figures, func(o figure) bool { return o.Name == f.Name && o.Note == f.Note })
		if at < 0 {
			fmt.Fprintf(stdout, "  %-60s new\n", f.Name)
			continue
		}
		was, is, what := old.Figures[at].Value, f.Value, "value"
		if f.Ratio > 0 && old.Figures[at].Ratio > 0 {
			was, is, what = old.Figures[at].Ratio, f.Ratio, "ratio to the floor"
		}
		if was == 0 {
			fmt.Fprintf(stdout, "  %-60s %s, was 0\n", f.Name, number(is))
			continue
		}
		fmt.Fprintf(stdout, "  %-60s %.2f x of before (%s, %s to %s)\n", f.Name, is/was, what, number(was), number(is))
	}
	return nil
}
