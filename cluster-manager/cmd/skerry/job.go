package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
)

func (a *app) jobCommand() *cobra.Command {
	return group("job", "Deploy, move, replicate, delete and look at jobs", "  skerry job list\n  skerry job deploy -f job.json",
		a.deployCommand(), a.moveCommand(), a.replicateCommand(), a.deleteCommand(), a.jobListCommand(), a.jobStatusCommand(), a.logsCommand())
}

// style is how to write to out.
func (a *app) style() view.Style {
	_, _, terminal := isTerminal(a.out)
	return view.Style{Color: terminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb", Now: time.Now()}
}

func (a *app) jobListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the jobs", Example: "  skerry job list\n  skerry job list --json", Args: cobra.NoArgs,
		RunE: running(func(ctx context.Context, _ []string) error {
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.printJobs(s.raws(messages.JobStatusTopic)) }, messages.AllJobsFilter)
		})}
}

func (a *app) printJobs(raws [][]byte) error {
	if a.json {
		return jsonArray(a.out, raws)
	}
	jobs, err := decodeAll[messages.JobStatus](raws)
	if len(jobs) == 0 && err == nil {
		_, err = fmt.Fprintln(a.err, "no jobs; deploy one with skerry job deploy")
		return err
	}
	fmt.Fprint(a.out, a.style().Jobs(jobs))
	return err
}

func jobTopic(name string) string {
	return messages.Topic{Kind: messages.JobStatusTopic, Job: messages.JobName(name)}.String()
}

func (a *app) jobStatusCommand() *cobra.Command {
	return &cobra.Command{Use: "status JOB", Short: "Show a job with its instances", Example: "  skerry job status web\n  skerry job status web --json",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFirst(a.jobNames), RunE: running(func(ctx context.Context, args []string) error {
			if err := messages.CheckName("job", args[0]); err != nil {
				return usagef("%w", err)
			}
			topic := jobTopic(args[0])
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.printJob(args[0], s.raw[topic]) }, topic)
		})}
}

func (a *app) printJob(name string, raw []byte) error {
	if raw == nil {
		return fmt.Errorf("there is no job %s; skerry job list shows those there are", name)
	}
	var j messages.JobStatus
	if err := messages.DecodeFromManager(raw, &j); err != nil {
		return fmt.Errorf("the status of %s cannot be understood: %w", name, err)
	}
	if a.json {
		return line(a.out, raw)
	}
	_, err := fmt.Fprint(a.out, a.style().Job(j))
	return err
}

// line writes one payload of JSON as it came, on one line.
func line(w io.Writer, raw []byte) error {
	var one bytes.Buffer
	if err := json.Compact(&one, raw); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s\n", one.Bytes())
	return err
}
