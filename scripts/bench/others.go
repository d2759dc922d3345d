package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// measureOthers takes what a well-behaved client waits for its answers while others attack the manager. The attacks are those of the test, which
// tells what it has measured.
func measureOthers(ctx context.Context, b *bench) ([]figure, error) {
	const test, nobody, busy = "TestHostileClients", "nobody", "busy processors"
	runs := max(b.runs/2, 5)
	var names []string
	trips := map[string][]float64{}
	for range runs {
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "^"+test+"$", "./scripts/e2e")
		cmd.Env = append(os.Environ(), "SKERRY_TEST_ALL=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("go test %s (run bench from the top of the repository): %w: %s", test, err, out)
		}
		for line := range strings.Lines(string(out)) {
			_, attribute, ok := strings.Cut(line, "=== ATTR  "+test+" p99_ms ")
			value, name, _ := strings.Cut(strings.TrimSpace(attribute), " ")
			ms, err := strconv.ParseFloat(value, 64)
			if !ok || err != nil {
				continue
			}
			if trips[name] == nil {
				names = append(names, name)
			}
			trips[name] = append(trips[name], ms)
		}
	}
	var figures []figure
	for _, name := range names {
		if len(trips[name]) != runs {
			return nil, fmt.Errorf("%s: %d results of %d of %s", test, len(trips[name]), runs, name)
		}
		f := of("a command's answer, p99, beside "+name, "ms", "", trips[name])
		if name != nobody && name != busy {
			f.Goal = "≤ 3× the floor"
			f = f.over("beside "+busy, trips[name], trips[busy])
		}
		figures = append(figures, f)
	}
	return figures, nil
}
