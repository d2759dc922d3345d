package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

// completionTime is how long a shell may wait for names.
const completionTime = time.Second

// completion is what a shell is offered.
type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeFirst completes the first argument by names and offers nothing for the others.
func (a *app) completeFirst(names func(context.Context) []string) completion {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.offer(cmd, begun, names), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeAll completes every argument by the names that were not given before.
func (a *app) completeAll(names func(context.Context) []string) completion {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		offers := slices.DeleteFunc(a.offer(cmd, begun, names), func(n string) bool { return slices.Contains(args, n) })
		return offers, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag that takes several names with commas between them.
func (a *app) completeFlag(c *cobra.Command, flag string, names func(context.Context) []string) {
	err := c.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		before, last := "", begun
		if i := strings.LastIndexByte(begun, ','); i >= 0 {
			before, last = begun[:i+1], begun[i+1:]
		}
		offers := a.offer(cmd, last, names)
		for i := range offers {
			offers[i] = before + offers[i]
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
	if err != nil {
		panic("skerry: completion of " + flag + ": " + err.Error()) // a flag that does not exist is a bug here
	}
}

// offer returns the names that begin so. Without a broker there are none: a shell has no place for an error.
func (a *app) offer(cmd *cobra.Command, begun string, names func(context.Context) []string) []string {
	if a.readFlags(cmd) != nil {
		return nil
	}
	a.address.timeout = completionTime
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	var out []string
	for _, n := range names(ctx) {
		if strings.HasPrefix(n, begun) {
			out = append(out, n)
		}
	}
	return out
}

func (a *app) jobNames(ctx context.Context) []string {
	return a.names(ctx, messages.AllJobsFilter, func(t messages.Topic, _ []byte) []string { return []string{string(t.Job)} })
}

func (a *app) nodeNames(ctx context.Context) []string {
	return a.names(ctx, messages.AllNodesFilter, func(t messages.Topic, _ []byte) []string { return []string{string(t.Node)} })
}

func (a *app) instanceNames(ctx context.Context) []string {
	return a.names(ctx, messages.AllJobsFilter, func(_ messages.Topic, raw []byte) []string {
		var j messages.JobStatus
		if messages.DecodeFromManager(raw, &j) != nil {
			return nil
		}
		var ids []string
		for _, i := range j.Instances {
			ids = append(ids, string(i.Instance))
		}
		return ids
	})
}

// names reads names from what is retained.
func (a *app) names(ctx context.Context, filter string, of func(messages.Topic, []byte) []string) []string {
	var names []string
	err := a.read(ctx, func(_ *link, s *snapshot) error {
		for _, topic := range slices.Sorted(maps.Keys(s.raw)) {
			if t, err := messages.ParseTopic(topic); err == nil {
				names = append(names, of(t, s.raw[topic])...)
			}
		}
		return nil
	}, filter)
	if err != nil {
		return nil
	}
	return names
}
