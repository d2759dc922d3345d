package messages

import (
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestImportsStandardLibraryOnly holds that whoever imports this package gets nothing else with it. The packages of the
// standard library are those whose path has no dot in its first level.
func TestImportsStandardLibraryOnly(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		checked++
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			first, _, _ := strings.Cut(path, "/")
			if err != nil || strings.Contains(first, ".") {
				t.Errorf("%s imports %s", e.Name(), i.Path.Value)
			}
			switch path {
			case "os", "net", "net/http", "os/exec", "syscall", "unsafe":
				t.Errorf("%s imports %s: the contract does no input or output", e.Name(), path)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d files seen", checked)
	}
}
