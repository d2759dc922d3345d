//go:build linux

package nettest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestInNamespace(t *testing.T) {
	if !InNamespace(t) {
		return
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Attrs().Name != "lo" {
		t.Errorf("got %d links, want lo alone", len(links))
	}
	if !t.Run("in a subtest", func(t *testing.T) {
		if !InNamespace(t) {
			t.Error("got out of the namespace in a subtest")
		}
	}) {
		t.Fail()
	}
}

func TestChildArguments(t *testing.T) {
	got := childArguments("TestA/b c", []string{"-test.run=Test", "-test.coverprofile=x", "-test.timeout=5s", "-update", "-seed", "3"})
	want := []string{"-test.run=^TestA$/^b c$", "-test.v=true", "-test.count=1", "-test.timeout=5s", "-update", "-seed", "3"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHostsTalkThroughARouter(t *testing.T) {
	a, b, router := NewHost(t, "a"), NewHost(t, "b"), NewHost(t, "router")
	router.Forward()
	Switch(t, "left",
		End{Host: a, Interface: "eth0", Addresses: []string{"192.0.2.1/24", "2001:db8:1::1/64"}},
		End{Host: router, Interface: "eth0", Addresses: []string{"192.0.2.254/24", "2001:db8:1::fe/64"}})
	Cable(t,
		End{Host: router, Interface: "eth1", Addresses: []string{"198.51.100.254/24", "2001:db8:2::fe/64"}},
		End{Host: b, Interface: "eth0", Addresses: []string{"198.51.100.1/24", "2001:db8:2::1/64"}, MTU: 1500})
	a.Route("default", "192.0.2.254")
	b.Route("default", "198.51.100.254")
	a.Route("default6", "2001:db8:1::fe")
	b.Route("default6", "2001:db8:2::fe")
	for _, address := range []string{"198.51.100.1:80", "[2001:db8:2::1]:80"} {
		listener := b.Listen("tcp", address)
		go func() {
			conn, err := listener.Accept()
			if err == nil {
				fmt.Fprint(conn, "hello")
				conn.Close()
			}
		}()
		conn, err := a.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if got, _ := io.ReadAll(conn); string(got) != "hello" {
			t.Errorf("got %q through the router, want hello", got)
		}
		conn.Close()
	}
	if got := a.Run("cat", "/proc/net/dev"); !strings.Contains(got, "eth0") || strings.Contains(got, "eth1") {
		t.Errorf("a program in a saw\n%s", got)
	}
}

func TestDoComesBack(t *testing.T) {
	h := NewHost(t, "h")
	before, _ := os.Readlink("/proc/thread-self/ns/net")
	if err := h.Try(func() error { return AddTUN("t0") }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var after string
	go func() {
		defer close(done)
		defer func() { after, _ = os.Readlink("/proc/thread-self/ns/net") }()
		h.Do(runtime.Goexit) // as t.Fatal does
	}()
	<-done
	if after != before {
		t.Errorf("got %s after, want %s", after, before)
	}
	if _, err := net.InterfaceByName("t0"); err == nil {
		t.Error("the host's device is seen outside")
	}
}

// TestKilledLeavesNothing holds a program in a host of a process that is killed: both end.
func TestKilledLeavesNothing(t *testing.T) {
	if os.Getenv("NETTEST_HOLD") != "" {
		h := NewHost(t, "held")
		if err := h.Start(exec.CommandContext(t.Context(), "sleep", "61.7")); err != nil {
			t.Fatal(err)
		}
		fmt.Println("held")
		select {}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledLeavesNothing$")
	cmd.Env = append(os.Environ(), "NETTEST_HOLD=1")
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(output, make([]byte, 5))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		found, _ := exec.CommandContext(t.Context(), "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").Output()
		if !strings.Contains(string(found), "sleep 61.7") {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the host's program outlived its process")
		}
	}
}
