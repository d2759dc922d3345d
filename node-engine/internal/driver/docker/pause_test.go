package docker

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The program of each processor runs until it is killed, and again after a signal has woken it.
func TestPause(t *testing.T) {
	emulators := map[string]string{"amd64": "qemu-x86_64-static", "arm": "qemu-arm-static", "arm64": "qemu-aarch64-static"}
	for arch, emulator := range emulators {
		t.Run(arch, func(t *testing.T) {
			program, err := pause(arch)
			if err != nil {
				t.Fatal(err)
			}
			if f, err := elf.NewFile(bytes.NewReader(program)); err != nil || len(f.Progs) != 2 || len(program) > 250 {
				t.Fatalf("%d bytes, %v", len(program), err)
			}
			file := filepath.Join(t.TempDir(), "pause")
			if err := os.WriteFile(file, program, 0o755); err != nil {
				t.Fatal(err)
			}
			argv := []string{file}
			if arch != runtime.GOARCH {
				argv = []string{emulator, file}
			}
			if _, err := exec.LookPath(argv[0]); err != nil {
				if os.Getenv("SKERRY_TEST_ALL") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			runs(t, argv)
		})
	}
	if _, err := pause("mips"); err == nil {
		t.Error("mips: got no error")
	}
}

func runs(t *testing.T, argv []string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for range 2 { // the second stop interrupts the call that the first one has begun anew
		for _, s := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat")); err != nil || !bytes.Contains(stat, []byte(") S ")) {
		t.Errorf("it does not sleep: %s %v", stat, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	exit, ok := errors.AsType[*exec.ExitError](<-ended)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("got %v, want its end by SIGKILL", exit)
	}
}
