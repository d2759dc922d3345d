package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sparkline draws a figure over the points in one line of text.
func sparkline(points []sample, name string) string {
	const bars = "▁▂▃▄▅▆▇█"
	low, high := span(points, name)
	var line strings.Builder
	for _, q := range points {
		at := 0
		if high > low {
			at = int((q.values[name] - low) / (high - low) * 7)
		}
		line.WriteRune([]rune(bars)[at])
	}
	return line.String()
}

// span is the least and the most of a figure.
func span(points []sample, name string) (low, high float64) {
	for i, q := range points {
		v := q.values[name]
		if i == 0 || v < low {
			low = v
		}
		if i == 0 || v > high {
			high = v
		}
	}
	return low, high
}

// plot draws every figure over time, one below the other, into var/soak/soak.svg of the repository.
func plot(parts []part, samples, quiet []sample) (string, error) {
	const width, height, left = 700, 60, 190
	var svg strings.Builder
	row := 0
	for _, p := range parts {
		for _, f := range figures {
			name := p.name + " " + f.name
			points := slices.DeleteFunc(slices.Clone(samples), func(q sample) bool { _, ok := q.values[name]; return !ok })
			if len(points) == 0 {
				points = slices.DeleteFunc(slices.Clone(quiet), func(q sample) bool { _, ok := q.values[name]; return !ok })
			}
			if len(points) < 2 {
				continue
			}
			_, high := span(points, name)
			until := points[len(points)-1].at
			top := row * (height + 12)
			fmt.Fprintf(&svg, `<text x="4" y="%d">%s</text><text x="4" y="%d" fill="#666">0 to %.2f, %s</text>`+"\n", top+24, name, top+42, high, until.Round(time.Second))
			fmt.Fprintf(&svg, `<rect x="%d" y="%d" width="%d" height="%d" fill="#f4f4f4"/><polyline fill="none" stroke="#06c" points="`, left, top, width, height)
			for _, q := range points {
				fmt.Fprintf(&svg, "%.1f,%.1f ", left+width*q.at.Seconds()/until.Seconds(), float64(top+height)-q.values[name]/max(high, 1e-9)*(height-4))
			}
			svg.WriteString(`"/>` + "\n")
			row++
		}
	}
	path, err := filepath.Abs("../../var/soak/soak.svg")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+8, row*(height+12))
	return path, os.WriteFile(path, []byte(head+svg.String()+"</svg>\n"), 0o600)
}

// What grows is told from what only moves.
func TestTrend(t *testing.T) {
	points := func(values ...float64) (all []sample) {
		for _, v := range values {
			all = append(all, sample{values: map[string]float64{"x": v}})
		}
		return all
	}
	for _, c := range []struct {
		points      []sample
		first, last float64
	}{
		{points(5, 1, 9, 9, 2, 1), 1, 1},
		{points(1, 2, 3, 4, 5, 6, 7, 8, 9), 1, 7},
		{points(3), 3, 3},
	} {
		first, last, some := trend(c.points, "x")
		if first != c.first || last != c.last || !some {
			t.Errorf("got %g, %g, %t, want %g, %g", first, last, some, c.first, c.last)
		}
	}
	if _, _, some := trend(points(1), "y"); some {
		t.Error("nothing was measured of it")
	}
	if got := sparkline(points(0, 7, 3.5), "x"); got != "▁█▄" {
		t.Errorf("got %q", got)
	}
}
