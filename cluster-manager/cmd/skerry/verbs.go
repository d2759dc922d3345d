package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

func (a *app) moveCommand() *cobra.Command {
	var from, to []string
	var w waiting
	c := &cobra.Command{Use: "move JOB {--from NODE | --to NODE}", Short: "Move a job's instances to other nodes",
		Long: `Start new instances elsewhere, wait until they are healthy, and only then stop the old ones. --from names the nodes to leave, --to the
nodes to go to; one of them is enough.`,
		Example: "  skerry job move web --from board-1 --to board-3\n  skerry job move web --from board-1", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(a.jobNames),
		RunE: running(func(ctx context.Context, args []string) error {
			return a.command(ctx, messages.Command{Command: messages.Move, Job: named(args[0]), From: nodeIDs(from), Worker: nodeIDs(to)}, w)
		})}
	c.Flags().StringSliceVar(&from, "from", nil, "the nodes to leave")
	c.Flags().StringSliceVar(&to, "to", nil, "the nodes to go to")
	addWaiting(c, &w)
	a.completeFlag(c, "from", a.nodeNames)
	a.completeFlag(c, "to", a.nodeNames)
	return c
}

func named(job string) messages.Job { return messages.Job{Name: messages.JobName(job)} }

func (a *app) replicateCommand() *cobra.Command {
	var worker []string
	var w waiting
	c := &cobra.Command{Use: "replicate JOB N", Short: "Set the number of a job's copies", Long: "Set the number of a job's copies. The number is absolute.",
		Example: "  skerry job replicate web 5\n  skerry job replicate web 3 --worker board-2,board-3", Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.completeFirst(a.jobNames),
		RunE: running(func(ctx context.Context, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return usagef("%q is not a number of copies", args[1])
			}
			job := named(args[0])
			job.Replicas = &n
			return a.command(ctx, messages.Command{Command: messages.Replicate, Job: job, Worker: nodeIDs(worker)}, w)
		})}
	c.Flags().StringSliceVar(&worker, "worker", nil, "put new copies on these nodes only")
	addWaiting(c, &w)
	a.completeFlag(c, "worker", a.nodeNames)
	return c
}

func (a *app) deleteCommand() *cobra.Command {
	var worker []string
	var w waiting
	c := &cobra.Command{Use: "delete JOB", Aliases: []string{"rm"}, Short: "Stop a job's instances and forget it",
		Long:    "Stop all instances of a job and forget it; with --worker, stop only its instances on these nodes and keep the rest.",
		Example: "  skerry job delete web\n  skerry job delete web --worker board-2", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFirst(a.jobNames),
		RunE: running(func(ctx context.Context, args []string) error {
			return a.command(ctx, messages.Command{Command: messages.Delete, Job: named(args[0]), Worker: nodeIDs(worker)}, w)
		})}
	c.Flags().StringSliceVar(&worker, "worker", nil, "only the instances on these nodes")
	addWaiting(c, &w)
	a.completeFlag(c, "worker", a.nodeNames)
	return c
}
