package dispatch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// TestFailedCommitLosesNothing holds that what nodes have said of the network while the disk refused is known afterwards, and that what a
// command was to lease is not leased.
func TestFailedCommitLosesNothing(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	addresses := w.net.status.Addresses
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Endpoints: []string{"203.0.113.5:4000"}, NAT: "cone"}, w.now)
	w.net.interest["n2"] = messages.Interest{Names: []messages.JobName{"web"}}
	w.core.Interest("n2", w.nodes["n2"].link, w.net.interest["n2"], w.now)
	moved := w.nodes["n1"].status["web.0.0"]
	moved.Seq, moved.Address = moved.Seq+1, "10.160.0.9"
	w.nodes["n1"].status["web.0.0"] = moved
	w.core.Status("n1", moved, w.now)
	w.core.Command(incoming(messages.Deploy, messages.Encode(deploy(job("db", "good", 1)))), w.now)
	st, _, err := cluster.Load(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	w.core.Reload(st, w.now)
	w.pass(2 * time.Second)
	if p := w.net.configs["n2"].Peers; len(p) != 1 || !slices.Equal(p[0].Endpoints, []string{"203.0.113.5:4000"}) {
		t.Errorf("peers: got %+v", p)
	}
	if s := w.net.tables["n2"].services["web"]; len(s.Instances) != 1 || s.Instances[0].Address != "10.160.0.9" {
		t.Errorf("got %+v", s)
	}
	if w.net.status.Addresses != addresses {
		t.Errorf("%d addresses are leased, %d before", w.net.status.Addresses, addresses)
	}
	w.checkNet()
}

// TestOtherNetwork holds that a manager that is started with another network leases everything anew.
func TestOtherNetwork(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	for _, name := range []string{"laptop", "phone", "tablet"} {
		w.guest(messages.GuestCommand{Command: messages.Add, Guest: name, PublicKey: tunnelKey(name)})
	}
	w.pass(2 * time.Second)
	w.setNetwork("192.168.0.0/16")
	if b := w.net.configs["n1"].Blocks; len(b) != 1 || !strings.HasPrefix(b[0], "192.168.0.") {
		t.Errorf("blocks: got %v", b)
	}
	if s := w.net.services["web"]; s.RoundRobin != "192.168.192.0" {
		t.Errorf("got %+v", s)
	}
	for _, g := range w.net.status.Guests {
		if !strings.HasPrefix(g.Address, "192.168.0.") {
			t.Errorf("got %+v", g)
		}
	}
	if s := w.net.status; len(s.Guests) != 3 || s.Blocks != 3 {
		t.Errorf("got %d guests in %d blocks, want three in one beside those of the nodes", len(s.Guests), s.Blocks)
	}
	w.checkNet()
}

// TestRemoveWithoutOverlay holds that a node which has its part of a network can be removed by a manager that runs without.
func TestRemoveWithoutOverlay(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.cfg.Network = overlay.Config{}
	w.boot()
	w.connect("n2")
	w.settle()
	w.done(w.sendNode(messages.Remove, "n1"))
	if w.core.State().Nodes["n1"] != nil {
		t.Error("it is still there")
	}
}

// TestLostStateKeepsBlocks holds that a manager that has lost its state gives nodes the blocks that they have, and nobody two nodes' one.
func TestLostStateKeepsBlocks(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	before := map[messages.NodeID][]string{}
	for id, c := range w.net.configs {
		before[id] = c.Blocks
	}
	w.store, w.net.configs = new(store.Memory), map[messages.NodeID]messages.NetworkConfig{}
	w.boot()
	for _, id := range []messages.NodeID{"n3", "n2", "n1"} {
		w.join(id, func(i *messages.NodeInfo) {
			i.Overlay = &messages.OverlayInfo{PublicKey: tunnelKey(string(id)), Blocks: append(before[id], "10.172.0.0/26", "10.0.0.0/26")}
		})
		if got := w.net.configs[id].Blocks; !slices.Equal(got, before[id]) {
			t.Errorf("%s: got %v, before %v", id, got, before[id])
		}
	}
	w.join("n4", func(i *messages.NodeInfo) {
		i.Overlay = &messages.OverlayInfo{PublicKey: tunnelKey("n4"), Blocks: before["n1"]}
	})
	if got := w.net.configs["n4"].Blocks; len(got) != 1 || slices.Equal(got, before["n1"]) {
		t.Errorf("n4: got %v", got)
	}
	w.checkNet()
}

// setNetwork starts the manager again with another network.
func (w *world) setNetwork(prefix string) {
	w.t.Helper()
	plan, err := planOf(prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Network.Plan = plan
	w.net.services, w.net.configs = map[messages.JobName]messages.ServiceEntry{}, map[messages.NodeID]messages.NetworkConfig{}
	w.boot()
	for id := range w.nodes {
		w.connect(id)
	}
	w.settle()
}

// TestNetworkAtRandom draws what may happen, restarts of the manager among it. What must always be so is looked at after each step.
func TestNetworkAtRandom(t *testing.T) {
	for seed := range stories(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := newNetWorld(t, "n0", "n1", "n2", "n3")
		w.t.Logf("seed %d", seed)
		names := []messages.JobName{"a", "b", "c"}
		for range 120 {
			id := messages.NodeID(fmt.Sprintf("n%d", r.IntN(4)))
			name := names[r.IntN(len(names))]
			n := r.IntN(4)
			switch r.IntN(9) {
			case 0, 1:
				j := job(name, []string{"good", "better", "sick"}[r.IntN(3)], n)
				w.send(deploy(j))
			case 2:
				w.send(messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}})
			case 3:
				w.send(messages.Command{Command: messages.Move, Job: messages.Job{Name: name}, From: []messages.NodeID{id}})
			case 4:
				if w.nodes[id].online {
					w.wants(id, names[r.IntN(3):]...)
				}
			case 5:
				if w.nodes[id].online {
					w.disconnect(id)
				} else {
					w.connect(id)
				}
			case 6:
				w.pass(time.Duration(r.IntN(40)) * time.Second)
			case 7:
				w.boot()
				for i := range 4 {
					w.connect(messages.NodeID(fmt.Sprintf("n%d", i)))
				}
			case 8:
				if w.nodes[id].online {
					w.core.Endpoints(id, messages.Endpoints{PublicKey: tunnelKey(string(id)), Endpoints: []string{fmt.Sprintf("192.0.2.1:%d", 1+r.IntN(9))}}, w.now)
				}
			}
			w.settle()
			w.pass(endpointsEvery) // what was said too soon is taken up
			w.checkNet()
			if t.Failed() {
				t.FailNow()
			}
		}
	}
}
