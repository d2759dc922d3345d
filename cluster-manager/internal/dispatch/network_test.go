package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

func TestNodeGetsItsPartOfTheNetwork(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	c := w.net.configs["n1"]
	if c.Network != "10.160.0.0/12" || c.Network6 != "fd5c:ae11:9::/48" || c.Services != "10.172.0.0/14" || !slices.Equal(c.Blocks, []string{"10.160.0.0/26"}) ||
		c.Gateway != "10.160.0.1" || len(c.Peers) != 0 || c.Relay == nil || len(c.STUN) != 1 {
		t.Errorf("got %+v", c)
	}
	if b := w.net.configs["n2"].Blocks; !slices.Equal(b, []string{"10.160.0.64/26"}) {
		t.Errorf("n2: got %v", b)
	}
	s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"])
	if s.Overlay == nil || s.Overlay.State != messages.OverlayUp || len(s.Overlay.Blocks) != 1 {
		t.Errorf("got %+v", s.Overlay)
	}
	w.join("n3", nil) // without an overlay
	if _, ok := w.net.configs["n3"]; ok {
		t.Error("a node that knows no overlay has a configuration")
	}
	w.checkNet()
}

func TestServiceTable(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	w.accepted(deploy(job("web", "good", 2), "n1", "n2"))
	w.pass(2 * time.Second)
	s := w.net.services["web"]
	if len(s.Instances) != 2 || s.RoundRobin != "10.172.0.0" || s.Closest != "10.172.0.1" || s.Policy != messages.RoundRobin {
		t.Fatalf("got %+v", s)
	}
	for i, in := range s.Instances {
		if !in.Healthy || in.Ordinal != i || in.Address == "" || in.Node == "" || in.Service != fmt.Sprintf("10.172.0.%d", 2+i) {
			t.Errorf("got %+v", in)
		}
	}
	if got := w.knows("n1"); !slices.Equal(got, []messages.JobName{"web"}) {
		t.Errorf("n1, which runs one, knows %v", got)
	}
	if got := w.knows("n3"); len(got) != 0 || len(w.peersOf("n3")) != 0 {
		t.Errorf("n3, which does not ask, knows %v and has the peers %v", got, w.peersOf("n3"))
	}
	if got := w.peersOf("n1"); len(got) != 0 {
		t.Errorf("instances of one job that do not talk are peers: %v", got)
	}
	w.wants("n3", "nobody", "web")
	if got := w.peersOf("n3"); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("n3 has the peers %v", got)
	}
	if got := w.peersOf("n1"); !slices.Equal(got, []string{"n3"}) {
		t.Errorf("n1 has the peers %v", got)
	}
	if got := w.net.tables["n3"].unknown; !slices.Equal(got, []string{"nobody"}) {
		t.Errorf("unknown: got %v", got)
	}
	p := w.net.configs["n3"].Peers[0]
	if p.Key != tunnelKey("n1") || !slices.Equal(p.Prefixes, []string{"10.160.0.0/26"}) || len(p.Endpoints) != 1 || len(p.Instances) != 0 {
		t.Errorf("got %+v", p)
	}
	w.checkNet()
	w.accepted(deploy(job("nobody", "good", 1), "n2"))
	w.pass(2 * time.Second)
	if got := w.knows("n3"); !slices.Equal(got, []messages.JobName{"nobody", "web"}) {
		t.Errorf("n3 knows %v", got)
	}
	w.accepted(deploy(job("shop", "good", 1), "n3"))
	w.pass(2 * time.Second)
	if i := w.net.configs["n1"].Peers[0].Instances; len(i) != 1 || i[0].Job != "shop" || i[0].Service == "" || i[0].Address == "" {
		t.Errorf("n1 must know who on n3 may come: got %+v", i)
	}
	w.wants("n3")
	if got := w.knows("n3"); !slices.Equal(got, []messages.JobName{"shop"}) || len(w.peersOf("n3")) != 0 || len(w.peersOf("n1")) != 0 {
		t.Errorf("n3 is not interested any more and knows %v", got)
	}
	w.checkNet()
}

// TestInterestByAddress holds that a service address leads to its job, and that of nobody is said to be unknown.
func TestInterestByAddress(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	w.core.Interest("n2", w.nodes["n2"].link, messages.Interest{Addresses: []string{"10.172.0.2", "10.175.0.0", "10.160.0.2"}}, w.now)
	w.pass(interestEvery)
	if got := w.knows("n2"); !slices.Equal(got, []messages.JobName{"web"}) {
		t.Errorf("got %v", got)
	}
	if got := w.net.tables["n2"].unknown; !slices.Equal(got, []string{"10.175.0.0", "10.160.0.2"}) {
		t.Errorf("unknown: got %v", got)
	}
}

// TestHealthIsToldToWhoAsks holds that a change of health costs one update for each node that is interested.
func TestHealthIsToldToWhoAsks(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3", "n4")
	w.accepted(deploy(job("web", "good", 2), "n1", "n2"))
	w.pass(2 * time.Second)
	w.wants("n3", "web")
	before, rev := w.net.sent, w.net.configs["n3"].Rev
	w.change("web.0.0", func(s *messages.InstanceStatus) { s.Healthy = false })
	if got := w.net.sent - before; got != 3 { // n1, n2 and n3
		t.Errorf("%d updates", got)
	}
	if i := w.net.tables["n3"].services["web"].Instances[0]; i.Healthy || i.Address == "" {
		t.Errorf("got %+v", i)
	}
	if w.net.configs["n3"].Rev != rev {
		t.Error("a change of health changes a configuration")
	}
	w.checkNet()
}

// TestMoveKeepsAddresses holds that the addresses stay through a move, and that the old instance is out of the tables before it is told to stop.
func TestMoveKeepsAddresses(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	w.accepted(deploy(job("web", "good", 1), "n1", "n2"))
	w.pass(2 * time.Second)
	w.wants("n3", "web")
	before := w.net.services["web"]
	from := before.Instances[0].Node
	to := messages.NodeID("n2")
	if from == "n2" {
		to = "n1"
	}
	w.watch = func() {
		old := w.nodes[from].holds["web.0.0"]
		if i := w.net.tables["n3"].services["web"].Instances[0]; i.Node == from && !old.Run {
			t.Error("the old instance stops while clients are sent to it")
		} else if !i.Healthy {
			t.Error("clients are left without an instance")
		}
	}
	w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{from}, Worker: []messages.NodeID{to}})
	w.pass(5 * time.Second)
	w.watch = nil
	after := w.net.services["web"]
	if after.RoundRobin != before.RoundRobin || after.Instances[0].Service != before.Instances[0].Service || after.Instances[0].Node != to ||
		after.Instances[0].Generation != 1 {
		t.Errorf("got %+v, before %+v", after, before)
	}
	if got := w.peersOf("n3"); !slices.Equal(got, []string{string(to)}) {
		t.Errorf("peers: got %v", got)
	}
	w.checkNet()
}

// TestManagerRestartIsNotNoticed holds that nobody is told anything new by a manager that was started again: the same leases, the same peers
// with the same instances, and nothing is unhealthy because it has not been reported yet.
func TestManagerRestartIsNotNoticed(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	w.accepted(deploy(job("web", "good", 2), "n1", "n2"))
	w.accepted(deploy(job("db", "good", 1), "n2"))
	w.guest(messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: tunnelKey("phone")})
	w.pass(2 * time.Second)
	w.wants("n3", "web")
	w.wants("n1", "db")
	view := func() string {
		var lines []string
		for _, id := range []messages.NodeID{"n1", "n2", "n3"} {
			c := w.net.configs[id]
			c.Rev = 0
			lines = append(lines, string(messages.Encode(c)))
		}
		for _, name := range []messages.JobName{"db", "web"} {
			lines = append(lines, string(messages.Encode(w.net.services[name])))
		}
		return strings.Join(lines, "\n")
	}
	before := view()
	check := func(when string) {
		t.Helper()
		if got := view(); got != before {
			t.Errorf("%s: got\n%s\nbefore\n%s", when, got, before)
		}
		w.checkNet()
	}
	w.boot()
	check("after the start")
	for _, id := range []messages.NodeID{"n3", "n1", "n2"} {
		w.connect(id)
		w.settle()
		check("after " + string(id) + " is back")
	}
	if got := w.knows("n3"); !slices.Equal(got, []messages.JobName{"web"}) {
		t.Errorf("n3 knows %v", got)
	}
}

// TestLossEmptiesTheTable holds that an instance on a node that is lost gets no flows, and that one that is merely away does.
func TestLossEmptiesTheTable(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	w.wants("n2", "web")
	w.disconnect("n1")
	w.pass(10 * time.Second)
	if i := w.net.tables["n2"].services["web"].Instances[0]; !i.Healthy {
		t.Error("the instance is out of the table while its node is only away")
	}
	w.pass(30 * time.Second)
	if i := w.net.tables["n2"].services["web"].Instances[0]; i.Healthy {
		t.Error("the instance is in the table though its node is lost")
	}
	w.connect("n1")
	w.pass(5 * time.Second)
	if i := w.net.tables["n2"].services["web"].Instances[0]; !i.Healthy || i.Node != "n1" {
		t.Errorf("got %+v", i)
	}
	w.checkNet()
}

func TestDeleteReturnsAddresses(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	blocks, addresses := w.net.status.Blocks, w.net.status.Addresses
	w.accepted(deploy(job("web", "good", 3)))
	w.pass(2 * time.Second)
	w.wants("n2", "web")
	if w.net.status.Addresses != addresses+5 {
		t.Errorf("%d addresses are leased", w.net.status.Addresses)
	}
	w.accepted(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	w.pass(2 * time.Second)
	if w.net.status.Blocks != blocks || w.net.status.Addresses != addresses || len(w.net.services) != 0 {
		t.Errorf("got %+v, %v", w.net.status, w.net.services)
	}
	if got := w.knows("n2"); len(got) != 0 || len(w.peersOf("n2")) != 0 {
		t.Errorf("n2 knows %v and has the peers %v", got, w.peersOf("n2"))
	}
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	if got := w.knows("n2"); !slices.Equal(got, []messages.JobName{"web"}) {
		t.Errorf("a job of the same name: n2 knows %v", got)
	}
	w.checkNet()
}

// TestScaleKeepsAddresses holds that an ordinal that comes back has the address that it had.
func TestScaleKeepsAddresses(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	w.accepted(deploy(job("web", "good", 3)))
	w.pass(2 * time.Second)
	before := w.net.services["web"]
	scale := func(n int) {
		w.accepted(messages.Command{Command: messages.Replicate, Job: messages.Job{Name: "web", Replicas: &n}})
		w.pass(2 * time.Second)
		if got := len(w.net.services["web"].Instances); got != n {
			t.Errorf("%d instances in the table, want %d", got, n)
		}
	}
	scale(1)
	scale(3)
	for i, in := range w.net.services["web"].Instances {
		if in.Service != before.Instances[i].Service || !in.Healthy {
			t.Errorf("got %+v, before %+v", in, before.Instances[i])
		}
	}
	w.checkNet()
}

// TestThousandNodesComeAndGo holds that what they had is there again when they are gone.
func TestThousandNodesComeAndGo(t *testing.T) {
	w := newNetWorld(t, "n1")
	blocks, free := w.net.status.Blocks, w.net.status.Free
	for i := range 1000 {
		w.joinNet(messages.NodeID(fmt.Sprintf("m%d", i)))
	}
	if w.net.status.Blocks != blocks+1000 {
		t.Errorf("%d blocks are leased", w.net.status.Blocks)
	}
	for i := range 1000 {
		id := messages.NodeID(fmt.Sprintf("m%d", i))
		w.disconnect(id)
		w.core.NodeCommand(IncomingNode{Command: messages.NodeCommand{Command: messages.Remove, Node: id}, MayCommand: true}, w.now)
	}
	w.settle()
	w.core.Publish(w.now)
	w.settle()
	if w.net.status.Blocks != blocks || w.net.status.Free != free || len(w.net.configs) != 1 {
		t.Errorf("got %+v with %d configurations, want %d and %d", w.net.status, len(w.net.configs), blocks, free)
	}
}

func TestFullNodeGetsAFurtherBlock(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 50), "n1"))
	w.pass(2 * time.Second)
	if b := w.net.configs["n1"].Blocks; len(b) != 1 {
		t.Errorf("with 50 instances: %v", b)
	}
	w.accepted(deploy(job("db", "good", 10), "n1"))
	w.pass(2 * time.Second)
	if b := w.net.configs["n1"].Blocks; len(b) != 2 || w.net.configs["n1"].Gateway != "10.160.0.1" {
		t.Errorf("with 60 instances: %v", b)
	}
	w.wants("n2", "web")
	if p := w.net.configs["n2"].Peers[0].Prefixes; len(p) != 2 {
		t.Errorf("its peer has %v", p)
	}
}

func TestForeignKeyIsRefused(t *testing.T) {
	w := newNetWorld(t, "n2")
	steal := func(i *messages.NodeInfo) { i.Overlay = &messages.OverlayInfo{PublicKey: tunnelKey("n2")} }
	w.join("n1", steal) // by name before the owner, which must not matter after a restart
	check := func(when string) {
		t.Helper()
		s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"])
		if s.Overlay == nil || s.Overlay.State == messages.OverlayUp || !strings.Contains(s.Overlay.Reason, "node n2") || len(w.net.configs["n1"].Blocks) != 0 {
			t.Errorf("%s: got %+v", when, s.Overlay)
		}
		if s := decode[messages.NodeStatus](t, w.kept["nodes/n2/status"]); s.Overlay.State != messages.OverlayUp {
			t.Errorf("%s: the owner: got %+v", when, s.Overlay)
		}
	}
	check("registered")
	w.boot()
	check("restarted")
	w.connect("n1")
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n2")}, w.now)
	w.settle()
	check("said again")
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Endpoints: []string{"192.0.2.9:1"}, NAT: "cone"}, w.now)
	w.pass(endpointsEvery)
	if s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"]); s.Overlay.State != messages.OverlayUp || s.Overlay.NAT != "cone" {
		t.Errorf("with a key of its own: got %+v", s.Overlay)
	}
}

func TestEndpointsReachPeers(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	w.wants("n2", "web")
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Endpoints: []string{"203.0.113.5:4000"}, RelayOnly: true}, w.now)
	w.pass(endpointsEvery)
	if p := w.net.configs["n2"].Peers[0]; !slices.Equal(p.Endpoints, []string{"203.0.113.5:4000"}) || !p.RelayOnly {
		t.Errorf("got %+v", p)
	}
	w.core.Endpoints("n1", messages.Endpoints{Reason: "the tunnel is broken"}, w.now)
	w.pass(endpointsEvery)
	if got := w.peersOf("n2"); len(got) != 0 {
		t.Errorf("a node without a tunnel is a peer: %v", got)
	}
	if w.net.tables["n2"].services["web"].Instances[0].Healthy {
		t.Error("clients are sent to a node without a tunnel")
	}
	if s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"]); s.Overlay.State != messages.OverlayOff || s.Overlay.Reason != "the tunnel is broken" {
		t.Errorf("got %+v", s.Overlay)
	}
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1")}, w.now)
	w.pass(endpointsEvery)
	if got := w.peersOf("n2"); len(got) != 1 || !w.net.tables["n2"].services["web"].Instances[0].Healthy {
		t.Errorf("the tunnel is there again: peers %v", got)
	}
}

// TestFloodIsHeldBack holds that a node that says its endpoints and interests without end costs its peers little, and that what it said last
// holds.
func TestFloodIsHeldBack(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	w.wants("n2", "web")
	rev, sent := w.core.State().Rev, w.net.sent
	for i := range 1000 {
		w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Endpoints: []string{fmt.Sprintf("192.0.2.1:%d", 1+i)}}, w.now)
		names := []messages.JobName{"web", messages.JobName(fmt.Sprintf("x%d", i))}
		w.net.interest["n2"] = messages.Interest{Names: names}
		w.core.Interest("n2", w.nodes["n2"].link, w.net.interest["n2"], w.now)
		w.settle()
		w.now = w.now.Add(time.Millisecond)
	}
	w.pass(2 * time.Second)
	if n := w.core.State().Rev - rev; n > 4 {
		t.Errorf("%d configurations in a second", n)
	}
	if n := w.net.sent - sent; n > 25 {
		t.Errorf("%d updates in a second", n)
	}
	if p := w.net.configs["n2"].Peers[0]; !slices.Equal(p.Endpoints, []string{"192.0.2.1:1000"}) {
		t.Errorf("got %v", p.Endpoints)
	}
	if got := w.net.tables["n2"].unknown; !slices.Equal(got, []string{"x999"}) {
		t.Errorf("got %v", got)
	}
	w.checkNet()
}

// TestForeignAddressIsNotBelieved holds that a node cannot claim an address that is not of its blocks.
func TestForeignAddressIsNotBelieved(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	for _, address := range []string{"10.160.0.70", "172.17.0.2", "10.172.0.0", "x"} {
		w.change("web.0.0", func(s *messages.InstanceStatus) { s.Address = address })
		if i := w.net.services["web"].Instances[0]; i.Address != "" || i.Healthy {
			t.Errorf("%s: got %+v", address, i)
		}
	}
}

func TestModeOverlayWantsANodeInTheNetwork(t *testing.T) {
	w := newNetWorld(t)
	w.join("n1", nil)
	w.join("n2", func(i *messages.NodeInfo) { i.Overlay = &messages.OverlayInfo{Reason: "no /dev/net/tun"} })
	j := job("web", "good", 1)
	j.Network.Mode = messages.Overlay
	r := w.send(deploy(j))
	if r.Phase != messages.Refused || r.Code != messages.NoNodeMatches || len(r.Nodes) != 2 || !strings.Contains(r.Nodes[0].Reason, "no overlay") ||
		!strings.Contains(r.Nodes[1].Reason, "/dev/net/tun") {
		t.Fatalf("got %+v", r)
	}
	plain := job("db", "good", 1)
	if r := w.send(deploy(plain)); r.Phase != messages.Accepted {
		t.Errorf("without a mode: got %+v", r)
	}
	w.joinNet("n3")
	if r := w.send(deploy(j)); r.Phase != messages.Accepted {
		t.Fatalf("got %+v", r)
	}
	w.pass(2 * time.Second)
	if got := w.net.services["web"].Instances[0].Node; got != "n3" {
		t.Errorf("it runs on %s", got)
	}
}

// TestRangeInUseOnANode holds that a node whose host uses the network's range is one without an overlay for as long as it says so: what insists on the
// overlay is not placed there, goes elsewhere where it waits there, and stays where it runs.
func TestRangeInUseOnANode(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	insists := func(name messages.JobName, image string) messages.Job {
		j := job(name, image, 1)
		j.Network.Mode = messages.Overlay
		return j
	}
	w.accepted(deploy(insists("runs", "good"), "n1"))
	w.accepted(deploy(insists("waits", "slow"), "n1", "n2"))
	w.accepted(deploy(insists("bound", "slow"), "n1"))
	w.accepted(deploy(job("plain", "slow", 1), "n1"))
	w.pass(2 * time.Second)
	w.wantRunning("waits", "waits.0.0@n2") // the less loaded one
	w.accepted(messages.Command{Command: messages.Move, Job: messages.Job{Name: "waits"}, From: []messages.NodeID{"n2"}, Worker: []messages.NodeID{"n1"}})
	w.pass(2 * time.Second)
	blocks := w.net.configs["n1"].Blocks
	const reason = "the range 10.160.0.0/12 of the overlay is in use on this node: 10.160.0.0/16 on wg0; 10.144.0.0/12 is free"
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Reason: reason}, w.now)
	w.pass(2 * time.Second)
	check := func(when string) {
		t.Helper()
		s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"])
		if s.Overlay == nil || s.Overlay.State != messages.OverlayOff || s.Overlay.Reason != reason {
			t.Errorf("%s: status: got %+v", when, s.Overlay)
		}
		if got := w.net.configs["n1"].Blocks; !slices.Equal(got, blocks) {
			t.Errorf("%s: it is to go on trying with %v, got %v", when, blocks, got)
		}
		if r := w.send(deploy(insists("late", "good"), "n1")); r.Phase != messages.Refused || r.Code != messages.NoNodeMatches || !strings.Contains(r.Message, "10.144.0.0/12 is free") {
			t.Errorf("%s: got %+v", when, r)
		}
	}
	check("said")
	w.wantRunning("runs", "runs.0.0@n1")
	w.wantRunning("waits", "waits.0.0@n2")
	w.wantRunning("plain", "plain.0.0@n1")
	if s := w.jobs["bound"]; len(s.Waiting) != 1 || len(s.Waiting[0].Nodes) != 1 || !strings.Contains(s.Waiting[0].Nodes[0].Reason, "10.144.0.0/12 is free") {
		t.Errorf("what may be nowhere else: got %+v", s.Waiting)
	}
	w.boot()
	w.connect("n1")
	w.connect("n2")
	w.pass(2 * time.Second)
	check("after a restart of the manager")
	w.wantRunning("runs", "runs.0.0@n1")
	w.core.Endpoints("n1", messages.Endpoints{PublicKey: tunnelKey("n1"), Endpoints: []string{"192.0.2.1:51820"}}, w.now)
	w.pass(2 * time.Second)
	if s := decode[messages.NodeStatus](t, w.kept["nodes/n1/status"]); s.Overlay.State != messages.OverlayUp || s.Overlay.Reason != "" {
		t.Errorf("the range is free: got %+v", s.Overlay)
	}
	if s := w.jobs["bound"]; len(s.Waiting) != 0 {
		t.Errorf("the range is free, and yet it waits: %+v", s.Waiting)
	}
	w.wantRunning("bound", "bound.0.0@n1")
	w.accepted(deploy(insists("late", "good"), "n1"))
	w.pass(2 * time.Second)
	w.wantRunning("late", "late.0.0@n1")
	w.checkNet()
}

// TestPolicyReplacesNothing holds that who may reach a job changes no instance of it.
func TestPolicyReplacesNothing(t *testing.T) {
	w := newNetWorld(t, "n1")
	w.accepted(deploy(job("web", "good", 1)))
	w.pass(2 * time.Second)
	j := job("web", "good", 2)
	j.Network.Policy, j.Network.Allow = messages.Closest, []messages.JobName{"shop"}
	w.accepted(deploy(j))
	w.pass(2 * time.Second)
	s := w.net.services["web"]
	if s.Policy != messages.Closest || !slices.Equal(s.Allow, []messages.JobName{"shop"}) || s.Instances[0].Generation != 0 || w.nodes["n1"].started != 2 {
		t.Errorf("got %+v, %d starts", s, w.nodes["n1"].started)
	}
	if got := w.nodes["n1"].holds["web.1.0"].Spec.Network; got.Policy != messages.Closest || !slices.Equal(got.Allow, s.Allow) {
		t.Errorf("the copy that came with the change is told %+v", got)
	}
}

func TestHostNetworkHasNoService(t *testing.T) {
	w := newNetWorld(t, "n1")
	j := job("web", "good", 1)
	j.Network.Mode = messages.HostNetwork
	w.accepted(deploy(j))
	w.pass(2 * time.Second)
	if len(w.net.services) != 0 || w.net.status.Addresses != 0 {
		t.Errorf("got %v, %+v", w.net.services, w.net.status)
	}
}

func TestNoAddressLeft(t *testing.T) {
	w := newNetWorld(t)
	w.setNetwork("192.168.0.0/24") // which has 64 for services
	w.joinNet("n1")
	w.joinNet("n2")
	w.accepted(deploy(job("web", "good", 60)))
	r := w.send(deploy(job("db", "good", 3)))
	if r.Phase != messages.Refused || r.Code != messages.NoCapacity || !strings.Contains(r.Message, "--network") {
		t.Errorf("got %+v", r)
	}
	w.accepted(deploy(job("cache", "good", 0)))
	w.pass(2 * time.Second)
	w.checkNet()
}
