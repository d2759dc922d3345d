//go:build linux

package link

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.internal/netmanager/nettest"
)

func TestRecord(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	dir := t.TempDir()
	open := func() *record {
		t.Helper()
		r, err := openRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open()
	r.use("lab")
	r.note(forwardAll4)
	r.note("ipv4/conf/nothing/forwarding")
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	r.close()
	files, _ := filepath.Glob(dir + "/*")
	if len(files) != 1 {
		t.Fatalf("got %v, want one file", files)
	}
	written, _ := os.ReadFile(files[0])
	value, _ := readSwitch(forwardAll4)
	for name, test := range map[string]struct {
		content string
		users   int
		entries int
	}{
		"as written":         {string(written), 1, 1},
		"cut short":          {string(written[:len(written)-1]), 1, 0},
		"empty":              {"", 0, 0},
		"of another boot":    {strings.Replace(string(written), "boot ", "boot 1", 1), 0, 0},
		"of another netns":   {strings.Replace(string(written), "\n", "1\n", 1), 0, 0},
		"with strange lines": {string(written) + "what\nwas\nuser a b\n", 1, 1},
	} {
		if err := os.WriteFile(files[0], []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := open()
		if len(r.users) != test.users || len(r.entries) != test.entries {
			t.Errorf("%s: got %v, %v", name, r.users, r.entries)
		}
		if test.entries > 0 && !slices.Equal(r.entries, []entry{{forwardAll4, value}}) {
			t.Errorf("%s: got %v", name, r.entries)
		}
		r.close()
	}
	r = open()
	r.use("edge")
	r.use("dead")
	alive := func(name string) bool { return name != "dead" }
	if err := r.release("lab", alive); err != nil {
		t.Fatal(err)
	}
	r.close()
	r = open()
	if !slices.Equal(r.users, []string{"edge"}) {
		t.Errorf("got users %v, want edge", r.users)
	}
	if err := r.release("edge", alive); err != nil {
		t.Fatal(err)
	}
	r.close()
	if files, _ := filepath.Glob(dir + "/*"); len(files) != 0 {
		t.Errorf("left %v", files)
	}
}
