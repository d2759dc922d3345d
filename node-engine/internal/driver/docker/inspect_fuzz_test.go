package docker

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// FuzzInspect holds for an answer of Docker about a container with any content: it is refused, or what is told of the container is such as a status
// may say, with ports that can be published again.
func FuzzInspect(f *testing.F) {
	d := Driver{}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var c container.InspectResponse
		err := json.Unmarshal(answer, &c)
		if c, err = complete(c, err); err != nil {
			return
		}
		d.owns(c, "web.0.0")
		d.ofSandbox(c) //nolint:errcheck // most are none
		w := workload(c)
		told := messages.InstanceStatus{Instance: "web.0.0", Job: "web", State: messages.Running, Workload: w.ID, ImageID: w.ImageID, Network: w.Network, Ports: w.Ports,
			StartedAt: messages.At(w.StartedAt)}
		if w.Address.IsValid() {
			told.Address = w.Address.String()
		}
		if err := told.Validate(); err != nil {
			t.Errorf("told: %v", err)
		}
		messages.Encode(told)
		if told.Ports = portsOf(c); told.Validate() != nil {
			t.Errorf("of the label: %v", told.Validate())
		}
		if w.Exit != nil && (w.Running || w.Exit.At.IsZero()) {
			t.Errorf("runs: %v, and has ended at %v", w.Running, w.Exit.At)
		}
	})
}

// FuzzStats holds for figures of any content: those of use are no less than nothing, and memory is not more than what Docker says.
func FuzzStats(f *testing.F) {
	f.Fuzz(func(t *testing.T, answer []byte) {
		var s container.StatsResponse
		if json.Unmarshal(answer, &s) != nil {
			return
		}
		if u := usage("web.0.0", s); u.CPU < 0 || u.MemoryBytes > s.MemoryStats.Usage {
			t.Errorf("%s and %d bytes", u.CPU, u.MemoryBytes)
		}
	})
}

// FuzzSystemFiles holds for files of any content that Docker or the kernel has made: a resolv.conf asks our server alone and a hosts file is not changed but
// for our lines, both the same when written again; and a process belongs to a container only where its files name that.
func FuzzSystemFiles(f *testing.F) {
	id := strings.Repeat("0123456789abcdef", 4)
	dir := f.TempDir()
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte(strings.Repeat("127.0.0.1\tlocalhost\n", 9)), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content string) {
		if err := overwrite(hosts, content); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(hosts); err != nil || string(now) != content {
			t.Errorf("%q is in the file, %v, want %q", now, err, content)
		}
		r := resolver(content, "10.160.0.65", messages.Zone)
		if strings.Count("\n"+r, "\nnameserver ") != 1 || resolver(r, "10.160.0.65", messages.Zone) != r {
			t.Errorf("%q became %q, then %q", content, r, resolver(r, "10.160.0.65", messages.Zone))
		}
		j := joined{sandbox: sandbox{hostname: "web"}, Attached: driver.Attached{Address: netip.MustParseAddr("10.160.0.66"), Address6: netip.MustParseAddr("fd00::2")}}
		if h := hostsFile(content, j); strings.Count(h, "\tweb\t"+hostsMark+"\n") != 2 || hostsFile(h, j) != h {
			t.Errorf("%q became %q", content, h)
		}
		for _, name := range []string{"cgroup", "cmdline"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if belongs(dir, id) && !strings.Contains(content, id) {
				t.Errorf("%s %q belongs to %s", name, content, id)
			}
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
