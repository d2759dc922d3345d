package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pkg makes a module with two targets, of which one fails on what it is given.
func pkg(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example\n\ngo 1.26\n",
		"a/a_test.go": `package a

import "testing"

func FuzzFinds(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2 {
			t.Fatal("found it")
		}
	})
}

func FuzzNothing(f *testing.F) { f.Fuzz(func(*testing.T, int) {}) }
`,
		"a/testdata/no_test.go": "func FuzzNot(f *testing.F) {}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What a target finds fails the run, with all that is needed to repeat it; the others have their time nevertheless.
func TestFindingIsTold(t *testing.T) {
	t.Setenv("GOWORK", "off")
	dir := pkg(t)
	var out strings.Builder
	args := []string{"-root", dir, "-work", filepath.Join(dir, "var"), "-time", "2s"}
	err := run(t.Context(), args, &out)
	if err == nil || !strings.Contains(err.Error(), "1 of 2 targets failed: "+dir+"/a/FuzzFinds") {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"2 targets, 2s each", "ok    " + dir + "/a/FuzzNothing", "found it", "testdata/fuzz/FuzzFinds/", "go test fuzz v1", "run: go test -run '^FuzzFinds$/"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in %s", want, out.String())
		}
	}
	out.Reset()
	if err := run(t.Context(), append(args, "-only", "Nothing$"), &out); err != nil || !strings.Contains(out.String(), "1 targets found nothing") {
		t.Errorf("got %v, %s", err, out.String())
	}
	if err := run(t.Context(), append(args, "-only", "none"), &out); err == nil {
		t.Error("no target: want an error")
	}
}

// The end of the time is no finding.
func TestCutOff(t *testing.T) {
	for text, want := range map[string]bool{
		"--- FAIL: FuzzX (60.00s)\n    context deadline exceeded\n":                                                               true,
		"--- FAIL: FuzzX (1.00s)\n    x_test.go:1: context deadline exceeded\n    Failing input written to testdata/fuzz/FuzzX/1": false,
		"--- FAIL: FuzzX (0.00s)\n    --- FAIL: FuzzX/odd (0.00s)\n        x_test.go:1: context deadline exceeded\n":              false,
		"--- FAIL: FuzzX (0.00s)\n    x_test.go:1: context deadline exceeded\n":                                                   false,
		"panic: oh": false,
	} {
		if got := cutOff(text); got != want {
			t.Errorf("%q: got %t", text, got)
		}
	}
}
