package messages

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestJobNetworkValidate(t *testing.T) {
	many := make([]JobName, maxListed+1)
	for i := range many {
		many[i] = "a"
	}
	plain := func() Spec { return Spec{Image: "a"} }
	checkRefusals(t, plain, []refusal[Spec]{
		{`job.network.mode "bus"`, func(s *Spec) { s.Network.Mode = "bus" }},
		{`job.network.policy "first"`, func(s *Spec) { s.Network.Policy = "first" }},
		{"job.network.allow: 257 names", func(s *Spec) { s.Network.Allow = many }},
		{`job.network.allow "A"`, func(s *Spec) { s.Network.Allow = []JobName{"A"} }},
		{"does not go with mode bridge", func(s *Spec) { s.Network = JobNetwork{Mode: BridgeNetwork, Allow: []JobName{}} }},
		{"the node's already", func(s *Spec) { s.Network.Mode, s.Ports = HostNetwork, []Port{{Container: 80}} }},
		{"nothing to publish", func(s *Spec) { s.Network.Mode, s.Ports = NoNetwork, []Port{{Container: 80}} }},
		{"use exec", func(s *Spec) { s.Network.Mode, s.Health = NoNetwork, &Health{TCP: &TCPCheck{Port: 80}} }},
	})
	for _, mode := range []NetworkMode{"", Overlay, BridgeNetwork} {
		s := plain()
		s.Network.Mode, s.Ports = mode, []Port{{Container: 80}}
		if err := s.Validate(); err != nil {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
}

// TestAllowKeepsNone holds that an empty list stays different from an absent one.
func TestAllowKeepsNone(t *testing.T) {
	open, closed := JobNetwork{}, JobNetwork{Allow: []JobName{}}
	if got := string(Encode(open)); got != "{}" {
		t.Errorf("open: got %s", got)
	}
	if got := string(Encode(closed)); got != `{"allow":[]}` {
		t.Errorf("closed: got %s", got)
	}
	if (Spec{Network: open}).Equal(Spec{Network: closed}) {
		t.Error("a job that is open equals one that nobody may reach")
	}
}

func TestNetworkValidate(t *testing.T) {
	checkRefusals(t, func() Endpoints { return Endpoints{PublicKey: sampleTunnelKey} }, []refusal[Endpoints]{
		{"public_key", func(e *Endpoints) { e.PublicKey = "x" }},
		{"public_key", func(e *Endpoints) { e.PublicKey = sampleTunnelKey[:42] + "x=" }}, // another spelling of the same bytes
		{"17 entries", func(e *Endpoints) { e.Endpoints = make([]string, MaxEndpoints+1) }},
		{"want an IP address and a port", func(e *Endpoints) { e.Endpoints = []string{"board:51820"} }},
		{"want an IP address and a port", func(e *Endpoints) { e.Endpoints = []string{"10.0.0.1:0"} }},
		{"want an IP address and a port", func(e *Endpoints) { e.Endpoints = []string{"0.0.0.0:5"} }},
		{"want an IP address and a port", func(e *Endpoints) { e.Endpoints = []string{"224.0.0.1:5"} }},
		{"nat", func(e *Endpoints) { e.NAT = "A B" }},
		{"reason", func(e *Endpoints) { e.Reason = strings.Repeat("x", 4097) }},
	})
	checkRefusals(t, func() Interest { return Interest{Names: []JobName{"web"}} }, []refusal[Interest]{
		{"4097 names", func(i *Interest) { i.Names = make([]JobName, MaxInterest+1) }},
		{`names "A"`, func(i *Interest) { i.Names = []JobName{"A"} }},
		{"4097 entries", func(i *Interest) { i.Addresses = make([]string, MaxInterest+1) }},
		{"want an IPv4 address", func(i *Interest) { i.Addresses = []string{"fd5c:ae11:9::1"} }},
	})
	checkRefusals(t, func() NodeInfo { return sampleInfo() }, []refusal[NodeInfo]{
		{"overlay.public_key", func(n *NodeInfo) { n.Overlay = &OverlayInfo{PublicKey: "x"} }},
		{"overlay.endpoints", func(n *NodeInfo) { n.Overlay = &OverlayInfo{Endpoints: []string{"x"}} }},
	})
	checkRefusals(t, func() NetworkConfig { return NetworkConfig{} }, []refusal[NetworkConfig]{
		{"blocks: given without", func(c *NetworkConfig) { c.Blocks = []string{"10.160.0.0/26"} }},
		{`network "10.160.0.1/12"`, func(c *NetworkConfig) { c.Network = "10.160.0.1/12" }},
		{"peers.key", func(c *NetworkConfig) { c.Peers = make([]Peer, 1) }},
	})
	checkRefusals(t, func() NetStatus { return NetStatus{State: OverlayUp} }, []refusal[NetStatus]{
		{"reason", func(s *NetStatus) { s.Reason = strings.Repeat("x", 4097) }},
		{"no_names", func(s *NetStatus) { s.NoNames = strings.Repeat("x", 4097) }},
		{"no_ipv6", func(s *NetStatus) { s.NoIPv6 = strings.Repeat("x", 4097) }},
		{"nat", func(s *NetStatus) { s.NAT = "A B" }},
	})
	checkRefusals(t, func() TraceRequest { return TraceRequest{RequestID: "t", Kind: TracePing, Name: "web"} }, []refusal[TraceRequest]{
		{"request_id: missing", func(r *TraceRequest) { r.RequestID = "" }},
		{"request_id", func(r *TraceRequest) { r.RequestID = "a/b" }},
		{"kind: missing", func(r *TraceRequest) { r.Kind = "" }},
		{`kind "route"`, func(r *TraceRequest) { r.Kind = "route" }},
		{"name", func(r *TraceRequest) { r.Name = "" }},
		{"count: 1001", func(r *TraceRequest) { r.Count = 1001 }},
		{"instance", func(r *TraceRequest) { r.Instance = "web" }},
	})
	checkRefusals(t, func() GuestCommand { return GuestCommand{Command: Add, Guest: "phone", PublicKey: sampleTunnelKey} }, []refusal[GuestCommand]{
		{"verb", func(c *GuestCommand) { c.Command = Replace }},
		{"guest", func(c *GuestCommand) { c.Guest = "My Phone" }},
		{"public_key", func(c *GuestCommand) { c.PublicKey = "" }},
		{"public_key", func(c *GuestCommand) { c.PublicKey = base64.StdEncoding.EncodeToString(make([]byte, 32)) }},
		{"public_key", func(c *GuestCommand) { c.PublicKey = base64.StdEncoding.EncodeToString(smallOrder[:]) }},
		{"gateway", func(c *GuestCommand) { c.Gateway = "A" }},
	})
}

// smallOrder is a point whose secret with everybody is zero.
var smallOrder = [32]byte{0: 1}

// One peer whose key is nobody's does not cost a node the others.
func TestPeerOfSmallOrder(t *testing.T) {
	c := NetworkConfig{Peers: []Peer{{Node: "a", Key: base64.StdEncoding.EncodeToString(smallOrder[:])}}}
	if err := c.Validate(); err != nil {
		t.Errorf("got %v, want it left to the node", err)
	}
}
