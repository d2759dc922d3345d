package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/messages"
)

// board describes a connected node of four cores and 1000 MiB that runs docker.
func board(id messages.NodeID, change ...func(*Node)) Node {
	n := Node{ID: id, Online: true, Kind: messages.Spare, Info: messages.NodeInfo{Name: id, Arch: "amd64", CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}}
	for _, f := range change {
		f(&n)
	}
	return n
}

func tableOf(nodes ...Node) *Table {
	t := NewTable()
	for _, n := range nodes {
		t.SetNode(n)
	}
	return t
}

func spec(change ...func(*messages.Spec)) messages.Spec {
	s := messages.Spec{Image: "x", Technology: messages.Docker}
	for _, f := range change {
		f(&s)
	}
	return s
}

func port(host int, protocol string) func(*messages.Spec) {
	return func(s *messages.Spec) {
		s.Ports = append(s.Ports, messages.Port{Host: host, Container: 80, Protocol: protocol})
	}
}

func needs(r messages.Resources) func(*messages.Spec) {
	return func(s *messages.Spec) { s.Resources = r }
}

// gpus gives a board graphics processors, and Docker a runtime where one is named.
func gpus(runtime string, vendors ...string) func(*Node) {
	return func(n *Node) {
		n.Info.Technologies = []messages.TechnologyInfo{{Name: messages.Docker}}
		if runtime != "" {
			n.Info.Technologies[0].Runtimes = []string{"runc", runtime}
		}
		for _, v := range vendors {
			n.Info.GPUs = append(n.Info.GPUs, messages.GPUInfo{Vendor: v})
		}
	}
}

// Each filter passes a node over with its own code and reason.
func TestReasons(t *testing.T) {
	for _, c := range []struct {
		name   string
		node   Node
		want   Want
		code   messages.Code
		reason string
	}{
		{"offline", board("a", func(n *Node) { n.Online = false }), Want{Spec: spec()}, messages.NoNodeMatches, "is not connected"},
		{"not", board("a"), Want{Spec: spec(), Not: map[messages.NodeID]string{"a": "is lost"}}, messages.NoNodeMatches, "is lost"},
		{"worker", board("a"), Want{Spec: spec(), Worker: []messages.NodeID{"b"}}, messages.UnknownNode, "no node of this name has ever registered"},
		{"kind", board("a"), Want{Spec: spec(), Constraints: messages.Constraints{Kind: messages.Core}}, messages.NoNodeMatches, "is a spare node, core is asked for"},
		{"label missing", board("a"), Want{Spec: spec(), Constraints: messages.Constraints{Labels: map[string]string{"site": "roof", "wet": "no"}}}, messages.NoNodeMatches, "has no label site"},
		{"label other", board("a", func(n *Node) { n.Info.Labels = map[string]string{"site": "cellar"} }),
			Want{Spec: spec(), Constraints: messages.Constraints{Labels: map[string]string{"site": "roof"}}}, messages.NoNodeMatches, "has label site=cellar, roof is asked for"},
		{"arch", board("a"), Want{Spec: spec(), Constraints: messages.Constraints{Arch: []string{"arm-7"}}}, messages.NoNodeMatches, "is amd64, one of [arm-7] is asked for"},
		{"arch unknown", board("a", func(n *Node) { n.Info.Arch = "" }), Want{Spec: spec(), Constraints: messages.Constraints{Arch: []string{"arm-7"}}}, messages.NoNodeMatches, "is of unknown architecture, one of [arm-7] is asked for"},
		{"technology", board("a"), Want{Spec: spec(func(s *messages.Spec) { s.Technology = "unikernel" })}, messages.NoTechnology, "does not run unikernel"},
		{"gpus", board("a", gpus("nvidia", "NVIDIA")), Want{Spec: spec(needs(messages.Resources{GPUs: 2}))}, messages.NoCapacity, "1 of 1 gpus free, 2 asked for"},
		{"gpus without a runtime", board("a", gpus("", "NVIDIA")), Want{Spec: spec(needs(messages.Resources{GPUs: 1}))}, messages.NoCapacity,
			"0 of 0 gpus free, 1 asked for; 1 more cannot be given to containers: only NVIDIA's can, with the nvidia runtime (nvidia-container-toolkit)"},
		{"gpus of others", board("a", gpus("nvidia", "Intel", "NVIDIA", "AMD")), Want{Spec: spec(needs(messages.Resources{GPUs: 2}))}, messages.NoCapacity,
			"1 of 1 gpus free, 2 asked for; 2 more cannot be given to containers: only NVIDIA's can, with the nvidia runtime (nvidia-container-toolkit)"},
		{"cpus", board("a"), Want{Spec: spec(needs(messages.Resources{CPUs: 4.5}))}, messages.NoCapacity, "4.00 of 4 cpus free, 4.50 asked for"},
		{"memory", board("a"), Want{Spec: spec(needs(messages.Resources{MemoryMB: 1001}))}, messages.NoCapacity, "1000 of 1000 MiB memory free, 1001 asked for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := tableOf(c.node)
			id, r := table.Place(c.want)
			if r == nil {
				t.Fatalf("placed on %s", id)
			}
			if r.Code != c.code || len(r.Nodes) != 1 || r.Nodes[0].Code != c.code || r.Nodes[0].Reason != c.reason {
				t.Errorf("got %+v, want %s %q", r, c.code, c.reason)
			}
			if !strings.Contains(r.Error(), c.reason) {
				t.Errorf("error %q does not say %q", r.Error(), c.reason)
			}
		})
	}
}

// The code of a refusal is that of the node that came closest; every node is named, by name.
func TestRefusalNamesEveryNode(t *testing.T) {
	table := tableOf(board("c", func(n *Node) { n.Online = false }), board("a", func(n *Node) { n.Info.Technologies = nil }), board("b"))
	_, r := table.Place(Want{Spec: spec(needs(messages.Resources{CPUs: 9}))})
	if r == nil {
		t.Fatal("placed")
	}
	want := &Refusal{Code: messages.NoCapacity, Nodes: []messages.Passed{
		{Node: "a", Code: messages.NoTechnology, Reason: "does not run docker"},
		{Node: "b", Code: messages.NoCapacity, Reason: "4.00 of 4 cpus free, 9.00 asked for"},
		{Node: "c", Code: messages.NoNodeMatches, Reason: "is not connected"},
	}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}
	if want := "none of 3 nodes can take it: b 4.00 of 4 cpus free, 9.00 asked for, …"; r.Error() != want {
		t.Errorf("got %q, want %q", r.Error(), want)
	}
	if _, r := NewTable().Place(Want{Spec: spec()}); r == nil || r.Code != messages.NoNodeMatches || r.Error() != "no node has registered yet" {
		t.Errorf("empty table: %+v", r)
	}
}

// Scores: fewest of the job, then least loaded, then fewest instances, then by name.
func TestScores(t *testing.T) {
	table := tableOf(board("a"), board("b"), board("c"), board("d"))
	find := func(job messages.JobName) messages.NodeID {
		id, found := table.Find(Want{Job: job, Spec: spec()})
		if !found {
			t.Fatal("no node")
		}
		return id
	}
	if got := find("web"); got != "a" {
		t.Errorf("empty table: got %s, want the first by name", got)
	}
	table.Reserve("a", "db.0.0", "db", spec())
	if got := find("web"); got != "b" {
		t.Errorf("got %s, want b: it holds fewer instances", got)
	}
	table.Reserve("b", "db.1.0", "db", spec(needs(messages.Resources{CPUs: 1})))
	table.Reserve("c", "db.2.0", "db", spec(needs(messages.Resources{MemoryMB: 300})))
	table.Reserve("d", "web.0.0", "web", spec())
	if got := find("web"); got != "a" {
		t.Errorf("got %s, want a, which has the least load of those without web", got)
	}
	table.Reserve("a", "web.1.0", "web", spec())
	if got := find("web"); got != "b" {
		t.Errorf("got %s, want b: a quarter of its cpus is less than 30 %% of memory", got)
	}
	table.Reserve("b", "web.2.0", "web", spec())
	table.Reserve("c", "web.3.0", "web", spec())
	if got := find("web"); got != "d" {
		t.Errorf("got %s, want d: all have one, it has the least load", got)
	}
}

// Host ports are told apart by protocol, tcp where none is named, and go to who waits for them.
func TestHostPorts(t *testing.T) {
	table := tableOf(board("a"))
	table.Reserve("a", "dns.0.0", "dns", spec(port(53, "udp"), port(0, "tcp")))
	for _, c := range []struct {
		name string
		want Want
		code messages.Code
	}{
		{"other protocol", Want{Spec: spec(port(53, "tcp"))}, ""},
		{"default protocol", Want{Spec: spec(port(53, ""))}, ""},
		{"same", Want{Spec: spec(port(53, "udp"))}, messages.PortInUse},
		{"second of two", Want{Spec: spec(port(54, "udp"), port(53, "udp"))}, messages.PortInUse},
		{"its own", Want{Instance: "dns.0.0", Spec: spec(port(53, "udp"))}, ""},
		{"the node's choice", Want{Spec: spec(port(0, "udp"))}, ""},
		{"patient, but it stays", Want{Spec: spec(port(53, "udp")), Patient: true}, messages.PortInUse},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, r := table.Place(c.want)
			if got := codeOf(r); got != c.code {
				t.Errorf("got %q, want %q", got, c.code)
			}
		})
	}
	table.Leave("a", "dns.0.0")
	again := Want{Spec: spec(port(53, "udp"))}
	if _, r := table.Place(again); codeOf(r) != messages.PortInUse {
		t.Errorf("free before it is gone")
	}
	again.Patient = true
	if _, r := table.Place(again); r != nil {
		t.Errorf("patient: %v", r)
	}
	table.Reserve("a", "dns.0.1", "dns", spec(port(53, "udp"))) // waits for the port
	if _, r := table.Place(again); codeOf(r) != messages.PortInUse {
		t.Error("the port is promised to the one that waits, but a second one may wait for it too")
	}
	table.Release("a", "dns.0.0")
	again.Patient = false
	if _, r := table.Place(again); codeOf(r) != messages.PortInUse || !strings.Contains(r.Nodes[0].Reason, "dns.0.1") {
		t.Errorf("the port is not with the one that waited: %v", r)
	}
	table.Release("a", "dns.0.1")
	if _, r := table.Place(again); r != nil {
		t.Errorf("all gone, but %v", r)
	}
}

func codeOf(r *Refusal) messages.Code {
	if r == nil {
		return ""
	}
	return r.Code
}

// Who is patient counts what leaves as gone, others do not; what asks for nothing fits on an overloaded node.
func TestLeaving(t *testing.T) {
	table := tableOf(board("a"))
	table.Reserve("a", "web.0.0", "web", spec(needs(messages.Resources{CPUs: 3, MemoryMB: 900})))
	w := Want{Spec: spec(needs(messages.Resources{CPUs: 2, MemoryMB: 200}))}
	table.Leave("a", "web.0.0")
	table.Leave("a", "web.0.0") // twice counts once
	if _, found := table.Find(w); found {
		t.Error("room that is still taken was given away")
	}
	w.Patient = true
	if _, found := table.Find(w); !found {
		t.Error("patient, but refused")
	}
	w.Spec.Resources.CPUs = 4.01
	if _, found := table.Find(w); found {
		t.Error("more than the node has")
	}
	table.Reserve("a", "web.1.0", "web", spec(needs(messages.Resources{CPUs: 3}))) // more than there is, but it is there
	if _, found := table.Find(Want{Spec: spec()}); !found {
		t.Error("what asks for nothing was refused")
	}
	table.Leave("nobody", "web.0.0")
	table.Release("nobody", "web.0.0")
	table.Release("a", "nothing.0.0")
}

// Fractions of processors that add up to the whole fit, in any order.
func TestFractionsAddUp(t *testing.T) {
	table := tableOf(board("a", func(n *Node) { n.Info.CPU.Cores = 1 }))
	tenth := spec(needs(messages.Resources{CPUs: 0.1}))
	for i := range 10 {
		if _, r := table.Place(Want{Spec: tenth}); r != nil {
			t.Fatalf("%d tenths of one cpu: %v", i+1, r)
		}
		table.Reserve("a", messages.NewInstanceID("web", i, 0), "web", tenth)
	}
	if _, found := table.Find(Want{Spec: tenth}); found {
		t.Error("eleven tenths of one cpu")
	}
}

func TestAllows(t *testing.T) {
	table := tableOf(board("a", func(n *Node) { n.Online = false }), board("b", func(n *Node) { n.Info.Arch = "arm-7" }))
	for _, c := range []struct {
		node messages.NodeID
		want Want
		ok   bool
	}{
		{"a", Want{}, true}, // being away is no reason
		{"nobody", Want{}, false},
		{"a", Want{Worker: []messages.NodeID{"b", "c"}}, false},
		{"b", Want{Worker: []messages.NodeID{"a", "b", "c"}}, true},
		{"b", Want{Constraints: messages.Constraints{Arch: []string{"amd64"}}}, false},
		{"b", Want{Spec: spec(needs(messages.Resources{CPUs: 99}))}, true}, // nor is load
	} {
		if got := table.Allows(c.node, &c.want); got != c.ok {
			t.Errorf("%s %+v: got %v, want %v", c.node, c.want, got, c.ok)
		}
	}
}

// story is a table beside a plain list of what was done to it.
type story struct {
	t     *testing.T
	rng   *rand.Rand
	table *Table
	nodes map[messages.NodeID]Node
	held  map[messages.NodeID]map[messages.InstanceID]reservation
}

// Whatever is reserved, left and released in whatever order: the answer is that of a look at every node, the accounts are the sums of what
// is there, and nothing is left once all is released.
func TestRandomStories(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := &story{t: t, rng: rand.New(rand.NewPCG(seed, 1)), table: NewTable(), nodes: map[messages.NodeID]Node{},
				held: map[messages.NodeID]map[messages.InstanceID]reservation{}}
			for range 400 {
				s.step()
				s.check()
			}
			s.releaseAll()
		})
	}
}

func (s *story) node() messages.NodeID { return messages.NodeID(fmt.Sprintf("n%d", s.rng.IntN(8))) }

func (s *story) job() messages.JobName { return []messages.JobName{"web", "db", "cam"}[s.rng.IntN(3)] }

func (s *story) instance() messages.InstanceID {
	return messages.NewInstanceID(s.job(), s.rng.IntN(4), s.rng.IntN(3))
}

func (s *story) spec() messages.Spec {
	sp := spec(needs(messages.Resources{CPUs: float64(s.rng.IntN(8)) / 4, MemoryMB: 100 * s.rng.IntN(5), GPUs: s.rng.IntN(5) / 4}))
	if s.rng.IntN(3) == 0 {
		port(80+s.rng.IntN(2), []string{"", "tcp", "udp"}[s.rng.IntN(3)])(&sp)
	}
	return sp
}

func (s *story) step() {
	id := s.node()
	if s.held[id] == nil {
		s.held[id] = map[messages.InstanceID]reservation{}
	}
	switch instance := s.instance(); s.rng.IntN(8) {
	case 0, 1:
		n := board(id, func(n *Node) {
			n.Online = s.rng.IntN(4) > 0
			n.Info.CPU.Cores = 1 + s.rng.IntN(8)
			gpus([]string{"nvidia", ""}[s.rng.IntN(4)/3], []string{"NVIDIA", "Intel", "nvidia"}[s.rng.IntN(3):]...)(n)
		})
		s.nodes[id] = n
		s.table.SetNode(n)
	case 2, 3, 4:
		job, _, _, _ := instance.Split()
		r := reservation{job: job, spec: s.spec()}
		s.held[id][instance] = r
		s.table.Reserve(id, instance, job, r.spec)
		if _, known := s.nodes[id]; !known {
			s.nodes[id] = Node{ID: id}
		}
	case 5:
		if r, there := s.held[id][instance]; there {
			r.leaving = true
			s.held[id][instance] = r
		}
		s.table.Leave(id, instance)
	default:
		delete(s.held[id], instance)
		s.table.Release(id, instance)
	}
}

func (s *story) check() {
	s.t.Helper()
	if !slices.IsSortedFunc(slices.Concat(s.table.ready.pieces...), before) {
		s.t.Fatal("the connected nodes are out of order")
	}
	for id, held := range s.held {
		var sum messages.Resources
		for _, r := range held {
			add(&sum, r.spec.Resources, 1)
		}
		if got := s.table.Reserved(id); got != sum { // quarters have no rounding
			s.t.Fatalf("%s: reserved %+v, want %+v", id, got, sum)
		}
	}
	w := Want{Job: s.job(), Spec: s.spec(), Patient: s.rng.IntN(2) == 0}
	if s.rng.IntN(3) == 0 {
		w.Worker = []messages.NodeID{"n1", "n3", "n5"}
	}
	got, r := s.table.Place(w)
	if want := s.look(&w); got != want {
		s.t.Fatalf("placed on %q (%v), a look at every node says %q", got, r, want)
	}
	if r != nil && len(w.Worker) == 0 && len(r.Nodes) != len(s.nodes) {
		s.t.Fatalf("%d of %d nodes have a reason", len(r.Nodes), len(s.nodes))
	}
}

// look finds the best node by looking at every one, from what was done to the table.
func (s *story) look(w *Want) messages.NodeID {
	type score struct {
		jobs int
		load float64
		n    int
		id   messages.NodeID
	}
	var all []score
	for id, n := range s.nodes {
		if !n.Online || (len(w.Worker) > 0 && !slices.Contains(w.Worker, id)) {
			continue
		}
		sc := score{id: id, n: len(s.held[id])}
		var used, leaving messages.Resources
		clash := false
		for instance, r := range s.held[id] {
			add(&used, r.spec.Resources, 1)
			if r.leaving {
				add(&leaving, r.spec.Resources, 1)
			}
			if j, _, _, _ := instance.Split(); j == w.Job {
				sc.jobs++
			}
			clash = clash || ((!w.Patient || !r.leaving) && samePort(r.spec, w.Spec))
		}
		sc.load = max(used.CPUs/float64(n.Info.CPU.Cores), float64(used.MemoryMB)/float64(n.Info.MemoryMB))
		if w.Patient {
			add(&used, leaving, -1)
		}
		given := 0
		if slices.Contains(n.Info.Technologies[0].Runtimes, "nvidia") {
			for _, g := range n.Info.GPUs {
				given += strings.Count("NVIDIA nvidia", g.Vendor)
			}
		}
		need := w.Spec.Resources
		fits := (need.CPUs == 0 || used.CPUs+need.CPUs <= float64(n.Info.CPU.Cores)) && (need.MemoryMB == 0 || used.MemoryMB+need.MemoryMB <= n.Info.MemoryMB) &&
			(need.GPUs == 0 || used.GPUs+need.GPUs <= given)
		if fits && !clash {
			all = append(all, sc)
		}
	}
	if len(all) == 0 {
		return ""
	}
	return slices.MinFunc(all, func(a, b score) int {
		switch {
		case a.jobs != b.jobs:
			return a.jobs - b.jobs
		case a.load != b.load:
			if a.load < b.load {
				return -1
			}
			return 1
		case a.n != b.n:
			return a.n - b.n
		}
		return strings.Compare(string(a.id), string(b.id))
	}).id
}

func samePort(a, b messages.Spec) bool {
	for _, p := range a.Ports {
		for _, q := range b.Ports {
			pk, _ := hostPort(p)
			qk, _ := hostPort(q)
			if pk == qk {
				return true
			}
		}
	}
	return false
}

func (s *story) releaseAll() {
	for id, held := range s.held {
		for instance := range held {
			s.table.Release(id, instance)
		}
		e := s.table.nodes[id]
		if e == nil {
			continue
		}
		if len(e.instances)+len(e.jobs)+len(e.claims) > 0 || e.reserved != (messages.Resources{}) || e.leaving != (messages.Resources{}) {
			s.t.Errorf("%s: something is left: %+v", id, e)
		}
	}
}

// fleet is a table of 10,000 nodes that hold 50,000 instances of 500 jobs.
func fleet() *Table {
	t := NewTable()
	for i := range 10_000 {
		t.SetNode(board(messages.NodeID(fmt.Sprintf("n%05d", i)), func(n *Node) { n.Info.MemoryMB = 16_000 }))
	}
	for i := range 50_000 {
		job := messages.JobName(fmt.Sprintf("job-%d", i%500))
		w := Want{Job: job, Spec: spec(needs(messages.Resources{CPUs: 0.1, MemoryMB: 64 + i%64}))}
		id, _ := t.Find(w)
		t.Reserve(id, messages.NewInstanceID(job, i/500, 0), job, w.Spec)
	}
	return t
}

// BenchmarkPlace finds a node and reserves on it, and takes it back, on 10,000 nodes with 50,000 instances.
func BenchmarkPlace(b *testing.B) {
	t := fleet()
	for _, c := range []struct {
		name string
		want Want
	}{
		{"any", Want{Job: "new", Spec: spec(needs(messages.Resources{CPUs: 0.1, MemoryMB: 64}))}},
		{"a copy of a job with 100", Want{Job: "job-7", Spec: spec(needs(messages.Resources{CPUs: 0.1, MemoryMB: 64}))}},
		{"ten of them", Want{Job: "new", Spec: spec(), Worker: []messages.NodeID{"n00001", "n00002", "n00003", "n00004", "n00005", "n00006", "n00007", "n00008", "n00009", "n09999"}}},
		{"none, without reasons", Want{Job: "new", Spec: spec(needs(messages.Resources{CPUs: 64}))}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if id, found := t.Find(c.want); found {
					t.Reserve(id, "new.0.0", c.want.Job, c.want.Spec)
					t.Release(id, "new.0.0")
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "placements/s")
		})
	}
}
