package view

import (
	"fmt"
	"strings"

	"rsc.io/qr"

	"skerry.internal/messages"
)

// Guests lists the guests. seen holds what nodes measure of them.
func (s Style) Guests(guests []messages.Guest, seen map[string]messages.PeerUse) string {
	rows := make([][]string, 0, len(guests))
	for _, g := range guests {
		path, shaken := "-", "-"
		if p, ok := seen[g.Guest]; ok {
			path, shaken = s.path(p.Path), handshake(p)
		}
		rows = append(rows, []string{g.Guest, g.Address, g.Address6, string(g.Gateway), path, shaken, s.Age(g.Since)})
	}
	return s.grid([]string{"guest", "address", "address6", "gateway", "path", "handshake", "since"}, rows)
}

// quiet is the width of the margin of a QR code that readers ask for, in modules; two are enough for a screen.
const quiet = 2

// QR draws a text as a QR code, two modules in a character. On a terminal it sets the colours, since a code that is light on dark is read by some
// readers only.
func QR(text string, terminal bool) (string, error) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", fmt.Errorf("qr code: %w", err)
	}
	light := func(x, y int) bool { return !code.Black(x, y) } // outside of the code too
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		if terminal {
			b.WriteString("\x1b[40;97m")
		}
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := light(x, y), light(x, y+1) && y+1 < code.Size+quiet; {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteRune(' ')
			}
		}
		if terminal {
			b.WriteString("\x1b[0m")
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}
