package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "Look at the nodes of the cluster, replace and remove them", "  skerry node list\n  skerry node status board-1\n  skerry node replace board-1",
		a.nodeListCommand(), a.nodeStatusCommand(), a.nodeReplaceCommand(), a.nodeRemoveCommand())
}

func (a *app) nodeListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the nodes, core and spare", Example: "  skerry node list\n  skerry node list --json",
		Args: cobra.NoArgs, RunE: running(func(ctx context.Context, _ []string) error {
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.printNodes(s.raws(messages.NodeStatusTopic)) }, messages.AllNodesFilter)
		})}
}

func (a *app) printNodes(raws [][]byte) error {
	if a.json {
		return jsonArray(a.out, raws)
	}
	nodes, err := decodeAll[messages.NodeStatus](raws)
	if len(nodes) == 0 && err == nil {
		_, err = fmt.Fprintln(a.err, "no nodes; start a node engine on a board and point it at this manager")
		return err
	}
	fmt.Fprint(a.out, a.style().Nodes(nodes))
	return err
}

// telemetryPatience is how long a node that measures nothing new may be silent: six times the usual interval of 5 s, and a little.
const telemetryPatience = 35 * time.Second

func (a *app) nodeStatusCommand() *cobra.Command {
	var await bool
	c := &cobra.Command{Use: "status NODE", Short: "Show all that is known of a node",
		Example: "  skerry node status board-1\n  skerry node status board-1 --telemetry", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(a.nodeNames),
		RunE: running(func(ctx context.Context, args []string) error {
			if err := messages.CheckName("node", args[0]); err != nil {
				return usagef("%w", err)
			}
			return a.nodeStatus(ctx, messages.NodeID(args[0]), await)
		})}
	c.Flags().BoolVar(&await, "telemetry", false, fmt.Sprintf("wait for the node's next telemetry, up to %s", telemetryPatience))
	return c
}

func (a *app) nodeStatus(ctx context.Context, id messages.NodeID, await bool) error {
	status := messages.Topic{Kind: messages.NodeStatusTopic, Node: id}.String()
	information := messages.Topic{Kind: messages.InformationTopic, Node: id}.String()
	return a.read(ctx, func(l *link, s *snapshot) error {
		raw := s.raw[status]
		if raw == nil {
			return fmt.Errorf("there is no node %s; skerry node list shows those there are", id)
		}
		var n messages.NodeStatus
		if err := messages.DecodeFromManager(raw, &n); err != nil {
			return fmt.Errorf("the status of %s cannot be understood: %w", id, err)
		}
		measured, missing := s.raw[information], error(nil)
		if measured == nil {
			measured, missing = l.telemetry(ctx, information, a.patience(await, n))
		}
		if err := a.printNode(n, raw, measured, await); err != nil {
			return err
		}
		if await {
			return missing
		}
		return nil
	}, status, information)
}

// patience is how long to wait for telemetry: a moment, where nobody has asked for it or nobody can send it.
func (a *app) patience(await bool, n messages.NodeStatus) time.Duration {
	switch {
	case await && n.State == messages.NodeOnline:
		return telemetryPatience
	case await || a.json || n.State != messages.NodeOnline:
		return 0
	default:
		return silence
	}
}

// telemetry waits for a node's next measurement.
func (l *link) telemetry(ctx context.Context, topic string, patience time.Duration) ([]byte, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		for _, m := range l.take() {
			if m.topic == topic {
				return m.payload, nil
			}
		}
		select {
		case <-l.news:
		case <-l.lost:
			return nil, l.err()
		case <-ctx.Done():
			return nil, interrupted(ctx, "")
		case <-timer.C:
			return nil, errors.New("no telemetry came: see whether the node is online")
		}
	}
}

// printNode prints the status; as JSON with the telemetry in it only where that was asked for.
func (a *app) printNode(n messages.NodeStatus, raw, measured []byte, await bool) error {
	var t *messages.Telemetry
	if measured != nil {
		t = &messages.Telemetry{}
		if err := messages.Decode(measured, t); err != nil {
			fmt.Fprintln(a.err, "skerry: telemetry cannot be understood:", err)
			t = nil
		}
	}
	if a.json {
		if await && t != nil {
			raw = messages.Splice(bytes.TrimSpace(raw), "telemetry", measured)
		}
		return line(a.out, raw)
	}
	_, err := fmt.Fprint(a.out, a.style().Node(n, t))
	return err
}
