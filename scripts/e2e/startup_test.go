// Package e2e holds what is tested of all programs together: whole clusters, the scripts around them, and the import rules. It
// is no library: nothing imports it.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a script under test may take; none of them waits for anything real.
const patience = 20 * time.Second

// board is a made-up board: a folder with copies of the scripts, a stub of the engine, and a PATH that holds only what the test
// put there. State files of the stubs are in dir.
type board struct {
	t   *testing.T
	dir string
	env []string
}

// tools are what the scripts may use of the system they run on.
var tools = []string{"bash", "sh", "dirname", "basename", "getconf", "id", "timeout", "sed", "cut", "cat", "env", "tail", "rm", "mkdir",
	"setsid", "nohup", "sleep", "uname", "touch", "head"}

// engineStub lives until SIGTERM, and says so; a SIGHUP that is not ignored ends it without a word.
const engineStub = `echo "$0 $*" >"$STATE/args"
trap 'touch "$STATE/ended"; exit 0' TERM
echo $$ >"$STATE/pid.new" && mv "$STATE/pid.new" "$STATE/pid"
[ -z "$ONCE" ] || exit 0
while :; do sleep 0.05; done`

func newBoard(t *testing.T) *board {
	t.Helper()
	dir, err := os.MkdirTemp("", "skerry-board-") // not t.TempDir: another user must get in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &board{t: t, dir: dir, env: []string{"STATE=" + dir + "/state", "PATH=" + dir + "/path", "HOME=" + dir, "TERM=dumb"}}
	for sub, mode := range map[string]os.FileMode{"path": 0o755, "state": 0o777, "scripts": 0o755} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, sub), mode), os.Chmod(filepath.Join(dir, sub), mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range append(tools, "mv") {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, "path", tool)); err != nil {
			t.Fatal(err)
		}
	}
	for _, script := range []string{"start-up.sh", "docker.sh"} {
		text, err := os.ReadFile(filepath.Join("..", script))
		if err != nil {
			t.Fatal(err)
		}
		b.file("scripts/"+script, string(text))
	}
	b.file("engine", "#!/bin/sh\n"+engineStub)
	b.setenv("CLUSTER_MANAGER_IP=192.0.2.10", "SKERRY_ENGINE="+dir+"/engine")
	b.tool("uname", "echo x86_64")
	b.tool("getconf", "echo 64")
	b.tool("docker", "exit 0")
	return b
}

func (b *board) file(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	os.Remove(path)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

// tool puts a stub of a program of the system on the board's PATH.
func (b *board) tool(name, script string) { b.file("path/"+name, "#!/bin/sh\n"+script+"\n") }

func (b *board) setenv(vars ...string) { b.env = append(b.env, vars...) }

func (b *board) state(name string) string {
	text, err := os.ReadFile(filepath.Join(b.dir, "state", name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// command makes a command that runs in a session of its own, as an ordinary user where asked for.
func (b *board) command(user bool, script string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), patience) // cleanups run scripts too
	b.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "scripts", script), args...)
	cmd.Env, cmd.Dir = b.env, b.dir
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if user && os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	return cmd
}

// run runs a script to its end without a terminal and returns its exit code and what it said on stderr.
func (b *board) run(user bool, script string, args ...string) (int, string) {
	b.t.Helper()
	cmd := b.command(user, script, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		b.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("SKERRY_TEST_ALL") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

func TestStartUpTellsBoardsApart(t *testing.T) {
	for _, c := range []struct {
		machine, bits, asked, want string // want "" = the engine runs
	}{
		{"x86_64", "64", "amd64", ""},
		{"x86_64", "64", "arm-7", "this board is amd64"},
		{"x86_64", "32", "amd64", "32-bit system"},
		{"armv7l", "32", "arm-7", ""},
		{"armv7l", "32", "amd64", "this board is arm-7"},
		{"armv8l", "32", "arm-7", ""},
		{"aarch64", "32", "arm-7", ""}, // Raspberry Pi OS, 32-bit, on its 64-bit kernel
		{"aarch64", "32", "arm64", "this board is arm-7"},
		{"aarch64", "64", "arm64", ""},
		{"aarch64", "64", "arm-7", "this board is arm64"},
		{"armv6l", "32", "arm-7", "is a armv6l, for which there is no node engine"},
		{"x86_64", "64", "sparc", "no such architecture: sparc"},
		{"x86_64", "64", "", "usage: start-up.sh"},
	} {
		t.Run(c.machine+"/"+c.bits+"/"+c.asked, func(t *testing.T) {
			b := newBoard(t)
			b.setenv("ONCE=1")
			b.tool("uname", "echo "+c.machine)
			b.tool("getconf", "echo "+c.bits)
			var args []string
			if c.asked != "" {
				args = append(args, c.asked)
			}
			code, said := b.run(true, "start-up.sh", args...)
			if ran := b.state("args") != ""; ran != (c.want == "") || ran != (code == 0) || !strings.Contains(said, c.want) {
				t.Errorf("exit code %d, engine ran: %t, said %q; want %q", code, ran, said, c.want)
			}
		})
	}
}

func TestStartUpHandsOverArguments(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"CLUSTER_MANAGER_IP=192.0.2.7", "--manager http://192.0.2.7:10100 --name roof 1"},
		{"CLUSTER_MANAGER_IP=fd00::7", "--manager http://[fd00::7]:10100 --name roof 1"},
		{"CLUSTER_MANAGER_PORT=80", "--manager http://192.0.2.10:80 --name roof 1"},
		{"SKERRY_MANAGER=https://manager:10443", "--manager https://manager:10443 --name roof 1"},
	} {
		b := newBoard(t)
		b.setenv("ONCE=1", c.env)
		code, said := b.run(true, "start-up.sh", "amd64", "--name", "roof 1")
		if got := b.state("args"); code != 0 || got != b.dir+"/engine "+c.want {
			t.Errorf("%s: exit code %d, ran %q, said %q; want %q", c.env, code, got, said, c.want)
		}
	}
}

func TestStartUpFindsTheEngine(t *testing.T) {
	for _, place := range []string{"bin/amd64/node-engine", "bin/node-engine"} {
		b := newBoard(t)
		b.setenv("ONCE=1", "SKERRY_ENGINE=")
		if err := os.MkdirAll(filepath.Dir(filepath.Join(b.dir, place)), 0o755); err != nil {
			t.Fatal(err)
		}
		b.file(place, "#!/bin/sh\n"+engineStub)
		code, said := b.run(true, "start-up.sh", "amd64")
		if got := b.state("args"); code != 0 || !strings.Contains(got, place) {
			t.Errorf("exit code %d, ran %q, said %q; want %s", code, got, said, place)
		}
	}
}

func TestStartUpRefuses(t *testing.T) {
	for _, c := range []struct{ name, env, want string }{
		{"no manager", "CLUSTER_MANAGER_IP=", "neither CLUSTER_MANAGER_IP nor SKERRY_MANAGER is set"},
		{"bad manager", "CLUSTER_MANAGER_IP=a b", "neither an address nor a name"},
		{"bad port", "CLUSTER_MANAGER_PORT=http", "not a port number"},
		{"no such engine", "SKERRY_ENGINE=/nowhere", "not a program"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBoard(t)
			b.setenv(c.env)
			if code, said := b.run(true, "start-up.sh", "amd64"); code != 1 || !strings.Contains(said, c.want) {
				t.Errorf("exit code %d, said %q; want 1 and %q", code, said, c.want)
			}
		})
	}
}

// Nobody is there to type a password: the script must end at once and say what to do.
func TestStartUpWithoutRightAndTerminal(t *testing.T) {
	for name, sudo := range map[string]string{"no sudo": "", "sudo wants a password": `[ "$1" = -n ] && exit 1; sleep 1000`} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(t)
			b.tool("docker", "exit 1")
			if sudo != "" {
				b.tool("sudo", sudo)
			}
			start := time.Now()
			code, said := b.run(true, "start-up.sh", "amd64")
			if code != 1 || !strings.Contains(said, "may not use Docker") || !strings.Contains(said, "adduser") {
				t.Errorf("exit code %d, said %q", code, said)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// sudoStub asks for a password on the terminal, counts how often it did, and from then on everything believes to be root.
const sudoStub = `[ "$1" = -n ] && exit 1
printf 'Password: ' >/dev/tty
read -r password </dev/tty
echo "$password" >>"$STATE/passwords"
while [ "$1" != -- ]; do shift; done
shift
IS_ROOT=1 exec "$@"`

func TestStartUpAsksForThePasswordOnce(t *testing.T) {
	b := newBoard(t)
	b.setenv("ONCE=1")
	b.tool("sudo", sudoStub)
	b.tool("docker", `[ -e "$STATE/dockerd" ]`)
	b.tool("id", `case $1/$IS_ROOT in -u/1) echo 0 ;; -u/*) echo 1000 ;; *) echo someone ;; esac`)
	b.file("scripts/docker.sh", "#!/bin/sh\necho \"as root: $IS_ROOT\" >>\"$STATE/docker.sh\"; touch \"$STATE/dockerd\"\n")
	cmd := b.command(true, "start-up.sh", "amd64", "--name", "roof")
	term := newTerminal(t)
	term.start(cmd)
	term.expect("Password: ")
	term.write("secret\n")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v; the terminal shows %q", err, term.text())
	}
	if got := b.state("passwords"); got != "secret" {
		t.Errorf("passwords asked for: %q, want one", got)
	}
	if got := b.state("docker.sh"); got != "as root: 1" {
		t.Errorf("docker.sh: %q, want one run as root", got)
	}
	if got := b.state("args"); got != b.dir+"/engine --manager http://192.0.2.10:10100 --name roof" {
		t.Errorf("the engine ran as %q", got)
	}
}

// In the background the terminal would stop sudo for good. The sentence goes to the terminal too, as stderr may be /dev/null.
func TestStartUpDoesNotPromptFromTheBackground(t *testing.T) {
	b := newBoard(t)
	b.tool("docker", "exit 1")
	b.tool("sudo", sudoStub)
	shell := b.command(true, "../path/bash", "--norc", "--noprofile", "-i")
	term := newTerminal(t)
	term.start(shell)
	term.write("nohup scripts/start-up.sh amd64 >/dev/null 2>&1 & wait $!; echo code=$?; exit\n")
	term.expect("run sudo -v first")
	term.expect("code=1")
	if err := shell.Wait(); err != nil {
		t.Error(err)
	}
	if got := b.state("passwords"); got != "" {
		t.Errorf("asked for a password: %q", got)
	}
}

func TestStartUpOutlivesTheTerminal(t *testing.T) {
	for _, c := range []struct {
		how   string
		lives bool
	}{
		{"nohup scripts/start-up.sh amd64 >/dev/null 2>&1 &", true},
		{"scripts/start-up.sh amd64 >/dev/null 2>&1 &", false}, // shows that the hang-up of this test is a real one
	} {
		t.Run(c.how, func(t *testing.T) {
			b := newBoard(t)
			shell := b.command(true, "../path/bash", "--norc", "--noprofile", "-i")
			term := newTerminal(t)
			term.start(shell)
			term.write(c.how + "\necho started=$!.\n")
			waitFor(t, "the engine to run", func() bool { return b.state("pid") != "" })
			pid, err := strconv.Atoi(b.state("pid"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
			term.expect(fmt.Sprintf("started=%d.", pid)) // the engine is the process that was started, so $! can end it
			term.hangUp()
			shell.Wait() // ended by SIGHUP; its error says so
			if !c.lives {
				waitFor(t, "the engine to be gone", func() bool { return !alive(pid) })
				return
			}
			if err := syscall.Kill(pid, syscall.SIGHUP); err != nil { // once more, now that the session leader is certainly gone
				t.Errorf("the engine went with the terminal: %v", err)
			}
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			waitFor(t, "the engine to end in good order", func() bool {
				_, err := os.Stat(filepath.Join(b.dir, "state", "ended"))
				return err == nil
			})
		})
	}
}

// alive says whether a process runs. A child of nobody who waits stays as a zombie, which is as good as gone.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	return len(fields) > 0 && fields[0] != "Z"
}

func TestUnitIsSound(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	text, err := os.ReadFile("../skerry-node.service")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"as it is": {string(text), true},
		"made bad": {strings.Replace(string(text), "KillMode=process", "KillMode=nothing-known", 1), false},
	} {
		engine := filepath.Join(t.TempDir(), "node-engine")
		if err := os.WriteFile(engine, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(t.TempDir(), "skerry-node.service")
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(c.text, "/usr/local/bin/node-engine", engine)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput()
		if ok := err == nil && len(out) == 0; ok != c.ok {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for _, line := range []string{"KillMode=process", "Restart=always", "EnvironmentFile=/etc/skerry/node.env"} {
		if !slices.Contains(strings.Split(string(text), "\n"), line) {
			t.Errorf("the unit lacks %s", line)
		}
	}
}
