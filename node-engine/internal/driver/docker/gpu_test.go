package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// gpuLab is a lab on a Docker engine of its own that has NVIDIA's runtime and hook: runc, and a program that does nothing, since there is no such
// card here. All that Docker itself does for a card it does: the hook would read from the environment which ones the container has.
func gpuLab(t *testing.T) *lab {
	t.Helper()
	if _, err := exec.LookPath("dockerd"); (err != nil || os.Getuid() != 0) && os.Getenv("SKERRY_TEST_ALL") == "" {
		t.Skip("needs dockerd and root")
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"nvidia-container-runtime-hook": "#!/bin/sh\nexit 0\n", "nvidia-runtime": "#!/bin/sh\nexec runc \"$@\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	host := "unix://" + dir + "/s"
	// In a network of its own: without a bridge dockerd takes away docker0, which is another engine's.
	engine := exec.Command("unshare", "-n", "dockerd", "-H", host, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--bridge", "none", "--iptables=false", "--add-runtime", "nvidia="+dir+"/nvidia-runtime")
	engine.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	engine.Stderr = t.Output()
	engine.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = engine.Process.Signal(syscall.SIGTERM)
		_ = engine.Wait()
	})
	cli, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	eventually(t, "this test's dockerd answers", func() bool {
		_, err := cli.Ping(t.Context())
		return err == nil
	})
	return &lab{Driver: newDriver(t, Config{Node: newNode(t, cli), Host: host}), t: t, cli: cli, ref: helperImage(t, cli)}
}

// Each container that asks for graphics processors has some of its own, and what Docker hands to NVIDIA's hook says which.
func TestGPUsAreNotShared(t *testing.T) {
	l := gpuLab(t)
	spec := func(id messages.InstanceID, count int) driver.Spec {
		s := l.spec(id, "sleep")
		s.Resources.GPUs, s.Network.Mode = count, messages.NoNetwork
		return s
	}
	has := func(id messages.InstanceID, want string) {
		t.Helper()
		c := l.raw(id)
		if got := strings.Join(c.HostConfig.DeviceRequests[0].DeviceIDs, ","); got != want {
			t.Errorf("%s has %s, want %s", id, got, want)
		}
		eventually(t, "the hook to read NVIDIA_VISIBLE_DEVICES="+want+" for "+string(id), func() bool { // the program begins a moment after the start
			env, err := os.ReadFile("/proc/" + strconv.Itoa(c.State.Pid) + "/environ")
			return err == nil && strings.Contains("\x00"+string(env), "\x00NVIDIA_VISIBLE_DEVICES="+want+"\x00")
		})
	}
	kill := func(id messages.InstanceID) {
		t.Helper()
		if err := l.cli.ContainerKill(t.Context(), l.raw(id).ID, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		l.ended(id)
	}
	l.start(spec("a.0.0", 1))
	l.start(spec("b.0.0", 2))
	has("a.0.0", "0")
	has("b.0.0", "1,2")

	begun := l.raw("a.0.0").ID
	kill("a.0.0")
	l.start(spec("a.0.0", 1)) // started again as it is: nobody has taken what it had
	has("a.0.0", "0")
	if l.raw("a.0.0").ID != begun {
		t.Error("made anew without a need")
	}

	kill("a.0.0")
	l.start(spec("c.0.0", 1))
	has("c.0.0", "0")
	l.start(spec("a.0.0", 1)) // which must be made anew: c has what it had
	has("a.0.0", "3")
	if err := l.Stop(t.Context(), "b.0.0", messages.Stop{Grace: messages.Duration(time.Second)}); err != nil {
		t.Fatal(err)
	}
	l.start(spec("d.0.0", 1))
	has("d.0.0", "1")
}
