package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inWorld names the directory of a test that runs in a world of its own.
const inWorld = "SKERRY_TEST_WORLD"

// world says whether this process is already the one that runs in a world of its own, and if not runs the test there: with a network, processes,
// mounts and a Docker engine that are its alone, so that any of them may be killed at will. The world ends with its first process, and all in it.
//
// The first process is a shell, which takes up orphans: containers outlive the dockerd that started them.
func world(t *testing.T) (dir string, inside bool) {
	t.Helper()
	needRoot(t)
	if dir := os.Getenv(inWorld); dir != "" {
		return dir, true
	}
	if _, err := exec.LookPath("dockerd"); err != nil && os.Getenv("SKERRY_TEST_ALL") == "" {
		t.Skip("dockerd is not installed")
	}
	dir = t.TempDir()
	left := time.Duration(0) // no limit, as for the test itself
	if deadline, ok := t.Deadline(); ok {
		left = time.Until(deadline)
	}
	const first = `ip link set lo up && mount -t tmpfs tmpfs /run || exit 1; "$@" & wait $!`
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "-m", "-p", "--fork", "--mount-proc", "--kill-child", "bash", "-c", first, "world",
		os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", left.String())
	cmd.Env = append(os.Environ(), inWorld+"="+dir, "DOCKER_HOST=unix://"+dir+"/docker.sock",
		"TMPDIR="+dir) // process ids begin anew in there, and name directories
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose end would be the parent's
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	for _, group := range cgroups(dir) { // of the containers, and left by whoever is killed
		inner, _ := filepath.Glob(filepath.Join(group, "*"))
		for _, g := range append(inner, group) {
			_ = syscall.Rmdir(g)
		}
	}
	if err != nil {
		t.Errorf("in a world of its own: %v", err)
	}
	return dir, false
}

// cgroupOf is the control group that the containers of a world are below.
func cgroupOf(dir string) string { return "skerry" + strings.ReplaceAll(dir, "/", "-") }

func cgroups(dir string) []string {
	one, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroupOf(dir))
	two, _ := filepath.Glob("/sys/fs/cgroup/" + cgroupOf(dir))
	return append(one, two...)
}

// dockerd starts the Docker engine of this world and waits until it answers.
func dockerd(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	out, err := os.OpenFile(filepath.Join(dir, "dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("dockerd", "--data-root", dir+"/docker", "--exec-root", dir+"/exec", "--pidfile", dir+"/dockerd.pid",
		"-H", os.Getenv("DOCKER_HOST"), "--cgroup-parent", "/"+cgroupOf(dir))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(soon); !dockerAnswers(t); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			text, _ := os.ReadFile(out.Name())
			t.Fatalf("dockerd does not answer: %s", text)
		}
	}
	return cmd
}
