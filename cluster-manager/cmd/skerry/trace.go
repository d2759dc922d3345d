package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// answerPatience is how long a node may be silent after a request: it waits two seconds for a reply by itself, twice for a trace.
const answerPatience = 8 * time.Second

func (a *app) traceCommand() *cobra.Command {
	return &cobra.Command{Use: "trace INSTANCE NAME", Short: "Show which instance a request would go to, over which path, and how long it takes",
		Long: `Ask the node of an instance where a request from there to a name of the network goes now: to which instance, over which path, and how long a
round trip takes. INSTANCE may be a part that only one begins with (shop.0, or shop for a job of one copy), or a node. NAME is web, closest.web or
0.web, an address, or a node.`,
		Example: "  skerry network trace shop.0 web\n  skerry network trace board-1 closest.web", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completePath,
		RunE: running(func(ctx context.Context, args []string) error {
			return a.ask(ctx, args[0], messages.TraceRequest{Kind: messages.TracePath, Name: args[1]}, a.printTrace)
		})}
}

func (a *app) pingCommand() *cobra.Command {
	var count int
	c := &cobra.Command{Use: "ping FROM TO", Short: "Measure the way from an instance or node to a service or node",
		Long: `Ask a node to send one packet a second through the network and to say how long each took. FROM is an instance (or a part that only one begins
with) or a node. TO is a name of the network (web, closest.web, 0.web), an address, or a node. Ends with 1 where nothing was answered.`,
		Example: "  skerry network ping board-1 board-2\n  skerry network ping shop.0 web --count 10", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completePath,
		RunE: running(func(ctx context.Context, args []string) error {
			if count < 1 {
				return usagef("--count %d: want 1 or more", count)
			}
			return a.ping(ctx, args[0], args[1], count)
		})}
	c.Flags().IntVar(&count, "count", 5, "how many packets")
	return c
}

func (a *app) ping(ctx context.Context, from, to string, count int) error {
	var sum view.Pings
	err := a.ask(ctx, from, messages.TraceRequest{Kind: messages.TracePing, Name: to, Count: count}, func(_ string, t messages.TraceAnswer, raw []byte) error {
		sum.Add(t)
		if a.json {
			return line(a.out, raw)
		}
		_, err := fmt.Fprintln(a.out, a.style().Ping(t))
		return err
	})
	if !a.json && (err == nil || sum.Answered() > 0) {
		fmt.Fprintln(a.out, sum.Text())
	}
	if err == nil && sum.Answered() == 0 {
		return errors.New("nothing was answered")
	}
	return err
}

func (a *app) printTrace(from string, t messages.TraceAnswer, raw []byte) error {
	var err error
	if a.json {
		err = line(a.out, raw)
	} else {
		_, err = fmt.Fprint(a.out, a.style().Trace(from, t))
	}
	if err == nil && (t.Error != "" || t.Lost) {
		return errors.New(strings.TrimSpace("no way there: " + view.Clean(t.Error)))
	}
	return err
}

// ask sends a request to the node from whose point of view it is, and hands on the answers.
func (a *app) ask(ctx context.Context, from string, req messages.TraceRequest, each func(from string, t messages.TraceAnswer, raw []byte) error) error {
	req.RequestID = "skerry-" + strings.ToLower(rand.Text())
	return a.read(ctx, func(l *link, s *snapshot) error {
		node, instance, err := s.vantage(from)
		if err != nil {
			return err
		}
		if req.Name, err = s.target(req.Name); err != nil {
			return err
		}
		req.Instance = instance
		if err := req.Validate(); err != nil {
			return invalid(err)
		}
		if instance != "" {
			from = fmt.Sprintf("%s on %s", instance, node)
		}
		return l.converse(ctx, node, req, func(t messages.TraceAnswer, raw []byte) error { return each(from, t, raw) })
	}, messages.AllJobsFilter, messages.AllNodesFilter, messages.AllServicesFilter)
}

// vantage finds the node from whose point of view something is asked, and the instance there; a node stands for itself.
func (s *snapshot) vantage(from string) (messages.NodeID, messages.InstanceID, error) {
	nodes, err := decodeAll[messages.NodeStatus](s.raws(messages.NodeStatusTopic))
	if err != nil {
		return "", "", err
	}
	jobs, err := decodeAll[messages.JobStatus](s.raws(messages.JobStatusTopic))
	if err != nil {
		return "", "", err
	}
	states := make(map[messages.NodeID]messages.NodeState, len(nodes))
	for _, n := range nodes {
		states[n.Node] = n.State
	}
	id, instance := messages.NodeID(from), messages.InstanceID("")
	found, err := findInstance(jobs, from)
	_, many := errors.AsType[*failure](err)
	_, isNode := states[id]
	switch {
	case err == nil:
		id, instance = found.Node, found.Instance
	case !isNode && many:
		return "", "", err
	case !isNode:
		return "", "", fmt.Errorf("there is no instance and no node %s", from)
	}
	if state := states[id]; state != messages.NodeOnline {
		return "", "", fmt.Errorf("%s, which would have to answer, is %s", id, state)
	}
	return id, instance, nil
}

// target makes a name into one that a node understands: another node is meant by the address of its bridge. A service comes before a node of the
// same name.
func (s *snapshot) target(name string) (string, error) {
	service := messages.Topic{Kind: messages.ServiceTopic, Job: messages.JobName(name)}.String()
	raw := s.raw[messages.Topic{Kind: messages.NodeStatusTopic, Node: messages.NodeID(name)}.String()]
	if s.raw[service] != nil || raw == nil {
		return name, nil
	}
	var n messages.NodeStatus
	if err := messages.DecodeFromManager(raw, &n); err != nil {
		return "", fmt.Errorf("the status of %s cannot be understood: %w", name, err)
	}
	if n.Overlay == nil || len(n.Overlay.Blocks) == 0 {
		return "", fmt.Errorf("%s is not part of the network; skerry network status says why", name)
	}
	p, err := netip.ParsePrefix(n.Overlay.Blocks[0])
	if err != nil {
		return "", fmt.Errorf("the block of %s cannot be understood: %w", name, err)
	}
	b, err := ipam.BlockOf(p)
	if err != nil {
		return "", fmt.Errorf("the block of %s cannot be understood: %w", name, err)
	}
	return b.Gateway().String(), nil
}

// converse sends a request to a node and reads its answers to the last.
func (l *link) converse(ctx context.Context, node messages.NodeID, req messages.TraceRequest, each func(messages.TraceAnswer, []byte) error) error {
	if err := l.subscribe(ctx, messages.Topic{Kind: messages.TraceAnswerTopic, Node: node, Request: req.RequestID}.String()); err != nil {
		return err
	}
	if err := l.publish(ctx, messages.Topic{Kind: messages.TraceRequestTopic, Node: node}.String(), messages.Encode(req)); err != nil {
		return err
	}
	heard := time.Now()
	silent := func() error {
		if time.Since(heard) > answerPatience {
			return fmt.Errorf("%s has not answered for %s: see whether it is online, and whether this user may ask it", node, answerPatience)
		}
		return nil
	}
	return l.each(ctx, silent, func(m message) (bool, error) {
		var t messages.TraceAnswer
		if p, err := messages.ParseTopic(m.topic); err != nil || p.Kind != messages.TraceAnswerTopic {
			return false, nil // statuses go on coming
		}
		if err := messages.Decode(m.payload, &t); err != nil {
			return false, fmt.Errorf("an answer of %s cannot be understood: %w", node, err)
		}
		heard = time.Now()
		if err := each(t, m.payload); err != nil {
			return true, err
		}
		return t.Last, nil
	})
}

// vantageNames are the names of instances and nodes.
func (a *app) vantageNames(ctx context.Context) []string {
	return append(a.instanceNames(ctx), a.nodeNames(ctx)...)
}

// targetNames are the names of services and nodes.
func (a *app) targetNames(ctx context.Context) []string {
	return append(a.serviceNames(ctx), a.nodeNames(ctx)...)
}

// completePath completes from where and where to.
func (a *app) completePath(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.offer(cmd, begun, a.vantageNames), cobra.ShellCompDirectiveNoFileComp
	case 1:
		return a.offer(cmd, begun, a.targetNames), cobra.ShellCompDirectiveNoFileComp
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}
