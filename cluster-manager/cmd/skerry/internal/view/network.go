package view

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"skerry.internal/messages"
)

// NetNode is a node as part of the network.
type NetNode struct {
	Status   messages.NodeStatus
	Measured *messages.NetStatus // nil: it has said nothing
}

// Network shows the network, the nodes in it, their paths to one another, and who talks to whom.
func (s Style) Network(n *messages.NetworkStatus, nodes []NetNode) string {
	out := s.wholeNetwork(n) + "\n" + s.netNodes(nodes)
	if peers := s.peers(nodes); peers != "" {
		out += "\n" + peers
	}
	if flows := s.flows(nodes); flows != "" {
		out += "\n" + flows
	}
	return out + s.dropped(nodes)
}

func (s Style) wholeNetwork(n *messages.NetworkStatus) string {
	if n == nil || n.Network == "" {
		return "the manager has no network: see its flag --network\n"
	}
	return s.facts([][2]string{{"network", n.Network + "\n" + n.Network6}, {"services", fmt.Sprintf("%s, %d addresses leased", n.Services, n.Addresses)},
		{"blocks", fmt.Sprintf("%d leased, %d free", n.Blocks, n.Free)}, {"guests", strconv.Itoa(len(n.Guests))}})
}

func (s Style) netNodes(nodes []NetNode) string {
	rows := make([][]string, 0, len(nodes))
	for _, n := range nodes {
		o := n.Status.Overlay
		if o == nil {
			o = &messages.OverlayStatus{}
		}
		state, reason := s.overlay(o.State), o.Reason
		switch {
		case n.Status.State != messages.NodeOnline:
			state, reason = s.state(string(n.Status.State)), "the node is not connected"
		case n.Measured != nil && n.Measured.State != o.State && n.Measured.Reason != "": // the manager lets it in, and it cannot
			state, reason = s.overlay(n.Measured.State), n.Measured.Reason
		case n.Measured != nil && n.Measured.State == o.State:
			reason = joined("; ", o.Reason, lacks(o, n.Measured))
		}
		rows = append(rows, []string{string(n.Status.Node), orDash(state), orDash(strings.Join(o.Blocks, ", ")), orDash(nat(o)), orDash(first(o.Endpoints)), paths(n.Measured), reason})
	}
	return s.grid([]string{"node", "network", "blocks", "nat", "endpoint", "peers", "reason"}, rows)
}

// lacks says what is wrong with a network according to its node, without what the manager says too.
func lacks(o *messages.OverlayStatus, m *messages.NetStatus) string {
	var parts []string
	if m.Reason != o.Reason {
		parts = append(parts, m.Reason)
	}
	if m.NoNames != "" {
		parts = append(parts, "names are not answered: "+m.NoNames)
	}
	if m.NoIPv6 != "" {
		parts = append(parts, "no IPv6: "+m.NoIPv6)
	}
	return joined("; ", parts...)
}

func nat(o *messages.OverlayStatus) string {
	if o.RelayOnly {
		return joined(", ", o.NAT, "relay only")
	}
	return o.NAT
}

// first writes the first of several, and how many more there are.
func first(texts []string) string {
	switch len(texts) {
	case 0:
		return ""
	case 1:
		return texts[0]
	default:
		return fmt.Sprintf("%s and %d more", texts[0], len(texts)-1)
	}
}

// paths counts the peers of a node by how they are reached.
func paths(m *messages.NetStatus) string {
	if m == nil {
		return "-"
	}
	count := map[messages.PathState]int{}
	for _, p := range m.Peers {
		count[p.Path]++
	}
	var parts []string
	for _, p := range []messages.PathState{messages.Direct, messages.Relayed, messages.NoPath} {
		if count[p] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[p], pathWord(p)))
		}
	}
	return orDash(strings.Join(parts, ", "))
}

func pathWord(p messages.PathState) string {
	if p == messages.NoPath {
		return "without a path"
	}
	return string(p)
}

func (s Style) overlay(state messages.OverlayState) string {
	switch state {
	case messages.OverlayUp:
		return s.paint(green, string(state))
	case messages.OverlayRefused:
		return s.paint(red, string(state))
	default:
		return s.paint(yellow, string(state))
	}
}

func (s Style) path(p messages.PathState) string {
	switch p {
	case messages.Direct:
		return s.paint(green, string(p))
	case messages.NoPath:
		return s.paint(red, string(p))
	default:
		return s.paint(yellow, string(p))
	}
}

func (s Style) peers(nodes []NetNode) string {
	var rows [][]string
	for _, n := range nodes {
		if n.Measured == nil {
			continue
		}
		for _, p := range n.Measured.Peers {
			peer := string(p.Node)
			if p.Guest != "" {
				peer = p.Guest + " (guest)"
			}
			rows = append(rows, []string{string(n.Status.Node), orDash(peer), s.path(p.Path), orDash(p.Endpoint), RoundTrip(p.RTTMS), rate(p.RxBPS), rate(p.TxBPS), orDash(orZero(p.MTU)),
				handshake(p)})
		}
	}
	if len(rows) == 0 {
		return ""
	}
	return s.grid([]string{"node", "peer", "path", "endpoint", "round trip", "received", "sent", "mtu", "handshake"}, rows)
}

func handshake(p messages.PeerUse) string {
	if p.HandshakeS <= 0 {
		return "-"
	}
	return span(seconds(p.HandshakeS)) + " ago"
}

func orZero(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func (s Style) flows(nodes []NetNode) string {
	var rows [][]string
	for _, n := range nodes {
		if n.Measured == nil {
			continue
		}
		for _, f := range n.Measured.Flows {
			from := string(f.From)
			if from == "" {
				from = "(host or guest)"
			}
			rows = append(rows, []string{from, string(n.Status.Node), string(f.Service), orDash(string(f.Node)), strconv.Itoa(f.Flows), rate(f.RxBPS), rate(f.TxBPS)})
		}
	}
	if len(rows) == 0 {
		return ""
	}
	return s.grid([]string{"from", "on", "to", "at", "flows", "received", "sent"}, rows)
}

// dropped says which packets nodes have dropped, and why.
func (s Style) dropped(nodes []NetNode) string {
	var b strings.Builder
	for _, n := range nodes {
		if n.Measured == nil || len(n.Measured.Dropped) == 0 {
			continue
		}
		var parts []string
		for _, why := range slices.Sorted(maps.Keys(n.Measured.Dropped)) {
			parts = append(parts, fmt.Sprintf("%s %d", why, n.Measured.Dropped[why]))
		}
		fmt.Fprintf(&b, "\n%s dropped packets: %s\n", Clean(string(n.Status.Node)), Clean(strings.Join(parts, ", ")))
	}
	return b.String()
}

// RoundTrip writes milliseconds; "-" for none.
func RoundTrip(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	default:
		return fmt.Sprintf("%.0f ms", ms)
	}
}

// Services lists the services of the network.
func (s Style) Services(services []messages.ServiceEntry) string {
	rows := make([][]string, 0, len(services))
	for _, e := range services {
		rows = append(rows, []string{string(e.Job), orDash(string(e.Policy)), e.RoundRobin, e.Closest, s.healthy(e), allowed(e), orDash(listens(e.Ports))})
	}
	return s.grid([]string{"job", "policy", "round robin", "closest", "healthy", "allowed", "ports"}, rows)
}

func (s Style) healthy(e messages.ServiceEntry) string {
	n := 0
	for _, i := range e.Instances {
		if i.Healthy {
			n++
		}
	}
	text := fmt.Sprintf("%d/%d", n, len(e.Instances))
	switch {
	case n == 0:
		return s.paint(red, text)
	case n < len(e.Instances):
		return s.paint(yellow, text)
	default:
		return s.paint(green, text)
	}
}

func allowed(e messages.ServiceEntry) string {
	if e.Allow == nil {
		return "all"
	}
	names := make([]string, len(e.Allow))
	for i, n := range e.Allow {
		names[i] = string(n)
	}
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// listens writes what a service listens on, whatever is published.
func listens(list []messages.Port) string {
	var out []string
	for _, p := range list {
		out = append(out, joined("=", p.Name, joined("/", strconv.Itoa(p.Container), p.Protocol)))
	}
	return strings.Join(out, ", ")
}

// Resolution is what a name of the network stands for.
type Resolution struct {
	Name      string           `json:"name"` // in full
	Job       messages.JobName `json:"job"`
	Policy    string           `json:"policy"` // round-robin, closest or instance
	Addresses []string         `json:"addresses"`
	Instances []Standing       `json:"instances"` // that it may lead to
}

// Standing is an instance behind a name.
type Standing struct {
	Instance messages.InstanceID `json:"instance"`
	messages.ServiceInstance
}

// Standings returns the instances of a service with their names.
func Standings(e messages.ServiceEntry) []Standing {
	out := make([]Standing, len(e.Instances))
	for i, x := range e.Instances {
		out[i] = Standing{messages.InstanceID(fmt.Sprintf("%s.%d.%d", e.Job, x.Ordinal, x.Generation)), x}
	}
	return out
}

// Resolved shows what a name stands for.
func (s Style) Resolved(r Resolution) string {
	return s.facts([][2]string{{"name", r.Name}, {"job", string(r.Job)}, {"policy", r.Policy}, {"addresses", strings.Join(r.Addresses, "\n")}}) + "\n" + s.standings(r.Instances)
}

// Service shows one service.
func (s Style) Service(e messages.ServiceEntry) string {
	return s.facts([][2]string{{"job", string(e.Job)}, {"policy", string(e.Policy)}, {"round robin", e.RoundRobin}, {"closest", e.Closest}, {"healthy", s.healthy(e)},
		{"allowed", allowed(e)}, {"ports", listens(e.Ports)}}) + "\n" + s.standings(Standings(e))
}

func (s Style) standings(list []Standing) string {
	rows := make([][]string, 0, len(list))
	for _, i := range list {
		health := s.paint(red, "no")
		if i.Healthy {
			health = s.paint(green, "yes")
		}
		rows = append(rows, []string{string(i.Instance), orDash(string(i.Node)), health, i.Service, orDash(i.Address)})
	}
	return s.grid([]string{"instance", "node", "healthy", "address", "container"}, rows)
}
