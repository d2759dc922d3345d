package cluster

import (
	"context"
	"testing"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// FuzzLoad holds for a record of any content beside good ones: it is read or put aside, never in the way of the others; what was read can be used,
// and is read again as it was written.
func FuzzLoad(f *testing.F) {
	st := NewState()
	one := 1
	spec := messages.Job{Name: "web", Replicas: &one, Spec: messages.Spec{Image: "x"}}.WithDefaults()
	j := &Job{Spec: spec, Rev: 3, Ordinals: []int{0}, Generations: map[int]int{0: 1}, Previous: &Previous{Spec: spec, Rev: 1, Ordinals: []int{0, 2}}}
	st.PutNode(&Node{ID: "n", Kind: messages.Core, Epoch: 2})
	st.PutJob(j)
	st.PutPlacement(&Placement{Instance: "web.0.0", Job: "web", Node: "n", Rev: 3, Run: true, Spec: spec.Spec})
	st.PutInterest("n", []messages.JobName{"web"})
	st.PutGuest(&Guest{Name: "phone", PublicKey: "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="})
	st.Floors["old"] = Floor{Generation: 3, Rev: 2}
	st.record(store.Floors, "old", st.Floors["old"])
	st.NextRev()
	good := st.TakeChanges()
	buckets := store.Buckets()
	for _, c := range good {
		for i, b := range buckets {
			if b == c.Bucket {
				f.Add(byte(i), c.Key, c.Value)
			}
		}
	}
	f.Add(byte(0), "web", []byte(`{"spec":{"name":"web","image":"x"},"ordinals":[0,1],"generations":{"0":-5,"7":9223372036854775807}}`))
	f.Add(byte(1), "web.1.0", []byte(`{"instance":"web.1.0","job":"web","ordinal":1,"node":"gone","after":"web.0.0"}`))
	f.Add(byte(2), "n", []byte("null"))
	f.Add(byte(7), commonFloor, []byte(`{"generation":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, bucket byte, key string, value []byte) {
		ctx := context.Background()
		memory := &store.Memory{}
		b := buckets[int(bucket)%len(buckets)]
		if b == store.Damaged || b == store.Requests {
			return // nothing is read there; dispatch reads the requests
		}
		commit := func(changes []store.Change) {
			if err := memory.Commit(ctx, changes); err != nil {
				t.Fatal(err)
			}
		}
		commit(append(append([]store.Change{}, good...), store.Change{Bucket: b, Key: key, Value: append([]byte{}, value...)}))
		load := func() (*State, []error) {
			s, damaged, err := Load(ctx, memory)
			if err != nil {
				t.Fatal(err)
			}
			return s, damaged
		}
		first, damaged := load()
		if len(damaged) > 0 && b != store.Jobs && (first.Jobs["web"] == nil) {
			t.Fatalf("a good job is lost by a record in %s: %v", b, damaged)
		}
		use(first)
		commit(first.TakeChanges())
		second, damaged := load()
		if len(damaged) > 0 {
			t.Fatalf("what was put aside or written is damaged: %v", damaged)
		}
		if second.Rev != first.Rev || len(second.Jobs) != len(first.Jobs) || len(second.Nodes) < len(first.Nodes)-1 {
			t.Fatalf("read again: rev %d of %d, %d jobs of %d, %d nodes of %d", second.Rev, first.Rev, len(second.Jobs), len(first.Jobs), len(second.Nodes), len(first.Nodes))
		}
		for _, j := range second.Jobs {
			second.DropJob(j)
		}
		commit(second.TakeChanges())
		if third, damaged := load(); len(damaged) > 0 || len(third.Jobs) != 0 {
			t.Fatalf("dropped jobs: %d are left, %v", len(third.Jobs), damaged)
		}
	})
}

// use does with a State what a manager does after it has started, and changes each record.
func use(st *State) {
	for _, j := range st.Jobs {
		for _, p := range j.Sorted() {
			p.Rev = st.NextRev()
			st.PutPlacement(p)
		}
		st.Floor(j.Spec.Name)
		if len(j.Ordinals) < 100 {
			j.Resize(len(j.Ordinals) + 1)
		}
		st.PutJob(j)
	}
	for id, n := range st.Nodes {
		st.Assignments(id)
		st.PutNode(n)
	}
	for _, g := range st.Guests {
		st.PutGuest(g)
	}
}
