package sim

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	oneSeed = flag.Int64("seed", -1, "play this seed alone and print its story")
	seeds   = flag.Uint64("seeds", defaultSeeds, "how many seeds to play")
	logs    = flag.Bool("logs", false, "print the log of all parts")
)

// play plays one seed in a bubble of its own.
func play(t *testing.T, seed uint64, bug Bug) Outcome {
	t.Helper()
	return bubble(t, func(dir string, log *slog.Logger) Outcome { return Run(seed, bug, dir, log) })
}

func bubble(t *testing.T, run func(dir string, log *slog.Logger) Outcome) (o Outcome) {
	t.Helper()
	dir, err := os.MkdirTemp(memory(), "skerry-sim-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	out := io.Discard
	if *logs {
		out = os.Stderr
	}
	synctest.Test(t, func(*testing.T) {
		o = run(dir, slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	})
	return o
}

// memory returns a directory in memory where there is one: a story syncs some thousand files.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// TestSeeds plays every seed, or the one that was asked for with its story.
func TestSeeds(t *testing.T) {
	if *oneSeed >= 0 {
		o := play(t, uint64(*oneSeed), None)
		fmt.Println(strings.Join(o.Story, "\n"))
		for _, v := range o.Violations {
			t.Error(v)
		}
		return
	}
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			for _, v := range play(t, seed, None).Violations {
				t.Errorf("%s (make sim SEED=%d tells the story)", v, seed)
			}
		})
	}
}

// TestManagerLosesItsDisk plays what follows when a manager has lost its state: what runs must run on.
func TestManagerLosesItsDisk(t *testing.T) {
	for seed := range *seeds / 8 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			o := bubble(t, func(dir string, log *slog.Logger) Outcome { return RunLoss(seed, dir, log) })
			if len(o.Violations) > 0 {
				t.Errorf("%s\n%s", strings.Join(o.Violations, "\n"), strings.Join(o.Story, "\n"))
			}
		})
	}
}

// TestSameSeedSameStory holds that a story can be replayed.
func TestSameSeedSameStory(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			a, b := play(t, seed, None), play(t, seed, None)
			if len(a.Story) < 100 {
				t.Errorf("a story of %d lines", len(a.Story))
			}
			for i := range min(len(a.Story), len(b.Story)) {
				if a.Story[i] != b.Story[i] {
					t.Fatalf("the stories part at line %d:\n%s\n%s\nafter\n%s", i, a.Story[i], b.Story[i], strings.Join(a.Story[max(0, i-5):i], "\n"))
				}
			}
			if !slices.Equal(a.Story, b.Story) {
				t.Fatalf("got stories of %d and %d lines", len(a.Story), len(b.Story))
			}
		})
	}
}
