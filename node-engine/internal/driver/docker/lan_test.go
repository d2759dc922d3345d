package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// lan is a driver.Network of veth pairs between this machine and each sandbox, with programs that forward the published ports.
type lan struct {
	t   testing.TB
	off atomic.Pointer[error]

	mu       sync.Mutex
	wires    map[messages.InstanceID]*cable
	attaches int
}

var _ driver.Network = (*lan)(nil)

type cable struct {
	driver.Attached
	namespace string
	link      string
	forwards  []io.Closer
}

var cables atomic.Int32 // of this process, so that no two have the same addresses

func newLAN(t testing.TB) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal("not root")
		}
		t.Skip("veth pairs need root")
	}
	l := &lan{t: t, wires: map[messages.InstanceID]*cable{}}
	t.Cleanup(func() {
		for _, id := range l.Attached() {
			l.Detach(context.Background(), id)
		}
	})
	return l
}

func (l *lan) Ready(context.Context) error {
	if err := l.off.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *lan) Attach(ctx context.Context, a driver.Attachment) (driver.Attached, error) {
	if err := l.Ready(ctx); err != nil {
		return driver.Attached{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attaches++
	namespace, err := os.Readlink(a.Namespace)
	if err != nil {
		return driver.Attached{}, err
	}
	c := l.wires[a.Instance]
	if c == nil {
		if c, err = lay(a); err != nil {
			return driver.Attached{}, err
		}
	}
	if c.namespace != namespace {
		ip("link", "del", c.link) // it went with its other end, or is to
		if err := c.connect(a.Namespace); err != nil {
			c.close()
			return driver.Attached{}, err
		}
		c.namespace = namespace
	}
	l.wires[a.Instance] = c
	return c.Attached, nil
}

// lay chooses the addresses and opens the ports.
func lay(a driver.Attachment) (*cable, error) {
	n := int(cables.Add(1))
	c := &cable{link: "skt" + strings.ToLower(rand.Text()[:8]), Attached: driver.Attached{
		Address: netip.AddrFrom4([4]byte{198, 18 + byte(n/64/256), byte(n / 64), byte(n%64)*4 + 2}),
		DNS:     netip.MustParseAddr("198.18.0.1"), Search: "skerry.internal",
	}}
	for _, p := range a.Ports {
		if err := c.forward(p); err != nil {
			c.close()
			return nil, fmt.Errorf("%w: port %d: %w", driver.ErrPortInUse, p.Host, err)
		}
	}
	return c, nil
}

func (c *cable) forward(p messages.Port) error {
	if p.Protocol == "udp" {
		conn, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", p.Host))
		if err != nil {
			return err
		}
		p.Host = conn.LocalAddr().(*net.UDPAddr).Port
		c.forwards, c.Ports = append(c.forwards, conn), append(c.Ports, p)
		return nil
	}
	ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", p.Host))
	if err != nil {
		return err
	}
	p.Host, p.Protocol = ln.Addr().(*net.TCPAddr).Port, "tcp"
	c.forwards, c.Ports = append(c.forwards, ln), append(c.Ports, p)
	to := net.JoinHostPort(c.Address.String(), fmt.Sprint(p.Container))
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer a.Close()
				if b, err := net.Dial("tcp", to); err == nil {
					defer b.Close()
					io.Copy(a, b)
				}
			}()
		}
	}()
	return nil
}

// connect lays the pair between this machine and the namespace.
func (c *cable) connect(path string) error {
	here := c.Address.Prev().String()
	pid := strings.Split(path, "/")[2]
	in := []string{"nsenter", "--net=" + path, "ip"}
	var errs []error
	for _, argv := range [][]string{
		{"ip", "link", "add", c.link, "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"ip", "addr", "add", here + "/30", "dev", c.link},
		{"ip", "link", "set", c.link, "up"},
		append(in, "addr", "add", c.Address.String()+"/30", "dev", "eth0"),
		append(in, "link", "set", "eth0", "up"),
		append(in, "route", "add", "default", "via", here),
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", argv, err, out))
		}
	}
	return errors.Join(errs...)
}

func ip(argv ...string) { exec.Command("ip", argv...).Run() }

func (c *cable) close() {
	ip("link", "del", c.link)
	for _, f := range c.forwards {
		f.Close()
	}
}

func (l *lan) Detach(_ context.Context, id messages.InstanceID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.wires[id]; c != nil {
		c.close()
		delete(l.wires, id)
	}
	return nil
}

func (l *lan) Attached() []messages.InstanceID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.wires))
}

// dialHello reports whether the helper answers there on port 80.
func dialHello(a netip.Addr) (bool, error) {
	conn, err := net.Dial("tcp", net.JoinHostPort(a.String(), "80"))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b) == "hello\n", err
}
