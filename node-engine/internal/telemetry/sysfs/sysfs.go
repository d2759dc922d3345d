// Package sysfs reads the small text files by which a kernel tells what it knows. It exists so that one reading costs three system
// calls and no more than 4 KiB, and so that tests can put a made tree in the place of /sys. It must not follow what it reads, keep
// files open or write.
package sysfs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

const (
	maxFile    = 4 << 10 // an attribute in sysfs is one page at most
	maxEntries = 4096    // of a directory; no board has as many, a broken tree may
	maxName    = 64      // runes of a name; it travels with every telemetry
)

// Tree is a file system tree as the kernel shows it, below some directory. All paths are absolute and begin at the Tree's root, such
// as "/sys/class/hwmon". The zero Tree is the machine's own.
type Tree struct {
	root string
}

// At returns the Tree below root; "" and "/" are the machine's own.
func At(root string) Tree {
	return Tree{root: strings.TrimRight(root, "/")}
}

// Path returns where path really is.
func (t Tree) Path(path string) string {
	return t.root + path
}

// Text returns what the file holds, without the white space and zero bytes around it.
func (t Tree) Text(path string) (string, error) {
	var buf [maxFile]byte
	n, err := t.read(path, buf[:])
	if err != nil {
		return "", err
	}
	return strings.Trim(string(buf[:n]), "\x00 \t\r\n"), nil
}

// read fills buf from the file's beginning. It bypasses os.File, whose registration with the poller costs more than the reading.
func (t Tree) read(path string, buf []byte) (int, error) {
	path = t.Path(path)
	fd, err := retry(func() (int, error) { return syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0) })
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer syscall.Close(fd) //nolint:errcheck // nothing was written
	n, err := retry(func() (int, error) { return syscall.Read(fd, buf) })
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// retry repeats call while a signal interrupts it.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// Name returns the file's text made fit for a name, "" where there is none: one line of printable characters, at most 64 of them.
func (t Tree) Name(path string) string {
	text, err := t.Text(path)
	if err != nil {
		return ""
	}
	return Clean(text)
}

// Clean makes text fit for a name: one line of printable characters, at most 64 of them.
func Clean(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	text = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > maxName {
		text = string(runes[:maxName])
	}
	return strings.TrimSpace(text)
}

// Float returns the number that the file holds. What is not finite is an error: JSON can't carry it.
func (t Tree) Float(path string) (float64, error) {
	text, err := t.Text(path)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%s: %q is no number", t.Path(path), Clean(text))
	}
	return v, nil
}

// Uint returns the counter that the file holds.
func (t Tree) Uint(path string) (uint64, error) {
	text, err := t.Text(path)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no counter", t.Path(path), Clean(text))
	}
	return v, nil
}

// Exists reports whether there is something at path.
func (t Tree) Exists(path string) bool {
	_, err := os.Stat(t.Path(path))
	return err == nil
}

// List returns the sorted names in a directory, none where it can't be read.
func (t Tree) List(dir string) []string {
	f, err := os.Open(t.Path(dir))
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.Sort(names)
	return names
}

// Target returns the last element of what the symbolic link at path points at, "" where it is none.
func (t Tree) Target(path string) string {
	target, err := os.Readlink(t.Path(path))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// Real returns path with its links resolved as the machine sees it, and path itself where that is not possible. It tells whether two
// paths are one thing.
func (t Tree) Real(path string) string {
	target, err := filepath.EvalSymlinks(t.Path(path))
	if err != nil {
		return path
	}
	return target
}
