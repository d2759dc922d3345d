//go:build linux

package linktest

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Golden compares text with testdata/<name>.golden, which -update rewrites.
func Golden(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		check(t, "golden file", os.MkdirAll("testdata", 0o750))
		check(t, "golden file", os.WriteFile(path, []byte(text), 0o600))
		return
	}
	want, err := os.ReadFile(path)
	check(t, "golden file", err)
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("not as in %s (-want +got):\n%s", path, diff)
	}
}
