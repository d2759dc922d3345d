//go:build linux

package link

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzRecord holds for a record of any content: what is read of it is of this boot and of switches alone, and is read again as it was written.
func FuzzRecord(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte) {
		r := &record{boot: "b 1"}
		r.read(content)
		for _, e := range r.entries {
			if p := filepath.Join(switchRoot, e.path); !strings.HasPrefix(p, switchRoot+"/ipv4/") && !strings.HasPrefix(p, switchRoot+"/ipv6/") {
				t.Errorf("%q would be put back to %q", e.path, e.value)
			}
		}
		if some := len(r.users)+len(r.entries) > 0 || r.settled; some && !strings.HasPrefix(string(content), "boot b 1\n") {
			t.Errorf("taken from %q", content)
		}
		file, err := os.OpenFile(filepath.Join(t.TempDir(), "record"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r.file, r.changed = file, true
		if err := r.save(); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		again := &record{boot: r.boot}
		if again.read(written); !slices.Equal(again.users, r.users) || !slices.Equal(again.entries, r.entries) || again.settled != r.settled {
			t.Errorf("read again: %+v, want %+v", again, r)
		}
	})
}

// FuzzSaved holds for whatever iptables-save says: the script that takes an engine's part away names its own chains and the rules that are there, and
// each table is whole.
func FuzzSaved(f *testing.F) {
	f.Fuzz(func(t *testing.T, saved string) {
		const own = "SK-lab-"
		there := "\n" + saved
		table := ""
		for line := range strings.Lines(removalScript("lab", saved)) {
			line = strings.TrimSuffix(line, "\n")
			verb, rest, _ := strings.Cut(line, " ")
			switch {
			case strings.HasPrefix(line, "*") && table == "" && slices.Contains([]string{"*raw", "*nat", "*filter"}, line):
				table = line
			case line == "COMMIT" && table != "":
				table = ""
			case table != "" && (verb == "-F" || verb == "-X") && strings.HasPrefix(rest, own) && strings.Contains(there, "\n:"+rest):
			case table != "" && verb == "-D" && !strings.HasPrefix(rest, own) && strings.Contains(there, "\n-A "+rest) && (strings.Contains(rest, own) || isLegacyPass(rest, "lab")):
			default:
				t.Errorf("%q of %q", line, saved)
			}
		}
		if table != "" {
			t.Errorf("%s has no end", table)
		}
	})
}
