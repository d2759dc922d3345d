package main

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"html"
	"slices"
	"strings"
)

// The measures of a flame graph, in pixels.
const (
	flameWidth  = 1600.0
	flameHeight = 16
	flameLeast  = 0.5 // what is narrower is left out
	flameLetter = 6.6
)

// drawFlames renders frames as an SVG picture: each as wide as its share, callers below.
func drawFlames(root *frame) []byte {
	var shapes bytes.Buffer
	depth := drawFrame(&shapes, root, root.value, 0, 0)
	height := (depth + 1) * flameHeight
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" font-family="monospace" font-size="11">`+"\n", flameWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fffdf5"/><g transform="translate(0 %d) scale(1 -1)">`+"\n", height)
	b.Write(shapes.Bytes())
	b.WriteString("</g></svg>\n")
	return b.Bytes()
}

// drawFrame draws a frame and what it has called, and returns how deep that goes.
func drawFrame(b *bytes.Buffer, f *frame, total int64, x float64, level int) int {
	width := flameWidth * float64(f.value) / float64(total)
	if width < flameLeast {
		return level
	}
	h := fnv.New32a()
	h.Write([]byte(f.name)) //nolint:errcheck // a hash.Hash never returns an error, by its contract
	y := level * flameHeight
	fmt.Fprintf(b, `<g><title>%s: %.1f %%</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="hsl(%d 80%% 68%%)" stroke="#fffdf5" stroke-width="0.4"/>`,
		html.EscapeString(f.name), 100*float64(f.value)/float64(total), x, y, width, flameHeight, 10+h.Sum32()%45)
	if letters := int(width / flameLetter); letters > 3 {
		name := f.name[strings.LastIndex(f.name, "/")+1:]
		fmt.Fprintf(b, `<text transform="translate(%.1f %d) scale(1 -1)">%s</text>`, x+2, y+4, html.EscapeString(name[:min(len(name), letters)]))
	}
	b.WriteString("</g>\n")
	slices.SortFunc(f.children, func(a, c *frame) int { return cmp.Or(cmp.Compare(c.value, a.value), cmp.Compare(a.name, c.name)) })
	depth := level
	for _, c := range f.children {
		depth = max(depth, drawFrame(b, c, total, x, level+1))
		x += flameWidth * float64(c.value) / float64(total)
	}
	return depth
}
