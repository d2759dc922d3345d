package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

func TestResize(t *testing.T) {
	for _, c := range []struct {
		have []int
		n    int
		want []int
	}{
		{nil, 0, []int{}},
		{nil, 3, []int{0, 1, 2}},
		{[]int{0, 1, 2}, 3, []int{0, 1, 2}},
		{[]int{0, 1, 2}, 1, []int{0}},
		{[]int{1, 3}, 2, []int{1, 3}},
		{[]int{1, 3}, 4, []int{0, 1, 2, 3}}, // the lowest free ones
		{[]int{1, 3}, 5, []int{0, 1, 2, 3, 4}},
		{[]int{5}, 2, []int{0, 5}},
		{[]int{1, 3, 7}, 1, []int{1}}, // the highest go
		{[]int{2}, 0, []int{}},
	} {
		before := slices.Clone(c.have)
		j := &Job{Ordinals: c.have}
		j.Resize(c.n)
		if !slices.Equal(j.Ordinals, c.want) || *j.Spec.Replicas != c.n {
			t.Errorf("%v to %d: got %v and %d replicas, want %v", before, c.n, j.Ordinals, *j.Spec.Replicas, c.want)
		}
		if !slices.Equal(c.have, before) {
			t.Errorf("%v became %v: somebody else's list was changed", before, c.have)
		}
	}
}

// No ordinal ever gets one generation twice, whatever is dropped and added in between.
func TestNextGeneration(t *testing.T) {
	j := &Job{}
	seen := map[string]bool{}
	for _, o := range []int{0, 0, 1, 0, 7, 1, 0} {
		id := fmt.Sprint(o, ".", j.NextGeneration(o))
		if seen[id] {
			t.Errorf("%s twice", id)
		}
		seen[id] = true
		j.Resize(o)
	}
	if !seen["0.3"] || !seen["1.1"] || !seen["7.0"] {
		t.Errorf("got %v", seen)
	}
}

func TestPlacementWords(t *testing.T) {
	zero := 0
	status := func(s messages.State, healthy bool) *messages.InstanceStatus {
		return &messages.InstanceStatus{State: s, Healthy: healthy, ExitCode: &zero}
	}
	for _, c := range []struct {
		name            string
		p               Placement
		up, ended, gone bool
		state, lost     messages.State
	}{
		{"loaded", Placement{Run: true}, false, false, false, messages.UnknownStatus, messages.Lost},
		{"placed", Placement{Run: true, AwaitedSince: time.Unix(1, 0)}, false, false, false, messages.Pending, messages.Lost},
		{"waits", Placement{Run: true, After: "web.0.0"}, false, false, false, messages.Pending, messages.Lost},
		{"runs", Placement{Run: true, Observed: status(messages.Running, false)}, false, false, false, messages.Running, messages.Lost},
		{"healthy", Placement{Run: true, Observed: status(messages.Running, true)}, true, false, false, messages.Running, messages.Lost},
		{"failed", Placement{Run: true, Observed: status(messages.FailedState, false)}, false, true, false, messages.FailedState, messages.Lost},
		{"finished", Placement{Run: true, Finished: true, Observed: status(messages.ExitedState, false)}, true, false, false, messages.ExitedState, messages.ExitedState},
		{"stopping", Placement{Observed: status(messages.Running, true)}, true, false, false, messages.Running, messages.Lost},
		{"gone", Placement{Observed: status(messages.Stopped, false)}, false, true, true, messages.Stopped, messages.Lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.p.Up() != c.up || c.p.Ended() != c.ended || c.p.Gone() != c.gone {
				t.Errorf("up %v, ended %v, gone %v; want %v, %v, %v", c.p.Up(), c.p.Ended(), c.p.Gone(), c.up, c.ended, c.gone)
			}
			if c.p.State(false) != c.state || c.p.State(true) != c.lost {
				t.Errorf("state %s, lost %s; want %s, %s", c.p.State(false), c.p.State(true), c.state, c.lost)
			}
			if r := c.p.Report(true); r.State != c.lost || (r.State == messages.Lost) != (r.Reason != "" && !r.Healthy) {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// filled returns a State with one of each and the store that holds it.
func filled(t *testing.T) (*State, *store.Memory) {
	t.Helper()
	st := NewState()
	spec := messages.Job{Name: "web", Spec: messages.Spec{Image: "x"}}.WithDefaults()
	j := &Job{Spec: spec, Hash: HashSpec(spec.Spec), Rev: st.NextRev(), Ordinals: []int{0}}
	st.PutJob(j)
	st.PutNode(&Node{ID: "a", Kind: messages.Spare, Epoch: 1, Agreed: true, Info: messages.NodeInfo{Name: "a", Key: "k", Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}})
	st.PutPlacement(&Placement{Instance: messages.NewInstanceID("web", 0, j.NextGeneration(0)), Job: "web", Node: "a", Rev: st.NextRev(), Hash: j.Hash, Spec: spec.Spec, Run: true, Cause: ByDeploy})
	st.PutJob(j)
	st.PutRequest("r1", []byte("{}"))
	s := new(store.Memory)
	commit(t, s, st)
	return st, s
}

func commit(t *testing.T, s *store.Memory, st *State) {
	t.Helper()
	changes := st.TakeChanges()
	seen := map[string]bool{}
	for _, c := range changes {
		id := string(c.Bucket) + "/" + c.Key
		if seen[id] {
			t.Errorf("%s is written twice in one commit", id)
		}
		seen[id] = true
	}
	if err := s.Commit(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, s store.Store) (*State, []error) {
	t.Helper()
	st, damaged, err := Load(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return st, damaged
}

func TestLoadGivesBackWhatWasSaved(t *testing.T) {
	st, s := filled(t)
	got, damaged := load(t, s)
	if len(damaged) > 0 {
		t.Fatal(damaged)
	}
	if diff := cmp.Diff(st.Jobs, got.Jobs, cmp.Comparer(func(a, b messages.ClientID) bool { return a == b })); diff != "" {
		t.Errorf("jobs (-saved +loaded):\n%s", diff)
	}
	if diff := cmp.Diff(st.Nodes, got.Nodes); diff != "" {
		t.Errorf("nodes (-saved +loaded):\n%s", diff)
	}
	if got.Rev != st.Rev || len(got.TakeChanges()) != 0 {
		t.Errorf("rev %d, want %d, and nothing to write", got.Rev, st.Rev)
	}
	if p := got.Placement("web.0.0"); p == nil || len(got.PlacedOn("a")) != 1 || len(got.Assignments("a")) != 1 {
		t.Errorf("placement %+v is not in the indexes", p)
	}
	j := got.Jobs["web"]
	if g := j.NextGeneration(0); g != 1 {
		t.Errorf("generation %d is used twice", g)
	}
	got.DropJob(j)
	commit(t, s, got)
	if again, _ := load(t, s); len(again.Jobs) != 0 || len(again.PlacedOn("a")) != 0 || again.Rev != st.Rev {
		t.Errorf("after the drop: %d jobs, %v, rev %d", len(again.Jobs), again.PlacedOn("a"), again.Rev)
	}
}

// One damaged record is put aside and said; the others are loaded. It is not met again.
func TestLoadPutsDamagedAside(t *testing.T) {
	for name, c := range map[string]struct {
		bucket     store.Bucket
		key, value string
		says       string
	}{
		"no json":           {store.Jobs, "db", `{"spec":`, "unexpected end"},
		"invalid job":       {store.Jobs, "db", `{"spec":{"name":"db"},"ordinals":[]}`, "job.image"},
		"other name":        {store.Jobs, "db", `{"spec":{"name":"web2","image":"x"},"ordinals":[]}`, `named "web2"`},
		"ordinals unsorted": {store.Jobs, "db", `{"spec":{"name":"db","image":"x"},"ordinals":[1,0]}`, "ordinals"},
		"ordinals twice":    {store.Jobs, "db", `{"spec":{"name":"db","image":"x"},"ordinals":[1,1]}`, "ordinals"},
		"ordinal negative":  {store.Jobs, "db", `{"spec":{"name":"db","image":"x"},"ordinals":[-1]}`, "ordinals"},
		"previous":          {store.Jobs, "db", `{"spec":{"name":"db","image":"x"},"ordinals":[],"previous":{"spec":{},"ordinals":[]}}`, "job.name"},
		"placement name":    {store.Placements, "x", `{"instance":"x"}`, "want <job>"},
		"placement of else": {store.Placements, "web.1.0", `{"instance":"web.1.0","job":"db","ordinal":1,"node":"a"}`, "differ from its name"},
		"placement nowhere": {store.Placements, "web.1.0", `{"instance":"web.1.0","job":"web","ordinal":1}`, "node"},
		"orphan":            {store.Placements, "db.0.0", `{"instance":"db.0.0","job":"db","node":"a"}`, "its job is not there"},
		"node":              {store.Nodes, "b", `[]`, "cannot unmarshal"},
		"node name":         {store.Nodes, "b", `{"id":"c"}`, `named "c"`},
		"rev":               {store.Meta, "rev", `many`, "invalid syntax"},
		"guest nobody is":   {store.Guests, "phone", `{"name":"phone","public_key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","address":"10.160.1.2"}`, "no secret can be shared"},
		"interest":          {store.Interests, "a", `["Web"]`, `"Web"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := filled(t)
			if err := s.Commit(t.Context(), []store.Change{{Bucket: c.bucket, Key: c.key, Value: []byte(c.value)}}); err != nil {
				t.Fatal(err)
			}
			st, damaged := load(t, s)
			if len(damaged) != 1 || !strings.Contains(damaged[0].Error(), c.says) || strings.Contains(damaged[0].Error(), "%!") {
				t.Fatalf("damaged: %v, want one that says %q", damaged, c.says)
			}
			if st.Placement("web.0.0") == nil || st.Nodes["a"] == nil || len(st.Guests) > 0 {
				t.Error("a good record was lost, or a bad one is there")
			}
			if unsure := c.bucket != store.Guests && c.bucket != store.Interests; st.Nodes["a"].Agreed == unsure {
				t.Errorf("the record may be of what runs: %t, but the node is agreed: %t", unsure, !unsure)
			}
			commit(t, s, st)
			if _, damaged := load(t, s); len(damaged) > 0 {
				t.Errorf("met again: %v", damaged)
			}
		})
	}
}

// A placement whose node's record was damaged is kept.
func TestLoadWithoutNode(t *testing.T) {
	_, s := filled(t)
	if err := s.Commit(t.Context(), []store.Change{{Bucket: store.Nodes, Key: "a"}}); err != nil {
		t.Fatal(err)
	}
	st, damaged := load(t, s)
	if len(damaged) > 0 || st.Nodes["a"] == nil || len(st.PlacedOn("a")) != 1 {
		t.Errorf("node %+v, damaged %v", st.Nodes["a"], damaged)
	}
}

func TestKeepObserved(t *testing.T) {
	old, s := filled(t)
	now := time.Unix(1_800_000_000, 0)
	n, p := old.Nodes["a"], old.Placement("web.0.0")
	n.Online, n.Since, n.BootID, n.ClockSkewMS, n.Epoch = true, now, "boot", 7, 5
	p.Observed, p.AwaitedSince, p.HealthySince = &messages.InstanceStatus{State: messages.Running}, now, now
	p.Failure, p.Forgiven = &Failure{Code: messages.Unhealthy}, 2
	lost := &Placement{Instance: "web.0.1", Job: "web", Generation: 1, Node: "a"} // placed by what was not committed
	old.PutPlacement(lost)
	st, _ := load(t, s)
	st.Nodes["a"].Unmet = true // on disk still
	st.KeepObserved(old, now.Add(time.Second))
	got, m := st.Placement("web.0.0"), st.Nodes["a"]
	if got.Observed != p.Observed || got.AwaitedSince != p.AwaitedSince || got.HealthySince != p.HealthySince || got.Failure != p.Failure || got.Forgiven != 2 {
		t.Errorf("placement: %+v", got)
	}
	if !m.Online || !m.Since.Equal(now) || m.BootID != "boot" || m.ClockSkewMS != 7 || m.Epoch != 5 || m.Unmet {
		t.Errorf("node: %+v", m)
	}
	if st.Placement("web.0.1") != nil || m.Instances["web.0.1"] {
		t.Error("what was not committed is there")
	}
	if changes := st.TakeChanges(); len(changes) != 2 || changes[0].Bucket != store.Nodes || changes[1].Bucket != store.Placements {
		t.Errorf("to be written: %v, want the node with its epoch, and the placement with what it was forgiven", changes)
	}
}

// Each placement is written with its own spec, also where the specs differ in what their hash leaves out.
func TestSpecsOfOneHash(t *testing.T) {
	st, s := filled(t)
	first := st.Placement("web.0.0")
	second := *first
	second.Instance, second.Ordinal, second.Spec.Network.Allow = "web.1.0", 1, []messages.JobName{}
	st.PutPlacement(first)
	st.PutPlacement(&second)
	commit(t, s, st)
	got, _ := load(t, s)
	for _, want := range []*Placement{first, &second} {
		if p := got.Placement(want.Instance); p == nil || !cmp.Equal(p.Spec.Network, want.Spec.Network) {
			t.Errorf("got %+v, want %+v", p, want)
		}
	}
}

// What waits for another instance to go is not told to the node; what is to be stopped is.
func TestAssignments(t *testing.T) {
	st, _ := filled(t)
	st.PutPlacement(&Placement{Instance: "web.0.1", Job: "web", Generation: 1, Node: "a", Rev: 9, Run: true, After: "web.0.0"})
	st.PutPlacement(&Placement{Instance: "web.1.0", Job: "web", Ordinal: 1, Node: "a", Rev: 10})
	got := st.Assignments("a")
	if len(got) != 2 || got[0].Instance != "web.0.0" || !got[0].Run || got[0].Spec == nil || got[1].Instance != "web.1.0" || got[1].Run || got[1].Spec != nil {
		t.Errorf("got %+v", got)
	}
	if len(st.Assignments("nobody")) != 0 || st.Placement("not an instance") != nil || st.Placement("none.0.0") != nil {
		t.Error("something comes of nothing")
	}
}
