// Command bench measures what Skerry promises, each figure beside its floor: the same work without Skerry, interleaved in the same
// run. It starts the built programs of bin/ on free ports of loopback, uses the real Docker engine, and ends what it started. The
// figures of one machine compare with one another only; a shared one is noisy, so medians and ratios are what counts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	bin     string // folder of the programs
	only    string // comma separated names; empty: all
	runs    int    // of each figure
	fleet   int    // simulated nodes
	out     string // JSON file for the results; empty: none
	compare string // JSON file to compare with; empty: none
	readme  string // Markdown file whose table is replaced; empty: none
	// profiles is the folder for profiles of the daemons and their flame graphs; empty: none are taken, and they cost nothing.
	profiles string
}

// measurement is one group of figures.
type measurement struct {
	name string
	what string
	run  func(context.Context, *bench) ([]figure, error)
}

// measurements lists all groups in the order of the table.
func measurements() []measurement {
	return []measurement{
		{"deploy", "a command until its container runs", measureDeploy},
		{"overlay", "the same on the overlay", measureOverlay},
		{"commands", "commands acknowledged a second", measureCommands},
		{"placements", "placements a second through the manager's core", measurePlacements},
		{"fleet", "many simulated nodes on one manager", measureFleet},
		{"others", "answers to a client while others attack", measureOthers},
		{"idle", "what idle daemons use", measureIdle},
		{"boot", "a node's containers back without a manager", measureBoot},
		{"recover", "a killed manager has its nodes again", measureRecover},
		{"move", "requests that fail during moves", measureMove},
		{"loss", "a lost node's instance runs elsewhere", measureLoss},
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		if serve, ok := map[string]func(context.Context, []string, io.Writer) error{serveMode: serveManager, bareMode: serveBare, restMode: serveRest}[args[0]]; ok {
			return serve(ctx, args[1:], stderr)
		}
	}
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.bin, "bin", "bin", "folder of the built programs")
	fs.StringVar(&o.only, "only", "", "measure only these, separated by commas")
	fs.IntVar(&o.runs, "runs", 7, "how often each figure is taken; at least 5 for one to quote")
	fs.IntVar(&o.fleet, "fleet", 10_000, "simulated nodes")
	fs.StringVar(&o.out, "out", "", "write the results as JSON to this file; with -only, what was not measured stays")
	fs.StringVar(&o.compare, "compare", "", "print the change against this JSON file")
	fs.StringVar(&o.readme, "readme", "", "replace the table in this Markdown file; with -only, what was not measured stays as -out has it")
	fs.StringVar(&o.profiles, "profiles", "", "leave profiles of the daemons and their flame graphs in this folder; the figures are not to be quoted then")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return err
		}
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "skerry-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{options: o, dir: dir, log: stderr}
	defer b.close()
	if b.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	report := newReport(ctx)
	for i, m := range chosen {
		fmt.Fprintf(stderr, "[%d/%d] %s: %s\n", i+1, len(chosen), m.name, m.what)
		figures, err := m.run(ctx, b)
		b.close()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		report.Figures = append(report.Figures, figures...)
		for _, f := range figures {
			fmt.Fprintln(stderr, "  ", f)
		}
	}
	return report.deliver(o, stdout)
}

func choose(only string) ([]measurement, error) {
	all := measurements()
	if only == "" {
		return all, nil
	}
	var chosen []measurement
	for name := range strings.SplitSeq(only, ",") {
		at := slices.IndexFunc(all, func(m measurement) bool { return m.name == name })
		if at < 0 {
			names := make([]string, len(all))
			for i, m := range all {
				names[i] = m.name
			}
			return nil, fmt.Errorf("no measurement %q: there are %s", name, strings.Join(names, ", "))
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}
