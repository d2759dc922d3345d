//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The markers between which the table stands in the README.
const (
	tableBegins = "<!-- bench-network begins -->"
	tableEnds   = "<!-- bench-network ends -->"
)

// render returns the table in Markdown, with the medians.
func render(paths []*path) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, commit %s, %s, medians of %d interleaved runs\n\n", machine(), commit(), time.Now().UTC().Format(time.DateOnly), runs(paths))
	fmt.Fprintf(&s, "| path | %s | |\n|---|%s---|\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, p := range paths {
		fmt.Fprintf(&s, "| %s |", p.name)
		for _, c := range columns {
			fmt.Fprintf(&s, " %s |", cell(p.samples[c]))
		}
		fmt.Fprintf(&s, " %s |\n", p.note)
	}
	return s.String() + ratios(paths)
}

// ratios sets ours beside the floors, run by run.
func ratios(paths []*path) string {
	find := func(name string) *path {
		if i := slices.IndexFunc(paths, func(p *path) bool { return p.name == name }); i >= 0 {
			return paths[i]
		}
		return nil
	}
	over, bare, raw := find("Skerry, two nodes"), find("bare wireguard-go"), find("raw veth, two nodes")
	if over == nil || bare == nil || raw == nil {
		return ""
	}
	ratio := func(what string, floor *path) float64 {
		all := make([]float64, len(over.samples[what]))
		for i := range all {
			all[i] = over.samples[what][i] / floor.samples[what][i]
		}
		return median(all)
	}
	added := make([]float64, len(over.samples[trip]))
	for i := range added {
		added[i] = over.samples[trip][i] - raw.samples[trip][i]
	}
	return fmt.Sprintf("\nOne TCP stream through a service address: %.2f of bare wireguard-go, %.2f of the raw link; round trip p50: %.0f µs more than the raw link; "+
		"datagrams of 64 bytes: %.2f of bare wireguard-go.\n", ratio(stream, bare), ratio(stream, raw), median(added), ratio(small, bare))
}

func runs(paths []*path) int {
	if len(paths) == 0 {
		return 0
	}
	return len(paths[0].samples[stream])
}

func cell(samples []float64) string {
	if len(samples) == 0 { // no process carries it
		return "–"
	}
	switch v := median(samples); {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func kernel() string {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "Linux"
	}
	var s []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		s = append(s, byte(c))
	}
	return "Linux " + string(s)
}

func commit() string {
	out, err := exec.CommandContext(context.Background(), "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// insert puts the table between its markers.
func insert(file, table string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(content), tableBegins)
	_, after, closed := strings.Cut(rest, tableEnds)
	if !ok || !closed {
		return fmt.Errorf("%s holds no %s and %s", file, tableBegins, tableEnds)
	}
	return os.WriteFile(file, []byte(before+tableBegins+"\n\n"+table+"\n"+tableEnds+after), 0o644)
}
