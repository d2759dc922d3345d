package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// prefix stands before the import path of every module of ours.
const prefix = "skerry.internal/"

// maxLines is the longest that a file may be; beyond it nobody reads a file whole.
const maxLines = 600

// mayImport says which modules of ours a module may import, its tests included. The two daemons meet only in messages.
var mayImport = map[string][]string{
	"messages":        {},
	"broker":          {},
	"netmanager":      {},
	"node-engine":     {"messages", "netmanager"},
	"cluster-manager": {"messages", "broker", "netmanager"},
	"scripts":         {},
	"e2e":             {"messages", "broker", "netmanager", "node-engine", "cluster-manager"},
	"bench":           {"messages", "cluster-manager"},
}

// roomsOnly are modules of which another one may import these packages only.
var roomsOnly = map[string][]string{
	// A manager leases addresses and carries sealed packets; it has no part in the network that it speaks of.
	"cluster-manager netmanager": {"netmanager/ipam", "netmanager/relay"},
	// The bench may serve a manager over a transport of its own.
	"bench cluster-manager": {"cluster-manager/manager"},
}

// folders says where a module is, where that is not the folder of its name.
var folders = map[string]string{"scripts/e2e": "e2e", "scripts/bench": "bench"}

// standardOnly are the modules that import nothing but the standard library, tests aside: everybody depends on them.
var standardOnly = []string{"messages", "scripts"}

// sharedOutside are the outside packages that more than one package of ours may import, tests aside, each with its reason.
var sharedOutside = map[string][]string{
	// Two servers in two modules of which neither may import the other: MQTT over WebSocket, and Engine.IO 4.
	"github.com/gorilla/websocket": {"broker", "cluster-manager/internal/register/eio", "scripts/bench"},
	// The two ends of /init; the daemons meet only in messages.
	"github.com/googollee/go-socket.io/engineio/session":             {"cluster-manager/internal/register", "node-engine/internal/session"},
	"github.com/googollee/go-socket.io/engineio/transport":           {"cluster-manager/internal/register", "node-engine/internal/session"},
	"github.com/googollee/go-socket.io/engineio/transport/websocket": {"cluster-manager/internal/register", "node-engine/internal/session"},
	// A node and the operator's command are both clients of MQTT, in modules that share only the contract.
	"github.com/eclipse/paho.mqtt.golang": {"node-engine/internal/session", "cluster-manager/cmd/skerry", "scripts/bench"},
	// The kernel's links: the host's side of the overlay, and the side of the containers.
	"github.com/vishvananda/netlink": {"netmanager/link", "netmanager/attach"},
	// The benches measure the bare library beside the broker, and the tunnel, that we make of it.
	"github.com/mochi-mqtt/server/v2":          {"broker", "scripts/bench"},
	"github.com/tailscale/wireguard-go/conn":   {"netmanager/tunnel/bind", "netmanager/bench"},
	"github.com/tailscale/wireguard-go/device": {"netmanager/tunnel", "netmanager/bench"},
}

// badNames say nothing about what is in a package, so everything ends up in it.
var badNames = []string{"pkg", "util", "utils", "common", "helper", "helpers", "type", "types", "model", "models", "misc", "base", "shared"}

// source is what the rules look at in one Go file.
type source struct {
	dir     string // from the top of the repository, with slashes
	name    string
	pkg     string
	imports []string
	lines   int
	comment bool // it has a package comment
}

// test says whether this is test code: a test, or part of a package for tests such as storetest.
func (s source) test() bool {
	return strings.HasSuffix(s.name, "_test.go") || strings.HasSuffix(path.Base(s.dir), "test")
}

// module returns the module a folder belongs to, by its name without the prefix.
func module(dir string) string {
	for folder, name := range folders {
		if dir == folder || strings.HasPrefix(dir, folder+"/") {
			return name
		}
	}
	top, _, _ := strings.Cut(dir, "/")
	return top
}

// outside says whether an import path is neither ours nor the standard library's, whose first element holds no dot.
func outside(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return strings.Contains(first, ".") && !strings.HasPrefix(importPath, prefix)
}

// problems returns every breach of the rules of DESIGN.md and STYLE.md among the files, sorted.
func problems(files []source) []string {
	found := slices.Concat(importProblems(files), outsideProblems(files), nameProblems(files), commentProblems(files))
	for _, f := range files {
		if f.lines > maxLines {
			found = append(found, fmt.Sprintf("%s/%s has %d lines, at most %d", f.dir, f.name, f.lines, maxLines))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func importProblems(files []source) []string {
	var found []string
	for _, f := range files {
		from := module(f.dir)
		allowed, known := mayImport[from]
		if !known {
			found = append(found, fmt.Sprintf("%s belongs to no known module", f.dir))
			continue
		}
		for _, imported := range f.imports {
			if rest, ours := strings.CutPrefix(imported, prefix); ours {
				if to, _, _ := strings.Cut(rest, "/"); to != from && !slices.Contains(allowed, to) {
					found = append(found, fmt.Sprintf("%s/%s: %s may not import %s", f.dir, f.name, from, imported))
				} else if rooms, limited := roomsOnly[from+" "+to]; limited && !slices.Contains(rooms, rest) {
					found = append(found, fmt.Sprintf("%s/%s: %s may not import %s", f.dir, f.name, from, imported))
				}
			}
			if outside(imported) && !f.test() && slices.Contains(standardOnly, from) {
				found = append(found, fmt.Sprintf("%s/%s: %s imports the standard library only, not %s", f.dir, f.name, from, imported))
			}
		}
	}
	return found
}

// outsideProblems holds every outside package to one importer of ours, so that it can be replaced in one place.
func outsideProblems(files []source) []string {
	importers := map[string]map[string]bool{}
	for _, f := range files {
		for _, imported := range f.imports {
			if f.test() || !outside(imported) || strings.HasPrefix(imported, "golang.org/x/") { // the Go project's own are nobody's to replace
				continue
			}
			if importers[imported] == nil {
				importers[imported] = map[string]bool{}
			}
			importers[imported][f.dir] = true
		}
	}
	var found []string
	for imported, dirs := range importers {
		shared := sharedOutside[imported]
		extra := slices.DeleteFunc(slices.Sorted(maps.Keys(dirs)), func(dir string) bool { return slices.Contains(shared, dir) })
		if len(extra) > 1 || (len(extra) > 0 && len(shared) > 0) {
			found = append(found, fmt.Sprintf("%s is imported by %s: one package of ours for each outside package (sharedOutside lists exceptions)",
				imported, strings.Join(slices.Sorted(maps.Keys(dirs)), " and ")))
		}
	}
	return found
}

func nameProblems(files []source) []string {
	var found []string
	for _, f := range files {
		for _, word := range append(strings.Split(f.dir, "/"), strings.TrimSuffix(f.pkg, "_test")) {
			if slices.Contains(badNames, word) {
				found = append(found, fmt.Sprintf("%s: a package called %s says nothing about what it is for", f.dir, word))
			}
		}
	}
	return found
}

// commentProblems wants a package comment in every package; in one of tests alone, its tests have it.
func commentProblems(files []source) []string {
	has, code := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		code[f.dir] = code[f.dir] || !strings.HasSuffix(f.name, "_test.go")
	}
	for _, f := range files {
		has[f.dir] = has[f.dir] || (f.comment && (!strings.HasSuffix(f.name, "_test.go") || !code[f.dir]))
	}
	var found []string
	for dir, ok := range has {
		if !ok {
			found = append(found, fmt.Sprintf("%s has no package comment", dir))
		}
	}
	return found
}

// readSources reads every Go file below root, whatever its build tags say.
func readSources(root string) ([]source, error) {
	var files []source
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains([]string{"bin", "var", "testdata", "node_modules"}, entry.Name()) || (file != root && entry.Name()[0] == '.') {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		s, err := readSource(root, file)
		files = append(files, s)
		return err
	})
	return files, err
}

func readSource(root, file string) (source, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return source{}, err
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	rel, err := filepath.Rel(root, file)
	if err != nil {
		return source{}, err
	}
	s := source{dir: path.Dir(filepath.ToSlash(rel)), name: path.Base(filepath.ToSlash(rel)), pkg: parsed.Name.Name,
		lines: bytes.Count(text, []byte("\n")), comment: parsed.Doc != nil && parsed.Doc.Text() != ""}
	for _, spec := range parsed.Imports {
		s.imports = append(s.imports, importPath(spec))
	}
	return s, nil
}

func importPath(spec *ast.ImportSpec) string {
	name, err := strconv.Unquote(spec.Path.Value)
	return cmp.Or(name, fmt.Sprint(err))
}

func TestImportRules(t *testing.T) {
	files, err := readSources("../..")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		seen[module(f.dir)] = true
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("no file of module %s was read", name)
		}
	}
	for _, p := range problems(files) {
		t.Error(p)
	}
}

// The rules above are worth something only if they can be broken.
func TestImportRulesCanFail(t *testing.T) {
	good := []source{
		{dir: "messages", name: "a.go", pkg: "messages", imports: []string{"fmt", "encoding/json"}, lines: maxLines, comment: true},
		{dir: "messages", name: "a_test.go", pkg: "messages", imports: []string{"example.org/cmp"}},
		{dir: "node-engine/internal/session", name: "a.go", pkg: "session", imports: []string{prefix + "messages", "example.org/mqtt"}, comment: true},
		{dir: "node-engine/internal/session", name: "b.go", pkg: "session", imports: []string{prefix + "node-engine/internal/store", "example.org/mqtt"}},
		{dir: "cluster-manager/manager", name: "a.go", pkg: "manager", imports: []string{prefix + "broker"}, comment: true},
		{dir: "broker/brokertest", name: "a.go", pkg: "brokertest", imports: []string{"example.org/mqtt", "golang.org/x/sync/errgroup"}, comment: true},
		{dir: "cluster-manager/manager", name: "a_test.go", pkg: "manager_test", imports: []string{"example.org/mqtt"}},
		{dir: "scripts/e2e", name: "a_test.go", pkg: "e2e", imports: []string{prefix + "node-engine/engine"}, comment: true},
	}
	if got := problems(good); len(got) != 0 {
		t.Fatalf("good files have problems: %q", got)
	}
	for _, c := range []struct {
		bad  source
		want string
	}{
		{source{dir: "messages", name: "b.go", pkg: "messages", imports: []string{"example.org/cmp"}}, "standard library only"},
		{source{dir: "messages", name: "b_test.go", pkg: "messages", imports: []string{prefix + "broker"}}, "messages may not import skerry.internal/broker"},
		{source{dir: "node-engine/engine", name: "b_test.go", pkg: "engine", comment: true, imports: []string{prefix + "cluster-manager/manager"}}, "node-engine may not import"},
		{source{dir: "cluster-manager/manager", name: "b.go", pkg: "manager", imports: []string{prefix + "node-engine/engine"}}, "cluster-manager may not import"},
		{source{dir: "cluster-manager/manager", name: "b.go", pkg: "manager", imports: []string{prefix + "netmanager/tunnel"}}, "cluster-manager may not import"},
		{source{dir: "scripts/demo", name: "b.go", pkg: "main", comment: true, imports: []string{prefix + "messages"}}, "scripts may not import"},
		{source{dir: "cluster-manager/manager", name: "b.go", pkg: "manager", imports: []string{"example.org/mqtt"}}, "example.org/mqtt is imported by cluster-manager/manager and node-engine/internal/session"},
		{source{dir: "broker/util", name: "b.go", pkg: "util", comment: true}, "called util"},
		{source{dir: "broker", name: "b.go", pkg: "helpers", comment: true}, "called helpers"},
		{source{dir: "broker/outbox", name: "b.go", pkg: "outbox"}, "broker/outbox has no package comment"},
		{source{dir: "broker/outboxtest", name: "b.go", pkg: "outboxtest"}, "broker/outboxtest has no package comment"},
		{source{dir: "broker/outboxtest", name: "b.go", pkg: "outboxtest", comment: true, imports: []string{prefix + "node-engine/engine"}}, "broker may not import"},
		{source{dir: "messages", name: "b.go", pkg: "messages", lines: maxLines + 1}, "601 lines"},
		{source{dir: "new-place", name: "b.go", pkg: "place", comment: true}, "no known module"},
	} {
		got := problems(append(slices.Clone(good), c.bad))
		if len(got) != 1 || !strings.Contains(got[0], c.want) {
			t.Errorf("%s/%s: got %q, want one problem with %q", c.bad.dir, c.bad.name, got, c.want)
		}
	}
}
