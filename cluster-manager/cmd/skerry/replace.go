package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

func (a *app) nodeReplaceCommand() *cobra.Command {
	var w waiting
	c := &cobra.Command{Use: "replace NODE", Short: "Give a node's name to the board that registers with it next",
		Long: `Give the name of a node to the board that registers with it next: after a board broke, or its disk was made anew, so that it comes with a
new key and is refused. The name and what is placed there stay. The old board is not listened to any more from now on; switch it off.
Whoever registers first with the name gets it, whatever its key.`,
		Example: "  skerry node replace board-1", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFirst(a.nodeNames),
		RunE: running(func(ctx context.Context, args []string) error { return a.orderNodes(ctx, messages.Replace, args, w) })}
	addWaiting(c, &w)
	return c
}

func (a *app) nodeRemoveCommand() *cobra.Command {
	var w waiting
	c := &cobra.Command{Use: "remove NODE...", Aliases: []string{"rm"}, Short: "Forget nodes that are not connected",
		Long: `Forget nodes that are not connected; end the engine of one that is first. What was placed there is placed elsewhere at once. A core node stays
listed as expected. A removed node that comes back joins as a new one, and stops what it still runs.`,
		Example: "  skerry node remove board-4\n  skerry node remove board-4 board-5", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeAll(a.nodeNames),
		RunE:              running(func(ctx context.Context, args []string) error { return a.orderNodes(ctx, messages.Remove, args, w) })}
	addWaiting(c, &w)
	return c
}

// orderNodes sends a command for each node.
func (a *app) orderNodes(ctx context.Context, verb messages.Verb, nodes []string, w waiting) error {
	return a.orderEach(ctx, nodes, w, func(node, request string) (order, error) {
		cmd := messages.NodeCommand{Command: verb, Node: messages.NodeID(node), RequestID: request}
		return order{request: request, topic: messages.Topic{Kind: messages.NodeCommandTopic, Verb: verb}.String(), payload: messages.Encode(cmd),
			see: "skerry node status " + node}, cmd.Validate()
	})
}

// orderEach sends a command for each name, one after the other, and goes on where one is refused. Nothing is sent where one cannot be.
func (a *app) orderEach(ctx context.Context, names []string, w waiting, build func(name, request string) (order, error)) error {
	if w.request != "" && len(names) > 1 {
		return usagef("--request-id goes with one name: each is a request of its own")
	}
	var orders []order
	for _, n := range names {
		o, err := build(n, w.requestID())
		if err != nil {
			return invalid(err)
		}
		orders = append(orders, o)
	}
	var errs []error
	for _, o := range orders {
		err := a.pursue(ctx, o, w)
		if code := exitCode(err); err != nil && code != exitFailed {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
