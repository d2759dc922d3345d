package overlay

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

var noon = time.Unix(1_800_000_000, 0)

// keyOf makes the public key of a node's tunnel.
func keyOf(i int) string {
	sum := sha256.Sum256(fmt.Append(nil, i))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func alive(*cluster.Placement) bool { return false }

// said returns what was published of one kind for one node.
func said(t *testing.T, out []Out, kind messages.Kind, node messages.NodeID) [][]byte {
	t.Helper()
	var payloads [][]byte
	for _, o := range out {
		topic, err := messages.ParseTopic(o.Topic)
		if err != nil {
			t.Fatal(err)
		}
		if topic.Kind == kind && topic.Node == node {
			payloads = append(payloads, o.Payload)
		}
	}
	return payloads
}

// TestWholeTableInPieces holds that a table that is too large for a message comes in several, each within the limit, and whole.
func TestWholeTableInPieces(t *testing.T) {
	st, cfg := large(t, 50, 4000)
	names := make([]messages.JobName, 0, 4000)
	for name := range st.Jobs {
		names = append(names, name)
	}
	n := New(cfg, st, alive, slog.New(slog.DiscardHandler))
	n.Flush(noon)
	n.Interest("n0", "link", messages.Interest{Names: names, Full: true})
	got, rev := map[messages.JobName]bool{}, uint64(0)
	pieces := said(t, n.Flush(noon), messages.NetServicesTopic, "n0")
	for i, payload := range pieces {
		var u messages.ServiceUpdate
		if err := messages.DecodeFromManager(payload, &u); err != nil {
			t.Fatal(err)
		}
		if u.Full != (i == 0) || u.More != (i < len(pieces)-1) || u.Rev != rev+1 || (i > 0 && u.Base != rev) {
			t.Errorf("piece %d of %d: full %v, more %v, rev %d on %d", i, len(pieces), u.Full, u.More, u.Rev, u.Base)
		}
		rev = u.Rev
		for _, s := range u.Services {
			got[s.Job] = true
		}
	}
	if len(pieces) < 2 || len(got) != 4000 {
		t.Errorf("%d services in %d pieces", len(got), len(pieces))
	}
	if again := said(t, n.Flush(noon), messages.NetServicesTopic, "n0"); len(again) != 0 {
		t.Errorf("%d updates of nothing", len(again))
	}
}

// TestLargeConfigurationFits holds that a configuration stays within the limit of a message: it leaves out what instances its peers have, and
// then peers, but is always one that a node can use.
func TestLargeConfigurationFits(t *testing.T) {
	for _, c := range []struct{ nodes, instances, peers int }{{60, 400, 59}, {9000, 0, 0}} {
		st := cluster.NewState()
		plan, err := ipam.NewPlan(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd5c:ae11:9::/48"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.nodes {
			id := messages.NodeID(fmt.Sprintf("n%d", i))
			st.PutNode(&cluster.Node{ID: id, Info: messages.NodeInfo{Name: id, Overlay: &messages.OverlayInfo{PublicKey: keyOf(i),
				Endpoints: []string{"192.0.2.1:51820", "198.51.100.7:51820"}}}})
			st.PutInterest(id, []messages.JobName{"hub"})
		}
		n := New(Config{Plan: plan}, st, alive, slog.New(slog.DiscardHandler))
		place := func(name messages.JobName, ordinal int, id messages.NodeID) {
			j := st.Jobs[name]
			if j == nil {
				j = &cluster.Job{Spec: messages.Job{Name: name}}
				st.PutJob(j)
			}
			j.Ordinals = append(j.Ordinals, ordinal)
			if err := n.LeaseJob(j, j.Ordinals); err != nil {
				t.Fatal(err)
			}
			st.PutPlacement(&cluster.Placement{Instance: messages.NewInstanceID(name, ordinal, 0), Job: name, Ordinal: ordinal, Node: id, Run: true,
				Address: st.Nodes[id].Blocks[0].Addr().String()})
			n.Touch(name)
		}
		place("hub", 0, "n0")
		for i := 1; i < c.nodes && c.instances > 0; i++ {
			for k := range c.instances {
				place(messages.JobName(fmt.Sprintf("j%d", i)), k, messages.NodeID(fmt.Sprintf("n%d", i)))
			}
		}
		payloads := said(t, n.Flush(noon), messages.NetConfigTopic, "n0")
		if len(payloads) != 1 {
			t.Fatalf("%d configurations", len(payloads))
		}
		var config messages.NetworkConfig
		if err := messages.DecodeFromManager(payloads[0], &config); err != nil {
			t.Fatal(err)
		}
		if c.peers > 0 && (len(config.Peers) != c.peers || len(config.Peers[0].Instances) != 0) {
			t.Errorf("%d peers, the first with %d instances", len(config.Peers), len(config.Peers[0].Instances))
		}
		if c.peers == 0 && (len(config.Peers) < 3000 || len(config.Peers) >= c.nodes-1) {
			t.Errorf("%d peers", len(config.Peers))
		}
	}
}

// TestJoin holds that a configuration that is put together from encoded peers is what would have been encoded whole.
func TestJoin(t *testing.T) {
	c := messages.NetworkConfig{Rev: 7, Network: "10.160.0.0/12", Blocks: []string{"10.160.0.0/26"}, Relay: &messages.Relay{URL: "http://:1/relay"}}
	peers := []messages.Peer{{Node: "a", Key: "k", Prefixes: []string{"10.160.0.64/26"}}, {Guest: "g", Key: "l"}}
	var encoded [][]byte
	for _, p := range peers {
		encoded = append(encoded, messages.Encode(p))
	}
	whole := c
	whole.Peers = peers
	if got, want := string(join(c, encoded)), string(messages.Encode(whole)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := string(join(c, nil)), string(messages.Encode(c)); got != want || !json.Valid([]byte(got)) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestNoBlockLeft holds that a node that comes when all blocks are leased is told so.
func TestNoBlockLeft(t *testing.T) {
	plan, err := ipam.NewPlan(netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd5c:ae11:9::/48"))
	if err != nil {
		t.Fatal(err)
	}
	st := cluster.NewState()
	n := New(Config{Plan: plan}, st, alive, slog.New(slog.DiscardHandler))
	for i := range 4 {
		node := &cluster.Node{ID: messages.NodeID(fmt.Sprintf("n%d", i)), Info: messages.NodeInfo{Overlay: &messages.OverlayInfo{PublicKey: keyOf(i)}}}
		st.PutNode(node)
		n.Admit(node)
		s := n.NodeStatus(node)
		if i < 3 && s.State != messages.OverlayUp {
			t.Errorf("node %d: got %+v", i, s)
		}
		if i == 3 && (s.State != messages.OverlayRefused || !strings.Contains(s.Reason, "no block")) {
			t.Errorf("node %d: got %+v", i, s)
		}
	}
	payloads := said(t, n.Flush(noon), messages.NetConfigTopic, "n3")
	var c messages.NetworkConfig
	if len(payloads) != 1 || json.Unmarshal(payloads[0], &c) != nil || len(c.Blocks) != 0 || !strings.Contains(c.Reason, "no block") {
		t.Errorf("got %s", payloads)
	}
}
