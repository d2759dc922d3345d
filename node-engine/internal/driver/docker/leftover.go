package docker

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A dockerd that is killed in the middle of a start leaves what it had begun: a process of the container that waits to be told to go on, in a
// network of its own with the container's address, and its shim. The next dockerd knows nothing of them. It gives the address away again, whose
// new owner then answers now and then, and every start of the container fails because containerd has its task already. So what is left of a
// container that Docker says does not run is ended before the container is removed.

// endLeftovers ends the processes of a container on this machine and returns how many there were. Without the right to do so it does nothing.
func endLeftovers(id string) int {
	ended := 0
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(id) != 64 { // not a name or a short id, which others may contain
		return 0
	}
	for _, dir := range processes {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && belongs(dir, id) && syscall.Kill(pid, syscall.SIGKILL) == nil {
			ended++
		}
	}
	return ended
}

// belongs reports whether a process is in a container or is its shim.
func belongs(dir, id string) bool {
	if groups, err := os.ReadFile(dir + "/cgroup"); err == nil && strings.Contains(string(groups), id) {
		return true
	}
	line, err := os.ReadFile(dir + "/cmdline")
	if err != nil || !strings.Contains(string(line), id) {
		return false
	}
	args := strings.Split(string(line), "\x00")
	at := slices.Index(args, "-id")
	return strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && at > 0 && at+1 < len(args) && args[at+1] == id
}
