package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminalSize asks the kernel; what is no terminal has no size.
func terminalSize(f *os.File) (width, height int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	width, height = int(size.Col), int(size.Row)
	if width == 0 || height == 0 { // as under some consoles on a serial line
		width, height = 80, 24
	}
	return width, height, true
}
