package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitMemory has the collector work harder before the manager takes more than three quarters of the memory that there is: thousands of nodes
// that come back at once leave much behind, and a host that runs out of memory ends the manager in place of collecting. GOMEMLIMIT goes before.
func limitMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") != "" {
		return // the runtime has taken it
	}
	if there := memoryThere("/proc/meminfo", "/sys/fs/cgroup/memory.max"); there > 0 {
		debug.SetMemoryLimit(there / 4 * 3)
	}
}

// memoryThere returns the bytes of the machine, or of the control group where that has fewer; 0 where neither can be read.
func memoryThere(meminfo, group string) int64 {
	there := int64(0)
	if content, err := os.ReadFile(meminfo); err == nil {
		if _, rest, found := strings.Cut(string(content), "MemTotal:"); found {
			if fields := strings.Fields(rest); len(fields) > 0 {
				kib, _ := strconv.ParseInt(fields[0], 10, 64)
				there = max(0, min(kib, 1<<50)) << 10
			}
		}
	}
	content, err := os.ReadFile(group)
	limit, bad := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64) // "max" where there is none
	if err == nil && bad == nil && limit > 0 && (there == 0 || limit < there) {
		return limit
	}
	return there
}
