package messages

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files from the samples")

// payloadKinds names every payload of the contract as the golden files do: <kind>.<variant>.json.
func payloadKinds() map[string]func() validator {
	return map[string]func() validator{
		"hello":             func() validator { return new(Hello) },
		"node-info":         func() validator { return new(NodeInfo) },
		"welcome":           func() validator { return new(Welcome) },
		"legacy-welcome":    func() validator { return new(LegacyWelcome) },
		"refusal":           func() validator { return new(Refusal) },
		"command":           func() validator { return new(Command) },
		"node-command":      func() validator { return new(NodeCommand) },
		"result":            func() validator { return new(Result) },
		"job-status":        func() validator { return new(JobStatus) },
		"node-status":       func() validator { return new(NodeStatus) },
		"cluster-status":    func() validator { return new(ClusterStatus) },
		"event":             func() validator { return new(Event) },
		"presence":          func() validator { return new(Presence) },
		"assignment":        func() validator { return new(Assignment) },
		"sync":              func() validator { return new(Sync) },
		"inventory":         func() validator { return new(Inventory) },
		"inventory-request": func() validator { return new(InventoryRequest) },
		"instance-status":   func() validator { return new(InstanceStatus) },
		"telemetry":         func() validator { return new(Telemetry) },
		"logs-request":      func() validator { return new(LogsRequest) },
		"log-chunk":         func() validator { return new(LogChunk) },
		"guest-command":     func() validator { return new(GuestCommand) },
		"network-config":    func() validator { return new(NetworkConfig) },
		"service-update":    func() validator { return new(ServiceUpdate) },
		"service-entry":     func() validator { return new(ServiceEntry) },
		"interest":          func() validator { return new(Interest) },
		"endpoints":         func() validator { return new(Endpoints) },
		"net-status":        func() validator { return new(NetStatus) },
		"network-status":    func() validator { return new(NetworkStatus) },
		"trace-request":     func() validator { return new(TraceRequest) },
		"trace-answer":      func() validator { return new(TraceAnswer) },
	}
}

// kindOf returns the kind of payload in a golden file.
func kindOf(file string) string {
	kind, _, _ := strings.Cut(filepath.Base(file), ".")
	return kind
}

// goldens returns the golden files that match a pattern below testdata.
func goldens(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("glob %s: %d files, %v", pattern, len(files), err)
	}
	found := make(map[string][]byte, len(files))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.ToSlash(f)] = b
	}
	return found
}

// pretty renders v as the golden files hold it.
func pretty(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, Encode(v), "", "  "); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// wantGoldens builds every golden file: from the samples, and for commands from what clients publish.
func wantGoldens(t *testing.T) map[string][]byte {
	t.Helper()
	want := map[string][]byte{}
	for name, v := range samples() {
		want["testdata/"+name+".json"] = pretty(t, v)
	}
	for file, b := range goldens(t, "client/*.json") {
		v := payloadKinds()[kindOf(file)]()
		if err := Decode(b, v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		want["testdata/"+filepath.Base(file)] = pretty(t, v)
	}
	return want
}

func TestGoldens(t *testing.T) {
	want := wantGoldens(t)
	if *update {
		for file, b := range want {
			if err := os.WriteFile(file, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := goldens(t, "*.json")
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("files: got %v, want %v", g, w)
	}
	for file, b := range got {
		if !bytes.Equal(b, want[file]) {
			t.Errorf("%s differs from its sample: got\n%s\nwant\n%s", file, b, want[file])
		}
	}
}

func TestGoldensReadBack(t *testing.T) {
	seen := map[string]bool{}
	for file, b := range goldens(t, "*.json") {
		build, ok := payloadKinds()[kindOf(file)]
		if !ok {
			t.Errorf("%s: no such kind of payload", file)
			continue
		}
		seen[kindOf(file)] = true
		v := build()
		if err := Decode(b, v); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if again := pretty(t, v); !bytes.Equal(again, b) {
			t.Errorf("%s: got after decoding and encoding\n%s\nwant\n%s", file, again, b)
		}
	}
	for kind := range payloadKinds() {
		if !seen[kind] {
			t.Errorf("no golden file for %s", kind)
		}
	}
}

// TestGoldensAreWhole holds that the goldens together show every field of every payload, so that none changes unseen.
func TestGoldensAreWhole(t *testing.T) {
	for kind, build := range payloadKinds() {
		shown := map[string]bool{}
		for file, b := range goldens(t, kind+".*.json") {
			var v any
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			collectPaths("", v, shown)
		}
		for _, p := range fieldPaths(build()) {
			if !shown[p] {
				t.Errorf("%s: no golden shows %s", kind, p)
			}
		}
	}
}
