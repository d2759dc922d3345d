//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// perPacket is what the benchmarks of the package service have reported: ns of processor time, by benchmark and case.
type perPacket struct {
	samples map[string]map[string][]float64
	cases   []string // in their order
}

// benchmarkLine is one case of one benchmark with its result.
var benchmarkLine = regexp.MustCompile(`(?m)^Benchmark(\w+)/(\S+?)(?:-\d+)?\s.*?([\d.]+) cpu-ns/each`)

// measureService runs the benchmarks of the package service, all of them once a round. It is run from the top of the repository.
func measureService(ctx context.Context, rounds int) (*perPacket, error) {
	const folder = "./netmanager/service"
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "service.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, folder).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go test -c %s: %w: %s", folder, err, out)
	}
	p := &perPacket{samples: map[string]map[string][]float64{}}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d: service\n", round+1, rounds)
		cmd := exec.CommandContext(ctx, binary, "-test.run", "^$", "-test.bench", "^Benchmark(Out|In|NewFlow)$", "-test.benchtime", "200ms")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("benchmarks of %s: %w: %s", folder, err, out)
		}
		if err := p.read(string(out)); err != nil {
			return nil, fmt.Errorf("benchmarks of %s: %w: %s", folder, err, out)
		}
	}
	return p, nil
}

func (p *perPacket) read(out string) error {
	lines := benchmarkLine.FindAllStringSubmatch(out, -1)
	if len(lines) == 0 {
		return fmt.Errorf("no results")
	}
	for _, line := range lines {
		ns, err := strconv.ParseFloat(line[3], 64)
		if err != nil {
			return err
		}
		of := p.samples[line[1]]
		if of == nil {
			of = map[string][]float64{}
			p.samples[line[1]] = of
		}
		of[line[2]] = append(of[line[2]], ns)
		if !slices.Contains(p.cases, line[2]) {
			p.cases = append(p.cases, line[2])
		}
	}
	return nil
}

// render returns the table in Markdown, with the medians.
func (p *perPacket) render() string {
	var s strings.Builder
	s.WriteString("\nProcessor time of `service` for a packet of 64 bytes, copying it in included, in ns, medians of as many runs:\n\n")
	s.WriteString("| services in the table | flows, sent to in turn | a packet out | a packet in | the first packet of a flow |\n|---|---|---|---|---|\n")
	for _, c := range p.cases {
		services, flows, _ := strings.Cut(strings.TrimPrefix(c, "services="), ",flows=")
		fmt.Fprintf(&s, "| %s | %s |", services, flows)
		for _, benchmark := range []string{"Out", "In", "NewFlow"} {
			if samples := p.samples[benchmark][c]; len(samples) > 0 {
				fmt.Fprintf(&s, " %.0f |", median(samples))
			} else {
				s.WriteString(" |")
			}
		}
		s.WriteString("\n")
	}
	return s.String()
}
