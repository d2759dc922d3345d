package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"skerry.internal/messages"
)

// An order is sorted and whole after whatever is put in, taken out and put in elsewhere.
func TestOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var o order
	var in []*entry
	for step := range 20_000 {
		switch n := r.IntN(10); {
		case n < 4 && step < 15_000 || len(in) == 0:
			e := &entry{Node: Node{ID: messages.NodeID(fmt.Sprint("n", step))}, load: float64(r.IntN(20))}
			o.insert(e)
			in = append(in, e)
		case n < 7:
			e := in[r.IntN(len(in))]
			o.remove(e)
			e.load = float64(r.IntN(20))
			o.insert(e)
		default:
			i := r.IntN(len(in))
			o.remove(in[i])
			in = slices.Delete(in, i, i+1)
		}
		if step%500 != 0 {
			continue
		}
		got := slices.Concat(o.pieces...)
		if len(got) != len(in) || !slices.IsSortedFunc(got, before) {
			t.Fatalf("step %d: %d of %d are there, sorted %v", step, len(got), len(in), slices.IsSortedFunc(got, before))
		}
		for _, p := range o.pieces {
			if len(p) == 0 || len(p) > pieceMost {
				t.Fatalf("a piece of %d", len(p))
			}
		}
	}
}
