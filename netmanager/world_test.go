//go:build linux

package netmanager_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/relay"
)

func TestMain(m *testing.M) {
	labtest.Child()
	os.Exit(m.Run())
}

// soon is how long anything may take that happens at once on a machine that has time.
const soon = 20 * time.Second

// world is nodes on one segment.
type world struct {
	*labtest.Lab
	t     *testing.T
	nodes []*labtest.Node
}

// newWorld makes n nodes, each on a host of its own, and sets them up.
func newWorld(t *testing.T, n int) *world {
	t.Helper()
	w := &world{Lab: labtest.New(t), t: t}
	w.join(n)
	return w
}

// newWorldWithManager is newWorld beside a host that has the relay and the reflectors of a manager.
func newWorldWithManager(t *testing.T, n int) *world {
	t.Helper()
	w := &world{Lab: labtest.New(t), t: t}
	manager := nettest.NewHost(t, "manager")
	w.join(n, nettest.End{Host: manager, Interface: "eth0", Addresses: []string{"198.51.100.100/24"}})
	return w
}

func (w *world) join(n int, managers ...nettest.End) {
	t := w.t
	t.Helper()
	var ends []nettest.End
	for i := range n {
		ends = append(ends, nettest.End{Host: nettest.NewHost(t, fmt.Sprintf("host%d", i)), Interface: "eth0", Addresses: []string{underlay(i) + "/24"}})
	}
	nettest.Switch(t, "segment", append(ends, managers...)...)
	for _, m := range managers {
		w.serveManager(m.Host)
	}
	for i := range n {
		w.nodes = append(w.nodes, w.Node(ends[i].Host, underlay(i)))
	}
	w.Set()
}

// serveManager serves what a manager does for the tunnels.
func (w *world) serveManager(host *nettest.Host) {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	server := relay.NewServer(relay.ServerConfig{Allow: func(relay.Key) bool { return true }}, log)
	var reflector *relay.Reflector
	host.Do(func() {
		var err error
		reflector, err = relay.NewReflector(relay.ReflectorConfig{Addrs: []string{"198.51.100.100:3478", "198.51.100.100:3479"}}, log)
		if err != nil {
			w.t.Fatal(err)
		}
	})
	web := &http.Server{Handler: server, ReadHeaderTimeout: soon}
	listener := host.Listen("tcp", "198.51.100.100:80")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Run(ctx) })
	wg.Go(func() { _ = reflector.Run(ctx) })
	wg.Go(func() { _ = web.Serve(listener) })
	w.t.Cleanup(func() {
		cancel()
		_ = web.Close()
		wg.Wait()
	})
	w.Relay = "http://198.51.100.100" + relay.Path
	w.STUN = reflector.Addrs()
}

func underlay(i int) string { return fmt.Sprintf("198.51.100.%d", i+1) }

// serveEach lets a container do something with each connection that it gets, which is closed afterwards.
func serveEach(c *labtest.Container, address string, do func(net.Conn)) {
	l := c.Listen("tcp", address)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				do(conn)
			}()
		}
	}()
}

// serveTCP lets a container say its name to who connects, and then echo.
func serveTCP(c *labtest.Container, address string) {
	serveEach(c, address, func(conn net.Conn) {
		fmt.Fprintln(conn, c.ID)
		_, _ = io.Copy(conn, conn)
	})
}

// serveUDP lets a container answer every datagram with its name and the address that it came from.
func serveUDP(c *labtest.Container, address string) {
	conn := c.ListenPacket("udp", address)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(fmt.Appendf(nil, "%s %s %s", c.ID, from, buf[:n]), from)
		}
	}()
}

// askUDP sends a datagram to a service of serveUDP, and returns who answers. The answer has to hold what was asked.
func askUDP(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(soon))
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return hear(t, conn, text)
}

// hear returns who answers to what was asked.
func hear(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	buf := make([]byte, 65536)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(buf[:n]))
	if len(words) != 3 || words[2] != text {
		t.Fatalf("asked %d bytes, answered %.60q", len(text), buf[:n])
	}
	return words[0]
}

// who connects from a container and returns who answers.
func who(t *testing.T, from *labtest.Container, to netip.Addr, port uint16) string {
	t.Helper()
	name, err := askTCP(t, from, to, port)
	if err != nil {
		t.Fatalf("%s to %s: %v", from.ID, to, err)
	}
	return name
}

func askTCP(t *testing.T, from *labtest.Container, to netip.Addr, port uint16) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return readName(conn)
}

// dialWith connects a container's socket that has these options from an address of its choice, whose kind is the protocol; the connection stays for as
// long as the test lasts.
func dialWith(t *testing.T, c *labtest.Container, options func(fd int) error, from net.Addr, to netip.AddrPort) (conn net.Conn) {
	t.Helper()
	d := net.Dialer{LocalAddr: from, Timeout: soon, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = options(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	if err := c.Try(func() (err error) {
		conn, err = d.DialContext(t.Context(), from.Network(), to.String())
		return err
	}); err != nil {
		t.Fatalf("%s %s to %s: %v", from.Network(), from, to, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// openStream connects a container to a service of serveTCP and leaves the connection open, for as long as the test lasts.
func openStream(t *testing.T, from *labtest.Container, to *labtest.Service) net.Conn {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(to.RoundRobin, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := readName(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// echo has a byte come back over a stream that openStream has opened.
func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(soon))
	got := make([]byte, 1)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(got); err != nil || got[0] != 'x' {
		t.Fatalf("the open stream: got %q %v", got, err)
	}
}

func readName(conn net.Conn) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	var name string
	_, err := fmt.Fscanln(conn, &name)
	return name, err
}

// resolver asks the node's name server from within the container.
func resolver(c *labtest.Container, gateway netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.Dial(ctx, network, netip.AddrPortFrom(gateway, 53).String())
	}}
}

func addr(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }
