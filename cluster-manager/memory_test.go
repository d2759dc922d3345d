package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryThere(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	machine := write("meminfo", "Foo: 1 kB\nMemTotal:       2048 kB\nMemFree: 3 kB\n")
	none := filepath.Join(dir, "none")
	for _, c := range []struct {
		meminfo, group string
		want           int64
	}{
		{machine, none, 2 << 20},
		{machine, write("max", "max\n"), 2 << 20},
		{machine, write("small", "1048576\n"), 1 << 20},
		{machine, write("large", "99999999\n"), 2 << 20},
		{machine, write("odd", "-5"), 2 << 20},
		{none, write("alone", "4096"), 4096},
		{write("bad", "MemTotal: many"), none, 0},
		{none, none, 0},
	} {
		if got := memoryThere(c.meminfo, c.group); got != c.want {
			t.Errorf("%s, %s: got %d, want %d", filepath.Base(c.meminfo), filepath.Base(c.group), got, c.want)
		}
	}
	if got := memoryThere("/proc/meminfo", none); got < 64<<20 {
		t.Errorf("this machine: %d bytes", got)
	}
}
