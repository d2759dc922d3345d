package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
)

func (a *app) networkCommand() *cobra.Command {
	return group("network", "Look at the network of the containers, and let guests into it",
		"  skerry network status\n  skerry network resolve web\n  skerry network trace shop.0 web\n  skerry network guest add phone",
		a.networkStatusCommand(), a.servicesCommand(), a.resolveCommand(), a.traceCommand(), a.pingCommand(), a.guestCommand())
}

// networkTopic is where the manager says what it has leased, and to which guests.
func networkTopic() string { return messages.Topic{Kind: messages.NetworkTopic}.String() }

func (a *app) networkStatusCommand() *cobra.Command {
	return &cobra.Command{Use: "status [NODE]", Short: "Show nodes, the paths between them, and who talks to whom",
		Long: `Show what is leased of the network, each node's part of it, how each node reaches its peers (directly or through the relay, from where, how
long a round trip takes, how much goes through), and which jobs talk to which. Nodes measure all that by themselves, about every five seconds.`,
		Example: "  skerry network status\n  skerry network status board-1 --json", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeFirst(a.nodeNames),
		RunE: running(func(ctx context.Context, args []string) error {
			for _, n := range args {
				if err := messages.CheckName("node", n); err != nil {
					return usagef("%w", err)
				}
			}
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.networkStatus(s, args) }, messages.AllNodesFilter, messages.AllNetStatusFilter, networkTopic())
		})}
}

// netNodes returns the nodes of a snapshot, or only those that are named.
func (s *snapshot) netNodes(only []string) ([]view.NetNode, error) {
	nodes, err := decodeAll[messages.NodeStatus](s.raws(messages.NodeStatusTopic))
	var out []view.NetNode
	for _, n := range nodes {
		if len(only) > 0 && string(n.Node) != only[0] {
			continue
		}
		one := view.NetNode{Status: n}
		if raw := s.raw[messages.Topic{Kind: messages.NetStatusTopic, Node: n.Node}.String()]; raw != nil {
			m := &messages.NetStatus{}
			if e := messages.Decode(raw, m); e != nil {
				return nil, fmt.Errorf("what %s says of the network cannot be understood: %w", n.Node, e)
			}
			one.Measured = m
		}
		out = append(out, one)
	}
	if len(only) > 0 && len(out) == 0 && err == nil {
		err = fmt.Errorf("there is no node %s; skerry node list shows those there are", only[0])
	}
	return out, err
}

// network returns what the manager says of the whole network, nil where it says nothing.
func (s *snapshot) network() (*messages.NetworkStatus, error) {
	raw := s.raw[networkTopic()]
	if raw == nil {
		return nil, nil
	}
	n := &messages.NetworkStatus{}
	if err := messages.DecodeFromManager(raw, n); err != nil {
		return nil, fmt.Errorf("the status of the network cannot be understood: %w", err)
	}
	return n, nil
}

// netNodeJSON is a node in the JSON of network status: both parts as they are on the wire.
type netNodeJSON struct {
	Node     messages.NodeID         `json:"node"`
	State    messages.NodeState      `json:"state"`
	Overlay  *messages.OverlayStatus `json:"overlay,omitempty"`
	Measured json.RawMessage         `json:"measured,omitempty"`
}

func (a *app) networkStatus(s *snapshot, only []string) error {
	whole, err := s.network()
	if err != nil {
		return err
	}
	nodes, err := s.netNodes(only)
	if err != nil && (a.json || len(nodes) == 0) {
		return err
	}
	if !a.json {
		fmt.Fprint(a.out, a.style().Network(whole, nodes))
		return err
	}
	out := struct {
		Network json.RawMessage `json:"network,omitempty"`
		Nodes   []netNodeJSON   `json:"nodes"`
	}{Network: s.raw[networkTopic()], Nodes: []netNodeJSON{}}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, netNodeJSON{n.Status.Node, n.Status.State, n.Status.Overlay, s.raw[messages.Topic{Kind: messages.NetStatusTopic, Node: n.Status.Node}.String()]})
	}
	return line(a.out, messages.Encode(out))
}

func (a *app) servicesCommand() *cobra.Command {
	return &cobra.Command{Use: "services [JOB]", Aliases: []string{"service"}, Short: "List the services of the network, or show one",
		Long: `List the jobs that have addresses in the network, or show one with its instances. The addresses stay as long as the job: round robin leads to
each healthy instance in turn, closest to the nearest one, and each instance has one of its own that moves with it.`,
		Example: "  skerry network services\n  skerry network services web", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeFirst(a.serviceNames),
		RunE: running(func(ctx context.Context, args []string) error {
			if len(args) == 0 {
				return a.read(ctx, func(_ *link, s *snapshot) error { return a.printServices(s.raws(messages.ServiceTopic)) }, messages.AllServicesFilter)
			}
			if err := messages.CheckName("job", args[0]); err != nil {
				return usagef("%w", err)
			}
			topic := messages.Topic{Kind: messages.ServiceTopic, Job: messages.JobName(args[0])}.String()
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.printService(args[0], s.raw[topic]) }, topic)
		})}
}

func (a *app) printServices(raws [][]byte) error {
	if a.json {
		return jsonArray(a.out, raws)
	}
	services, err := decodeAll[messages.ServiceEntry](raws)
	if len(services) == 0 && err == nil {
		_, err = fmt.Fprintln(a.err, "no services: a job has one when it runs on a node that is part of the network")
		return err
	}
	fmt.Fprint(a.out, a.style().Services(services))
	return err
}

func (a *app) printService(name string, raw []byte) error {
	if raw == nil {
		return fmt.Errorf("%s is no service of the network; skerry network services shows those there are", name)
	}
	var e messages.ServiceEntry
	if err := messages.DecodeFromManager(raw, &e); err != nil {
		return fmt.Errorf("the service %s cannot be understood: %w", name, err)
	}
	if a.json {
		return line(a.out, raw)
	}
	_, err := fmt.Fprint(a.out, a.style().Service(e))
	return err
}

func (a *app) serviceNames(ctx context.Context) []string {
	return a.names(ctx, messages.AllServicesFilter, func(t messages.Topic, _ []byte) []string { return []string{string(t.Job)} })
}
