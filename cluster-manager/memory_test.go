package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMemoryThere(t *testing.T) {
	const gib = int64(1) << 30
	const machine = "MemFree: 1 kB\nMemTotal:       4194304 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing to read":        {nil, 0},
		"a machine":              {map[string]string{"proc/meminfo": machine}, 4 * gib},
		"no number":              {map[string]string{"proc/meminfo": "MemTotal: many"}, 0},
		"no line":                {map[string]string{"proc/meminfo": "Mem"}, 0},
		"a number without bound": {map[string]string{"proc/meminfo": "MemTotal: 9223372036854775807 kB"}, 1 << 60},
		"a group at the top": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"},
			gib},
		"a group without a limit": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 4 * gib},
		"a group wider than the machine": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "1099511627776\n"}, 4 * gib},
		"a unit's": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/system.slice/skerry.service\n",
			"sys/fs/cgroup/system.slice/skerry.service/memory.max": "536870912\n", "sys/fs/cgroup/system.slice/memory.max": "1073741824\n"}, gib / 2},
		"that of a unit's slice": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/system.slice/skerry.service\n",
			"sys/fs/cgroup/system.slice/skerry.service/memory.max": "max\n", "sys/fs/cgroup/system.slice/memory.max": "1073741824\n"}, gib},
		"where it is slowed down": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/u\n", "sys/fs/cgroup/u/memory.max": "max\n",
			"sys/fs/cgroup/u/memory.high": "268435456\n"}, gib / 4},
		"version 1": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "3:cpu:/a\n4:hugetlb,memory:/docker/1\n",
			"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "536870912\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, gib / 2},
		"version 1, seen from within": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "4:memory:/docker/1\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n"}, gib / 2},
		"lines that are none": {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "\n:\n0:memory\n0::\n", "sys/fs/cgroup/memory.max": "-1\n"}, 4 * gib},
	} {
		root := t.TempDir()
		for path, content := range c.files {
			full := filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := memoryThere(root); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
	if got := memoryThere("/"); got < 64<<20 {
		t.Errorf("this machine: %d bytes", got)
	}
}

// FuzzMemory holds for what a kernel may say in its files: the limit is none, or a number of bytes that can be, and the files are those below root.
func FuzzMemory(f *testing.F) {
	root := filepath.Join(f.TempDir(), "root")
	files := []string{"proc/meminfo", "proc/self/cgroup", "sys/fs/cgroup/u/memory.max"}
	for _, name := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o700); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "../memory.max"), []byte("7"), 0o600); err != nil { // nobody's
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, meminfo, cgroup, limit string) {
		for i, content := range []string{meminfo, cgroup, limit} {
			if err := os.WriteFile(filepath.Join(root, files[i]), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if there := memoryThere(root); there < 0 || there == 7 && !strings.Contains(limit, "7") {
			t.Errorf("%d bytes", there)
		}
	})
}
