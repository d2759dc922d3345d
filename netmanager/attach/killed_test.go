//go:build linux

package attach

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
)

// TestKilled kills a process ten times while it sets, attaches, detaches and cleans up. What another makes of the rest afterwards is the same as
// from nothing, and cleaning up leaves nothing.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("ATTACH_VICTIM"); dir != "" {
		victim(t, dir)
		return
	}
	if !nettest.InNamespace(t) {
		return
	}
	boxes := []*nettest.Host{nettest.NewHost(t, "one"), nettest.NewHost(t, "two")}
	c := configIn(t.TempDir())
	clean := linktest.Dump(t)
	makeAll := func() string {
		t.Helper()
		if err := nettest.AddTUN(link.TUN(c.Name)); err != nil {
			t.Fatal(err)
		}
		if _, err := link.Set(c); err != nil {
			t.Fatal(err)
		}
		if err := Prune(c.Name, []string{"web.1", "web.2"}); err != nil {
			t.Fatal(err)
		}
		texts := []string{}
		for i, h := range boxes {
			mustAttach(t, attachment(i+1, h.Path()))
			texts = append(texts, dumpOf(t, h))
		}
		return linktest.Dump(t) + strings.Join(texts, "")
	}
	cleanUp := func() {
		t.Helper()
		if err := link.CleanUp(c.Name, c.StateDir); err != nil {
			t.Fatal(err)
		}
	}
	want := makeAll()
	cleanUp()
	worked := 0
	for round := range 10 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "ATTACH_VICTIM="+c.StateDir, "ATTACH_BOXES="+boxes[0].Path()+" "+boxes[1].Path())
		output, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := output.Read(make([]byte, 1)); err != nil {
			t.Fatalf("the victim ended by itself: %v", err)
		}
		time.Sleep(rand.N(150 * time.Millisecond)) // anywhere within its rounds
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := netlink.LinkByName(link.Bridge(c.Name)); err == nil {
			worked++
		}
		if round%2 == 0 {
			continue // onto the rest of the last
		}
		if diff := cmp.Diff(want, makeAll()); diff != "" {
			t.Fatalf("round %d: not as from nothing (-want +got):\n%s", round, diff)
		}
		cleanUp()
		if diff := cmp.Diff(clean, linktest.Dump(t)); diff != "" {
			t.Fatalf("round %d: left behind (-want +got):\n%s", round, diff)
		}
	}
	if worked == 0 {
		t.Error("nobody was killed at work")
	}
}

func configIn(dir string) link.Config {
	return link.Config{
		Name:      "lab",
		Overlay:   []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.160.0.1/26"), netip.MustParsePrefix("fd5c:ae11:9::1/122")},
		MTU:       1420,
		StateDir:  dir,
	}
}

// victim goes round until it is killed.
func victim(t *testing.T, dir string) {
	c := configIn(dir)
	for n := 0; ; n++ {
		fmt.Println("round", n)
		_ = nettest.AddTUN(link.TUN(c.Name))
		c.Ports = []link.Port{{HostPort: uint16(n%9 + 1), Protocol: link.TCP, Target: netip.MustParseAddrPort("10.160.0.2:80")}}
		_, _ = link.Set(c)
		for i, path := range strings.Fields(os.Getenv("ATTACH_BOXES")) {
			_, _ = Attach(t.Context(), attachment(i+1+n%2*4, path))
		}
		_ = Detach(c.Name, "web.1")
		_ = Prune(c.Name, []string{"web.2"})
		if n%3 == 2 {
			_ = link.CleanUp(c.Name, c.StateDir)
		}
	}
}
