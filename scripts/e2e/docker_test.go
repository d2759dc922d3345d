package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dockerdStub makes the stub of the client answer, and lives until SIGTERM.
const dockerdStub = `trap 'rm "$STATE/answers"; exit 0' TERM
echo up >>"$STATE/started"
touch "$STATE/answers"
while :; do sleep 0.05; done`

func newDockerBoard(t *testing.T) *board {
	t.Helper()
	needRoot(t)
	b := newBoard(t)
	b.setenv("SKERRY_DOCKERD_DIR="+b.dir+"/run", "SKERRY_DOCKER_WAIT=5")
	b.tool("docker", `[ -e "$STATE/answers" ]`)
	b.tool("dockerd", dockerdStub)
	b.tool("systemctl", `[ "$*" = "start docker" ] && setsid dockerd >/dev/null 2>&1 &`)
	b.tool("apt-get", `echo "$*" >>"$STATE/apt"; exit 1`)
	t.Cleanup(func() { b.run(false, "docker.sh", "--stop") })
	return b
}

func TestDockerStartsOnceAndEndsItsOwn(t *testing.T) {
	b := newDockerBoard(t)
	for range 2 {
		if code, said := b.run(false, "docker.sh"); code != 0 {
			t.Fatalf("exit code %d, said %q", code, said)
		}
	}
	if got := b.state("started"); got != "up" || b.state("apt") != "" {
		t.Errorf("dockerd started: %q, want once; apt-get ran: %q", got, b.state("apt"))
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return // there the service is systemd's to end
	}
	if code, said := b.run(false, "docker.sh", "--stop"); code != 0 {
		t.Fatalf("exit code %d, said %q", code, said)
	}
	for _, left := range []string{"run", "state/answers"} {
		if _, err := os.Stat(filepath.Join(b.dir, left)); err == nil {
			t.Errorf("--stop left %s", left)
		}
	}
}

func TestDockerLeavesARunningEngineAlone(t *testing.T) {
	b := newDockerBoard(t)
	b.tool("docker", "exit 0")
	if code, said := b.run(false, "docker.sh"); code != 0 || said != "" || b.state("started") != "" {
		t.Errorf("exit code %d, said %q, started %q", code, said, b.state("started"))
	}
}

func TestDockerSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name, dockerd, env, want string
		user                     bool
	}{
		{name: "dockerd ends", dockerd: "echo no cgroups here; exit 1", want: "no cgroups here"},
		{name: "dockerd is mute", dockerd: "while :; do sleep 0.05; done", env: "SKERRY_DOCKER_WAIT=1", want: "no Docker engine answered within 1 s"},
		{name: "elsewhere", env: "DOCKER_HOST=tcp://192.0.2.1:1", want: "DOCKER_HOST is tcp://192.0.2.1:1"},
		{name: "not root", user: true, want: "repeat with sudo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newDockerBoard(t)
			if c.dockerd != "" {
				b.tool("dockerd", c.dockerd)
				if _, err := os.Stat("/run/systemd/system"); err == nil {
					return // dockerd is not started by hand there
				}
			}
			b.setenv(c.env)
			if code, said := b.run(c.user, "docker.sh"); code == 0 || !strings.Contains(said, c.want) {
				t.Errorf("exit code %d, said %q; want %q", code, said, c.want)
			}
		})
	}
}
