//go:build linux

package nettest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Host is a network namespace that plays one machine. It lives until the end of its test.
type Host struct {
	Name string

	t     testing.TB
	fd    int         // holds the namespace open
	start chan func() // to the anchor thread
}

// NewHost makes a machine with nothing but its loopback, which is up.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	h := newHost(t, name, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	h.Do(func() { h.check("loopback", netlink.LinkSetUp(h.Link("lo"))) })
	h.Sysctl("net.ipv6.conf.default.accept_dad", "0") // IPv6 works at once, not after a second of doubt
	h.Sysctl("net.ipv4.ip_forward", "0")              // a fresh namespace has what this machine has
	h.Sysctl("net.ipv6.conf.all.forwarding", "0")
	return h
}

// Inside returns a namespace that somebody else has made, such as a container's, by its file.
func Inside(t testing.TB, name, path string) *Host {
	t.Helper()
	return newHost(t, name, func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Setns(fd, unix.CLONE_NEWNET)
	})
}

func newHost(t testing.TB, name string, enter func() error) *Host {
	t.Helper()
	h := &Host{Name: name, t: t, start: make(chan func())}
	ready, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread belongs to the namespace and ends with it. Programs are started from it, because the kernel takes the
		// end of the thread for the death of their parent.
		runtime.LockOSThread()
		err := enter()
		if err == nil {
			h.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- err
		for fn := range h.start {
			fn()
		}
	}()
	if err := <-ready; err != nil {
		close(h.start)
		<-done
		Unable(t, fmt.Sprintf("no right to make or enter a network namespace: %v", err))
	}
	t.Cleanup(func() {
		close(h.start)
		<-done
		_ = unix.Close(h.fd)
	})
	return h
}

// Path is the namespace as a file, valid in every process while the test runs.
func (h *Host) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.fd) }

// Do calls fn with its thread inside the namespace. What fn opens there (sockets, netlink, /proc/sys/net) stays there for good; goroutines that
// fn starts do not. fn may end the test.
func (h *Host) Do(fn func()) {
	h.t.Helper()
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	h.check("own namespace", err)
	h.check("enter namespace", unix.Setns(h.fd, unix.CLONE_NEWNET))
	defer func() {
		err := unix.Setns(home, unix.CLONE_NEWNET)
		_ = unix.Close(home)
		if err != nil {
			panic(fmt.Sprintf("nettest: no way back from the namespace of %s: %v", h.Name, err)) // the thread would poison other tests
		}
		runtime.UnlockOSThread()
	}()
	fn()
}

// Try is Do for what may fail.
func (h *Host) Try(fn func() error) (err error) {
	h.t.Helper()
	h.Do(func() { err = fn() })
	return err
}

// Link finds a link; only within Do.
func (h *Host) Link(name string) netlink.Link {
	h.t.Helper()
	link, err := netlink.LinkByName(name)
	h.check("link "+name, err)
	return link
}

// Address gives a link addresses in prefix form, IPv4 or IPv6, the latter usable at once.
func (h *Host) Address(link string, prefixes ...string) {
	h.t.Helper()
	h.Do(func() {
		for _, prefix := range prefixes {
			address, err := netlink.ParseAddr(prefix)
			h.check("address", err)
			if address.IP.To4() == nil {
				address.Flags = unix.IFA_F_NODAD
			}
			h.check("address "+prefix, netlink.AddrAdd(h.Link(link), address))
			if address.IP.To4() == nil && h.Link(link).Attrs().Flags&net.FlagRunning != 0 {
				h.awaitLocal(address.IP)
			}
		}
	})
}

// awaitLocal waits for a kernel thread to make an IPv6 address usable.
func (h *Host) awaitLocal(address net.IP) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		routes, err := netlink.RouteGet(address)
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s: %s is not its own: %v", h.Name, address, err)
		}
	}
}

// Route sends a prefix, or "default" or "default6", to the next hop.
func (h *Host) Route(destination, via string) {
	h.t.Helper()
	destination = map[string]string{"default": "0.0.0.0/0", "default6": "::/0"}[destination] + strings.TrimPrefix(strings.TrimPrefix(destination, "default6"), "default")
	h.Do(func() {
		_, dst, err := net.ParseCIDR(destination)
		h.check("route", err)
		h.check("route "+destination, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
	})
}

// Sysctl sets a value by its dotted name below net; a dot within an interface's name is written as a slash.
func (h *Host) Sysctl(name, value string) {
	h.t.Helper()
	h.Do(func() {
		path := "/proc/sys/net/" + strings.NewReplacer(".", "/", "/", ".").Replace(strings.TrimPrefix(name, "net."))
		h.check("sysctl", os.WriteFile(path, []byte(value), 0o644)) //nolint:gosec // the mode is the kernel's
	})
}

// Forward makes the host a router for IPv4 and IPv6.
func (h *Host) Forward() {
	h.t.Helper()
	h.Sysctl("net.ipv4.ip_forward", "1")
	h.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// Run runs a program in the namespace and returns what it wrote; its failure fails the test.
func (h *Host) Run(name string, arguments ...string) string {
	h.t.Helper()
	output, err := h.Output(name, arguments...)
	if err != nil {
		h.t.Fatalf("%s: %s %s: %v\n%s", h.Name, name, strings.Join(arguments, " "), err, output)
	}
	return output
}

// Output is Run for a program that may fail.
func (h *Host) Output(name string, arguments ...string) (string, error) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), name, arguments...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := h.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return output.String(), err
}

// Start starts a program in the namespace; the caller waits for it. It is killed when this process dies, and by its context.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error)
	h.start <- func() { result <- cmd.Start() }
	return <-result
}

// Listen opens a stream listener at a literal address; it closes with the test.
func (h *Host) Listen(network, address string) net.Listener {
	h.t.Helper()
	var listener net.Listener
	h.Do(func() {
		var err error
		listener, err = new(net.ListenConfig).Listen(h.t.Context(), network, address)
		h.check("listen", err)
	})
	h.t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// ListenPacket opens a datagram socket at a literal address; it closes with the test.
func (h *Host) ListenPacket(network, address string) net.PacketConn {
	h.t.Helper()
	var conn net.PacketConn
	h.Do(func() {
		var err error
		conn, err = new(net.ListenConfig).ListenPacket(h.t.Context(), network, address)
		h.check("listen", err)
	})
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Dial connects to a literal address (a name would be resolved outside).
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	h.t.Helper()
	h.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
	return conn, err
}

func (h *Host) check(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %s: %v", h.Name, what, err)
	}
}
