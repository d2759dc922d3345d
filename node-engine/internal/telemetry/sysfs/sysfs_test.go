package sysfs_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

func TestTextIsTrimmedAndBounded(t *testing.T) {
	tree := sysfstest.Make(t, map[string]string{"/a": " Jetson Nano\x00\n", "/big": strings.Repeat("x", 1<<20), "/empty": ""})
	for path, want := range map[string]string{"/a": "Jetson Nano", "/big": strings.Repeat("x", 4096), "/empty": ""} {
		if got, err := tree.Text(path); err != nil || got != want {
			t.Errorf("Text(%s): got %d bytes, %v, want %d", path, len(got), err, len(want))
		}
	}
	if _, err := tree.Text("/missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v, want one that says so", err)
	}
}

func TestNumbers(t *testing.T) {
	tree := sysfstest.Make(t, map[string]string{"/f": "-12.5\n", "/u": "18446744073709551615\n", "/nan": "NaN\n", "/inf": "+Inf", "/text": "n/a\n", "/empty": ""})
	if v, err := tree.Float("/f"); err != nil || v != -12.5 {
		t.Errorf("Float: got %v, %v, want -12.5", v, err)
	}
	if v, err := tree.Uint("/u"); err != nil || v != 1<<64-1 {
		t.Errorf("Uint: got %v, %v, want the greatest", v, err)
	}
	for _, path := range []string{"/nan", "/inf", "/text", "/empty", "/missing"} {
		if v, err := tree.Float(path); err == nil {
			t.Errorf("Float(%s): got %v, want an error", path, v)
		}
		if v, err := tree.Uint(path); err == nil {
			t.Errorf("Uint(%s): got %v, want an error", path, v)
		}
	}
}

func TestCleanNames(t *testing.T) {
	for in, want := range map[string]string{
		"coretemp":              "coretemp",
		"two\nlines":            "two",
		"bell\x07 \x1b[31mred":  "bell [31mred",
		"bad \xff utf8":         "bad  utf8",
		strings.Repeat("ü", 99): strings.Repeat("ü", 64),
		"":                      "",
	} {
		if got := sysfs.Clean(in); got != want {
			t.Errorf("Clean(%q): got %q, want %q", in, got, want)
		}
	}
}

func TestListsAndLinks(t *testing.T) {
	tree := sysfstest.Make(t, map[string]string{"/d/b": "", "/d/a": "", "/real/x": ""})
	sysfstest.Link(t, tree, "/d/link", "../real")
	if got := strings.Join(tree.List("/d"), " "); got != "a b link" {
		t.Errorf("List: got %q, want a b link", got)
	}
	if got := tree.List("/none"); got != nil {
		t.Errorf("List of nothing: got %q", got)
	}
	if got := tree.Target("/d/link"); got != "real" {
		t.Errorf("Target: got %q, want real", got)
	}
	if tree.Real("/d/link") != tree.Real("/real") || tree.Real("/d/link") == tree.Real("/d") {
		t.Error("Real does not tell what is one thing")
	}
	if !tree.Exists("/d/link/x") || tree.Exists("/d/c") {
		t.Error("Exists is wrong")
	}
}
