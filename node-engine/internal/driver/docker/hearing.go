package docker

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// youth is how long after its start a container may still be on the way to its program.
const youth = 2 * time.Second

// awaitHearing waits until the first process of a container can take a signal, for as long as the container is young, and no longer than most. The
// kernel throws away what the first process of a PID namespace neither handles nor blocks, and every program, Docker's init too, begins like that: a
// stop that follows the start at once would have to wait for its whole grace.
func awaitHearing(ctx context.Context, pid int, started time.Time, signal string, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, min(most, youth-time.Since(started)))
	defer cancel()
	n := signalNumber(signal)
	for n > 0 && n <= 64 && ctx.Err() == nil && !hearing(pid, n) {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// hearing reports whether a process can take a signal, or is not to be asked: it has ended, or Docker's processes are not to be seen from here.
func hearing(pid, signal int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || hears(string(status), signal) {
		return true
	}
	// What waits for signals does not block them meanwhile: sigtimedwait(2), proc_pid_wchan(5). Without the right to look, and on a kernel without
	// names, this is 0.
	where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return strings.Contains(string(where), "sigtimedwait")
}

// signalNumber returns the number of a signal, as Docker takes it: SIGTERM, TERM or 15; 0 where it has none.
func signalNumber(signal string) int {
	if n, err := strconv.Atoi(signal); err == nil {
		return n
	}
	return int(unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(signal), "SIG")))
}

// hears reports whether a process, by its /proc/PID/status (proc_pid_status(5)), ignores or handles a signal, or sleeps with it blocked: one that is
// awake may block all signals for a moment, as Go's runtime does while it starts a thread, and lose what came then. One that is still what makes the
// container does not count: its handlers go with the exec. Docker's init hears once it sleeps: it blocks signals first and then waits for them.
func hears(status string, signal int) bool {
	var masks uint64
	asleep, name := false, ""
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch value = strings.TrimSpace(value); key {
		case "Name":
			if name = value; strings.HasPrefix(name, "runc:[") {
				return false
			}
		case "State":
			asleep = strings.HasPrefix(value, "S")
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return true
			}
			if key != "SigBlk" || asleep {
				masks |= mask
			}
		}
	}
	return masks&(1<<(signal-1)) != 0 || asleep && name == "docker-init"
}
