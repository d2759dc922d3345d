package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// measurePlacements runs the benchmark of the manager's core and that of its floor in turn. It is a benchmark of the package, since the core is not
// to be had from outside of the manager.
func measurePlacements(ctx context.Context, b *bench) ([]figure, error) {
	const folder = "./cluster-manager/internal/dispatch"
	runs := max(b.runs/2, 5)
	var own, floor []float64
	for range runs {
		out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkPlacements(Floor)?$", folder).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("go test %s (run bench from the top of the repository): %w: %s", folder, err, out)
		}
		own = append(own, metrics(string(out), "BenchmarkPlacements", "placements/s")...)
		floor = append(floor, metrics(string(out), "BenchmarkPlacementsFloor", "placements/s")...)
		if len(own) != len(floor) {
			return nil, fmt.Errorf("go test %s: not one result of each: %s", folder, out)
		}
	}
	if len(own) != runs {
		return nil, fmt.Errorf("go test %s: %d results of %d", folder, len(own), runs)
	}
	f := of("placements through the manager's core", "/s", "≥ 20,000", own).over("their assignments as JSON and nothing else", own, floor)
	f.Note = "10,000 nodes, 50,000 instances"
	return []figure{f}, nil
}

// metrics finds what a benchmark has reported in this unit.
func metrics(output, benchmark, unit string) (found []float64) {
	for line := range strings.Lines(output) {
		fields := append(strings.Fields(line), "")
		if name, _, _ := strings.Cut(fields[0], "-"); name != benchmark { // GOMAXPROCS is behind the dash
			continue
		}
		for i := 1; i < len(fields); i++ {
			if fields[i] != unit {
				continue
			}
			if v, err := strconv.ParseFloat(fields[i-1], 64); err == nil {
				found = append(found, v)
			}
		}
	}
	return found
}
