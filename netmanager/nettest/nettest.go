//go:build linux

// Package nettest lets tests work on the kernel's real network without touching this machine's: InNamespace runs the whole test again in a
// network namespace of its own, and a Host is a further namespace within one test, joined to others by cables and switches. Everything
// belongs to the test's process, by descriptors and threads alone, so nothing is left behind however the process ends.
package nettest

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inside is set in the environment of a test that runs within its namespace; its value is the test's name.
const inside = "SKERRY_NETTEST"

// InNamespace reports whether this test runs in a network namespace of its own. Where it does not, the test is run again in a fresh one, with
// loopback up and root's rights over it; that run's outcome becomes the outcome of this one, and the answer is false:
//
//	if !nettest.InNamespace(t) {
//		return
//	}
//
// A test that has it as its first lines has the whole process to itself: sysctls, rules and devices are its own. The rest of the machine (files,
// /sys, the Docker engine) is shared as ever. For benchmarks make a Host instead: they would be run twice.
func InNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatalf("loopback of the fresh namespace: %v", err)
		}
		return true
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], childArguments(t.Name(), os.Args[1:])...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = namespaceAttributes()
	output, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.ProcessState == nil:
		Unable(t, "no right to make a network namespace: "+err.Error())
	case err != nil:
		t.Errorf("in its namespace: %v\n%s", err, output)
	case strings.Contains(string(output), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in its namespace:\n%s", output)
	case strings.Contains(string(output), "no tests to run"):
		t.Errorf("its own name did not select it:\n%s", output)
	case testing.Verbose():
		t.Logf("in its namespace:\n%s", output)
	}
	return false
}

// Unable skips a test for want of a right or a part of the kernel; where everything is expected to be there, it fails it.
func Unable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("SKERRY_TEST_ALL") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// childArguments selects one test and keeps the flags that mean something to it: its own and the timeout.
func childArguments(name string, arguments []string) []string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
	}
	child := []string{"-test.run=" + strings.Join(parts, "/"), "-test.v=true", "-test.count=1"}
	for _, argument := range arguments {
		flag := strings.TrimLeft(argument, "-")
		if !strings.HasPrefix(flag, "test.") || strings.HasPrefix(flag, "test.timeout=") || strings.HasPrefix(flag, "test.short") {
			child = append(child, argument)
		}
	}
	return child
}

// namespaceAttributes gives the child a network namespace, and where we are not root a user namespace in which it is.
func namespaceAttributes() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	return attributes
}
