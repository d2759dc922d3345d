//go:build linux

package link

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// record is what the host's own switches were before the first engine changed them, and the engines that need the change. It is one file of
// lines for each network namespace, locked while it is open, and void after a boot: the kernel has forgotten by then too.
type record struct {
	file    *os.File
	boot    string // and namespace: what the lines are about
	users   []string
	entries []entry
	// settled says that what was written down for a moment only has been put back: see setForward6.
	settled bool
	changed bool
}

// entry is one switch and the value it had.
type entry struct{ path, value string }

func openRecord(dir string) (*record, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as /run is; nothing in it is secret
		return nil, fmt.Errorf("state: %w", err)
	}
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return nil, fmt.Errorf("state: own namespace: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	file, err := lockFile(filepath.Join(dir, fmt.Sprintf("link-%d", namespace.Ino)))
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	r := &record{file: file, boot: fmt.Sprintf("%s %d", bytes.TrimSpace(boot), namespaceCookie())}
	content, err := os.ReadFile(file.Name())
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("state: %w", err)
	}
	r.read(content)
	return r, nil
}

// namespaceCookie tells this thread's namespace from all others of this boot: the number in the file's name is given again. It is 0 on a
// kernel older than 5.14.
func namespaceCookie() uint64 {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// lockFile opens a file that is still there once it is locked: the one who held it may have removed it.
func lockFile(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // as in openRecord
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		var held, there unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(file.Fd()), &held)
		}
		if err == nil && unix.Stat(path, &there) == nil && held.Ino == there.Ino {
			return file, nil
		}
		_ = file.Close()
		if err != nil {
			return nil, err
		}
	}
}

// read takes what was written since this boot; a line cut short by a crash is worth nothing.
func (r *record) read(content []byte) {
	lines := strings.SplitAfter(string(content), "\n")
	if lines[0] != "boot "+r.boot+"\n" {
		return
	}
	for _, line := range lines[1:] {
		words := strings.Fields(line)
		switch {
		case !strings.HasSuffix(line, "\n"):
		case len(words) == 1 && words[0] == "settled":
			r.settled = true
		case len(words) == 2 && words[0] == "user":
			r.users = append(r.users, words[1])
		case len(words) == 3 && words[0] == "was" && isSwitch(words[1]):
			r.entries = append(r.entries, entry{words[1], words[2]})
		}
	}
}

// isSwitch says whether a path can be one of the host's switches: what a damaged file says is written to no other place.
func isSwitch(path string) bool {
	return filepath.Clean(path) == path && (strings.HasPrefix(path, "ipv4/") || strings.HasPrefix(path, "ipv6/"))
}

// use enters an engine.
func (r *record) use(name string) {
	if !slices.Contains(r.users, name) {
		r.users = append(r.users, name)
		r.changed = true
	}
}

// note enters a switch as it is now, unless it has been entered already.
func (r *record) note(path string) {
	value, err := readSwitch(path)
	if err != nil || r.has(path) {
		return
	}
	r.entries = append(r.entries, entry{path, value})
	r.changed = true
}

// has says whether a switch has been entered.
func (r *record) has(path string) bool {
	return slices.ContainsFunc(r.entries, func(e entry) bool { return e.path == path })
}

// unsettled says that something is about to be changed for a moment.
func (r *record) unsettled() { r.settled, r.changed = false, true }

// settle says that it has been put back, and forgets it.
func (r *record) settle() error {
	r.entries = slices.DeleteFunc(r.entries, func(e entry) bool { return strings.HasSuffix(e.path, "/accept_ra") })
	r.settled, r.changed = true, true
	return r.save()
}

// save writes at the end of the file first and cuts it after: a crash in between leaves the old lines, which are right too.
func (r *record) save() error {
	if !r.changed {
		return nil
	}
	var content bytes.Buffer
	fmt.Fprintf(&content, "boot %s\n", r.boot)
	for _, name := range r.users {
		fmt.Fprintf(&content, "user %s\n", name)
	}
	for _, e := range r.entries {
		fmt.Fprintf(&content, "was %s %s\n", e.path, e.value)
	}
	if r.settled {
		fmt.Fprintln(&content, "settled")
	}
	if _, err := r.file.WriteAt(content.Bytes(), 0); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	r.changed = false
	if err := r.file.Truncate(int64(content.Len())); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// release takes an engine out, and those that are not alive; with the last one the host's switches get back what they had, unless somebody else
// has turned forwarding on for the whole host meanwhile and relies on it.
func (r *record) release(name string, alive func(name string) bool) error {
	before := len(r.users)
	r.users = slices.DeleteFunc(r.users, func(user string) bool { return user == name || !alive(user) })
	r.changed = r.changed || len(r.users) != before
	if len(r.users) > 0 {
		return r.save()
	}
	var errs []error
	all4, _ := readSwitch(forwardAll4)
	// The host as a whole first: it sets every interface, and those are put back after.
	slices.SortStableFunc(r.entries, func(a, b entry) int { return order(a.path) - order(b.path) })
	for _, e := range r.entries {
		if all4 == "1" && strings.HasPrefix(e.path, "ipv4/") {
			continue
		}
		if err := ignoreMissing(writeSwitch(e.path, e.value)); err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", e.path, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return os.Remove(r.file.Name())
}

func order(path string) int {
	if path == forwardAll6 {
		return 0
	}
	return 1
}

func (r *record) close() { _ = r.file.Close() } // and with it the lock
