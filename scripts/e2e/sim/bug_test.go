//go:build !race

package sim

import "testing"

// defaultSeeds is how many seeds are played unless somebody asks for another number.
const defaultSeeds = 500

// TestBugsAreFound holds that the rules find what they are there for.
func TestBugsAreFound(t *testing.T) {
	for _, bug := range Bugs() {
		t.Run(string(bug), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(defaultSeeds) {
				if o := play(t, seed, bug); len(o.Violations) > 0 {
					t.Logf("seed %d: %s", seed, o.Violations[0])
					return
				}
			}
			t.Errorf("not found in %d seeds", defaultSeeds)
		})
	}
}
