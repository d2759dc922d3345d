package main

import (
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestProcess runs the built program: what it prints and ends with, also by signals.
func TestProcess(t *testing.T) {
	binary := build(t)
	c := newCluster(t)
	newBoard(t, c, "board-1")
	for line, want := range map[string]struct {
		code     int
		out, err string
	}{
		"":                                       {0, "Available Commands:", ""},
		"version":                                {0, "skerry v1-test\n", ""},
		"version --json":                         {0, `{"version":"v1-test"}`, ""},
		"node list":                              {0, "board-1  spare  online    amd64  4     1.0 GiB  ", ""},
		"job deploy web --image x":               {0, "deploy of web done", ""},
		"job deploy big --image x --memory 9999": {1, "", "refused (no_capacity)"},
		"job deploy --bogus":                     {2, "", "unknown flag"},
		"node list --broker tcp://127.0.0.1:1":   {3, "", "check --broker"},
		"job deploy g --image gated --timeout 1s": {1, "accepted", "goes on in the cluster"},
	} {
		p := c.spawn(t, binary, strings.Fields(line)...)
		if code := p.wait(); code != want.code || !strings.Contains(p.out.String(), want.out) || !strings.Contains(p.err.String(), want.err) {
			t.Errorf("%s: got %d, want %+v\n%s\n%s", line, code, want, p.out.String(), p.err.String())
		}
	}
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		p := c.spawn(t, binary, "job", "deploy", "h", "--image", "gated")
		until(t, "progress", func() bool { return strings.Contains(p.out.String(), "preparing") })
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := p.wait(); got != code || !strings.Contains(p.err.String(), "interrupted; the command goes on") {
			t.Errorf("%s: got %d, want %d\n%s", sig, got, code, p.err.String())
		}
	}
}

// TestTerminal runs the built program on a terminal of its own.
func TestTerminal(t *testing.T) {
	if _, err := exec.LookPath("script"); err != nil {
		t.Fatal("script of util-linux is missing: apt-get install bsdutils")
	}
	binary := build(t)
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	command := binary + " job deploy slow --image gated"
	p := c.spawn(t, "script", "-qec", command, "/dev/null")
	for _, drawn := range []string{"[................] 0 B of 40.0 MB (0 %)", "[####............] 10.0 MB of", "[########........] 20.0 MB of", "[############....] 30.0 MB of",
		"[################] 40.0 MB of"} {
		until(t, drawn, func() bool { return strings.Contains(p.out.String(), drawn) })
		b.step <- struct{}{}
	}
	if code := p.wait(); code != 0 {
		t.Errorf("got exit code %d", code)
	}
	screen := p.out.String()
	for _, want := range []string{"\x1b[J", "\x1b[33mpreparing\x1b[0m", "\x1b[32mrunning\x1b[0m, healthy", "deploy of slow done: 1 of 1 copies run"} {
		if !strings.Contains(screen, want) {
			t.Errorf("the terminal was not sent %q:\n%q", want, screen)
		}
	}
	colour := regexp.MustCompile("\x1b\\[[0-9;]*m")
	if !colour.MatchString(run1(t, c, "script", "-qec", binary+" node list", "/dev/null")) {
		t.Error("no colours on a terminal")
	}
	if got := run1(t, c, "script", "-qec", "NO_COLOR=1 "+binary+" node list", "/dev/null"); colour.MatchString(got) || !strings.Contains(got, "board-1") {
		t.Errorf("with NO_COLOR: got %q", got)
	}
	if got := run1(t, c, binary, "node", "list"); strings.Contains(got, "\x1b") {
		t.Errorf("to a pipe: got %q", got)
	}
}

func run1(t *testing.T, c *testCluster, binary string, args ...string) string {
	t.Helper()
	p := c.spawn(t, binary, args...)
	if code := p.wait(); code != 0 {
		t.Errorf("%v: got exit code %d, %s", args, code, p.err.String())
	}
	return p.out.String()
}
