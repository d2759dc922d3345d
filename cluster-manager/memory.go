package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// limitMemory has the collector work harder before the manager takes more than three quarters of the memory that there is: thousands of nodes
// that come back at once leave much behind, and a host that runs out of memory ends the manager in place of collecting. GOMEMLIMIT goes before.
func limitMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") != "" {
		return // the runtime has taken it
	}
	if there := memoryThere("/"); there > 0 {
		debug.SetMemoryLimit(there / 4 * 3)
	}
}

// memoryThere returns the bytes of the machine, or of the narrowest control group that this process is in, where that has fewer; 0 where nothing
// can be read. root is where the file systems proc and sys are found.
func memoryThere(root string) int64 {
	there := int64(math.MaxInt64)
	for _, limit := range append(groupLimits(root), machineMemory(root)) {
		if limit > 0 {
			there = min(there, limit)
		}
	}
	if there == math.MaxInt64 {
		return 0
	}
	return there
}

func machineMemory(root string) int64 {
	content, err := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(content), "MemTotal:")
	kib := int64(0)
	if fields := strings.Fields(rest); len(fields) > 0 {
		kib, _ = strconv.ParseInt(fields[0], 10, 64)
	}
	return max(0, min(kib, 1<<50)) << 10
}

// groupLimits returns what the control groups of this process allow it, those above them included, of version 1 and 2. Within a container the path
// in proc may be the host's, of which only the top is to be seen: what cannot be read says nothing.
func groupLimits(root string) (limits []int64) {
	content, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(content)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(parts) != 3 {
			continue
		}
		top, files := filepath.Join(root, "sys/fs/cgroup"), []string{"memory.max", "memory.high"}
		if parts[1] != "" {
			if !slices.Contains(strings.Split(parts[1], ","), "memory") {
				continue
			}
			top, files = filepath.Join(top, "memory"), []string{"memory.limit_in_bytes"}
		}
		for group := filepath.Join("/", parts[2]); ; group = filepath.Dir(group) {
			for _, name := range files {
				limits = append(limits, groupLimit(filepath.Join(top, group, name)))
			}
			if group == "/" {
				break
			}
		}
	}
	return limits
}

// groupLimit reads a limit; 0: there is none. Version 1 has a number near the greatest for that, which is more than any machine's memory.
func groupLimit(path string) int64 {
	content, err := os.ReadFile(path)
	limit, bad := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64) // "max" where there is none
	if err != nil || bad != nil || limit < 0 {
		return 0
	}
	return limit
}
