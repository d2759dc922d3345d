//go:build linux

// Package link_test sends packets through what link sets: hosts on a cable, containers attached to the bridge.
package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/attach"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
)

// site is a node with two containers, and two machines on its cable.
type site struct {
	t                    *testing.T
	node, client, server *nettest.Host
	web, other           *nettest.Host // containers; port 8080 of the node is web's port 80
	config               link.Config
	ipv4Only             bool // the containers have no IPv6
}

func newSite(t *testing.T, forwards bool) *site {
	t.Helper()
	s := &site{t: t, node: nettest.NewHost(t, "node"), client: nettest.NewHost(t, "client"), server: nettest.NewHost(t, "server"),
		web: nettest.NewHost(t, "web"), other: nettest.NewHost(t, "other")}
	nettest.Switch(t, "lan",
		nettest.End{Host: s.node, Interface: "eth0", Addresses: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		nettest.End{Host: s.client, Interface: "eth0", Addresses: []string{"192.0.2.2/24", "2001:db8::2/64"}},
		nettest.End{Host: s.server, Interface: "eth0", Addresses: []string{"192.0.2.3/24", "2001:db8::3/64"}})
	if forwards {
		s.node.Forward()
	}
	s.node.Tap("labt")
	s.config = link.Config{
		Name:      "lab",
		Overlay:   []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.160.0.1/26"), netip.MustParsePrefix("fd5c:ae11:9::1/122")},
		MTU:       1420,
		StateDir:  t.TempDir(),
		Ports: []link.Port{
			{HostPort: 8080, Protocol: link.TCP, Target: netip.MustParseAddrPort("10.160.0.2:80")},
			{HostPort: 8080, Protocol: link.TCP, Target: netip.MustParseAddrPort("[fd5c:ae11:9::2]:80")},
			{HostPort: 8080, Protocol: link.UDP, Target: netip.MustParseAddrPort("10.160.0.2:80")},
			{HostPort: 53, Protocol: link.TCP, Target: netip.MustParseAddrPort("10.160.0.2:80")},
		},
	}
	return s
}

// set applies the configuration and attaches the containers.
func (s *site) set(c link.Config) {
	s.t.Helper()
	s.node.Do(func() {
		if _, err := link.Set(c); err != nil {
			s.t.Fatal(err)
		}
		for i, h := range []*nettest.Host{s.web, s.other} {
			a := attach.Attachment{Network: c.Name, ID: h.Name, NetNS: h.Path(), MTU: c.MTU,
				Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.160.0.%d", i+2)), netip.MustParseAddr(fmt.Sprintf("fd5c:ae11:9::%d", i+2))},
				Gateways:  []netip.Addr{c.Addresses[0].Addr(), c.Addresses[1].Addr()}}
			if s.ipv4Only {
				a.Addresses, a.Gateways = a.Addresses[:1], a.Gateways[:1]
			}
			if _, err := attach.Attach(s.t.Context(), a); err != nil {
				s.t.Fatal(err)
			}
		}
	})
}

// serve answers every connection on the port, in both families, with the host's name and the peer's address.
func serve(t *testing.T, h *nettest.Host, address string) {
	t.Helper()
	listener := h.Listen("tcp", address)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(conn, "%s to %s", h.Name, peer)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
}

// ask connects and returns what the other side says.
func ask(t *testing.T, h *nettest.Host, address string, patience time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

const (
	patience = 10 * time.Second
	silence  = 400 * time.Millisecond // long enough for an answer that must not come
)

func (s *site) wants(h *nettest.Host, address, want string) {
	s.t.Helper()
	if got, err := ask(s.t, h, address, patience); err != nil || got != want {
		s.t.Errorf("%s asked %s: got %q, %v, want %q", h.Name, address, got, err, want)
	}
}

func (s *site) refuses(h *nettest.Host, address string) {
	s.t.Helper()
	if got, err := ask(s.t, h, address, silence); err == nil {
		s.t.Errorf("%s asked %s and got %q, want nothing", h.Name, address, got)
	}
}

// bothFirewalls runs a test with nf_tables, and as on a kernel without it.
func bothFirewalls(t *testing.T, test func(t *testing.T, with func(link.Config) link.Config)) {
	t.Run("nf_tables", func(t *testing.T) { test(t, func(c link.Config) link.Config { return c }) })
	t.Run("iptables", func(t *testing.T) { test(t, link.OldKernel) })
}

func TestPublishedPorts(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		for name, forwards := range map[string]bool{"a router": true, "a host": false} {
			t.Run(name, func(t *testing.T) {
				s := newSite(t, forwards)
				if forwards {
					s.node.Sysctl("net.bridge.bridge-nf-call-iptables", "0") // as without Docker
					s.node.Sysctl("net.bridge.bridge-nf-call-ip6tables", "0")
				}
				testPublished(t, s, with)
			})
		}
	})
}

func testPublished(t *testing.T, s *site, with func(link.Config) link.Config) {
	s.set(with(s.config))
	s.set(with(s.config))
	serve(t, s.web, ":80")
	serve(t, s.server, ":8080")
	serve(t, s.node, "10.160.0.1:53")
	// From outside, with the client's own address.
	s.wants(s.client, "192.0.2.1:8080", "web to 192.0.2.2")
	s.wants(s.client, "[2001:db8::1]:8080", "web to 2001:db8::2")
	// From the host itself, by every address of its own.
	s.wants(s.node, "127.0.0.1:8080", "web to 10.160.0.1")
	s.wants(s.node, "127.9.8.7:8080", "web to 10.160.0.1")
	s.wants(s.node, "192.0.2.1:8080", "web to 192.0.2.1")
	if got, err := ask(t, s.node, "[::1]:8080", patience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the node asked [::1]:8080: got %q, %v, want it refused, so that localhost means 127.0.0.1", got, err)
	}
	s.wants(s.node, "[2001:db8::1]:8080", "web to 2001:db8::1")
	// From containers, the published one among them.
	for _, h := range []*nettest.Host{s.web, s.other} {
		s.wants(h, "192.0.2.1:8080", "web to 10.160.0.1")
		s.wants(h, "[2001:db8::1]:8080", "web to fd5c:ae11:9::1")
		s.wants(h, "10.160.0.1:8080", "web to 10.160.0.1")
	}
	// The same port elsewhere stays where it is, and names stay with the gateway.
	s.wants(s.node, "192.0.2.3:8080", "server to 192.0.2.1")
	s.wants(s.other, "192.0.2.3:8080", "server to 192.0.2.1")
	s.wants(s.other, "[2001:db8::3]:8080", "server to 2001:db8::1")
	s.wants(s.other, "10.160.0.1:53", "node to 10.160.0.3")
	s.wants(s.client, "192.0.2.1:53", "web to 192.0.2.2")
	// Published ports are all that comes in.
	s.client.Route("10.160.0.0/12", "192.0.2.1")
	s.client.Route("fd5c:ae11:9::/48", "2001:db8::1")
	s.refuses(s.client, "10.160.0.2:80")
	s.refuses(s.client, "[fd5c:ae11:9::2]:80")
	s.echo(s.web, ":80", s.client, "192.0.2.1:8080")
	s.echo(s.web, ":80", s.other, "192.0.2.1:8080")
	s.echo(s.web, ":80", s.node, "127.0.0.1:8080")
	s.echo(s.server, ":8080", s.node, "192.0.2.3:8080")
	s.echo(s.server, ":8080", s.other, "192.0.2.3:8080")
}

// echo sends a datagram to an address, and wants it to come to who listens, and back.
func (s *site) echo(at *nettest.Host, listen string, h *nettest.Host, address string) {
	s.t.Helper()
	server := at.ListenPacket("udp4", listen)
	defer server.Close()
	conn, err := h.Dial(s.t.Context(), "udp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	buffer := make([]byte, 64)
	_ = server.SetDeadline(time.Now().Add(patience))
	n, peer, err := server.ReadFrom(buffer)
	if err != nil {
		s.t.Errorf("%s to %s: %v", h.Name, address, err)
		return
	}
	_, _ = server.WriteTo(buffer[:n], peer)
	_ = conn.SetDeadline(time.Now().Add(patience))
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "hello" {
		s.t.Errorf("%s to %s: got %q, %v back, want hello", h.Name, address, buffer[:n], err)
	}
}

// TestDatagramsFollow: a sender that never pauses reaches the port's container once there is one, and the next one when it changes.
func TestDatagramsFollow(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, false)
		c := s.config
		c.Ports = nil
		s.set(with(c))
		sender := s.client.ListenPacket("udp", "192.0.2.2:700")
		to := func(address string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)) }
		boxes := []net.PacketConn{s.web.ListenPacket("udp4", ":80"), s.other.ListenPacket("udp4", ":80")}
		reaches := func(want int) {
			t.Helper()
			for end := time.Now().Add(patience); ; {
				_, _ = sender.WriteTo([]byte("x"), to("192.0.2.1:8080"))
				for i, box := range boxes {
					_ = box.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
					if _, _, err := box.ReadFrom(make([]byte, 9)); err == nil && i == want {
						return
					}
				}
				if time.Now().After(end) {
					t.Fatalf("the datagrams do not come to container %d", want)
				}
			}
		}
		_, _ = sender.WriteTo([]byte("x"), to("192.0.2.1:8080")) // to a closed port
		time.Sleep(10 * time.Millisecond)
		for i, target := range []string{"10.160.0.2:80", "10.160.0.3:80", "10.160.0.2:80"} {
			c.Ports = []link.Port{{HostPort: 8080, Protocol: link.UDP, Target: netip.MustParseAddrPort(target)}}
			s.set(with(c))
			reaches(i % 2)
		}
	})
}

// TestPassesThrough has the node between two machines: port 8080 of the far one is not ours.
func TestPassesThrough(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, true)
		far := s.far()
		s.set(with(s.config))
		s.wants(s.client, "198.51.100.2:8080", "far to 192.0.2.2")
		s.wants(s.client, "[2001:db8:1::2]:8080", "far to 2001:db8::2")
		s.wants(s.other, "198.51.100.2:8080", "far to 198.51.100.1")
		s.wants(far, "198.51.100.1:8080", "web to 198.51.100.2")
	})
}

// far adds a machine behind the node's second interface, by which it sends everything else first.
func (s *site) far() *nettest.Host {
	far := nettest.NewHost(s.t, "far")
	nettest.Cable(s.t, nettest.End{Host: s.node, Interface: "eth1", Addresses: []string{"198.51.100.1/24", "2001:db8:1::1/64"}},
		nettest.End{Host: far, Interface: "eth0", Addresses: []string{"198.51.100.2/24", "2001:db8:1::2/64"}})
	serve(s.t, far, ":8080")
	serve(s.t, s.web, ":80")
	for _, h := range []*nettest.Host{far, s.client} {
		via := map[*nettest.Host][2]string{far: {"198.51.100.1", "2001:db8:1::1"}, s.client: {"192.0.2.1", "2001:db8::1"}}[h]
		h.Route("default", via[0])
		h.Route("default6", via[1])
	}
	return far
}

// TestNoRouter has the node between two machines without forwarding: it does not begin to.
func TestNoRouter(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, false)
		far := s.far()
		s.set(with(s.config))
		s.refuses(s.client, "198.51.100.2:8080")
		s.refuses(s.client, "[2001:db8:1::2]:8080")
		s.wants(s.other, "198.51.100.2:8080", "far to 198.51.100.1")
		s.wants(s.other, "[2001:db8:1::2]:8080", "far to 2001:db8:1::1")
		s.wants(far, "198.51.100.1:8080", "web to 198.51.100.2")
		s.wants(far, "[2001:db8:1::1]:8080", "web to 2001:db8:1::2")
	})
}

func TestSpoofed(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, true)
		s.set(with(s.config))
		inbox := s.server.ListenPacket("udp", ":9")
		got := func(want bool, what string, patience time.Duration) {
			t.Helper()
			_ = inbox.SetDeadline(time.Now().Add(patience))
			_, _, err := inbox.ReadFrom(make([]byte, 64))
			if (err == nil) != want {
				t.Errorf("%s: arrived %v, want %v (%v)", what, err == nil, want, err)
			}
		}
		send := func(h *nettest.Host, source, to string) {
			t.Helper()
			conn := h.ListenPacket("udp", net.JoinHostPort(source, "7"))
			defer conn.Close()
			address, _ := net.ResolveUDPAddr("udp", to)
			_, _ = conn.WriteTo([]byte("x"), address)
		}
		s.other.Address("eth0", "10.160.99.9/32", "192.0.2.2/32", "fd5c:ae11:9::9999/128")
		send(s.other, "10.160.0.3", "192.0.2.3:9")
		got(true, "own source", patience)
		for _, forged := range []string{"10.160.99.9", "192.0.2.2"} {
			send(s.other, forged, "192.0.2.3:9")
			got(false, "source "+forged, silence)
		}
		send(s.other, "fd5c:ae11:9::3", "[2001:db8::3]:9")
		got(true, "own IPv6 source", patience)
		send(s.other, "fd5c:ae11:9::9999", "[2001:db8::3]:9")
		got(false, "another IPv6 source", silence)
		// From outside, with a container's address, to the node itself.
		s.client.Address("lo", "10.160.0.3/32", "fd5c:ae11:9::3/128", "10.160.7.7/32", "fd5c:ae11:9::707/128") // the latter of another node
		inbox = s.node.ListenPacket("udp", ":9")
		send(s.client, "192.0.2.2", "192.0.2.1:9")
		got(true, "the client's source", patience)
		send(s.client, "10.160.0.3", "192.0.2.1:9")
		got(false, "a container's source from outside", silence)
		send(s.client, "fd5c:ae11:9::3", "[2001:db8::1]:9")
		got(false, "a container's IPv6 source from outside", silence)
		send(s.client, "10.160.7.7", "192.0.2.1:9")
		got(false, "the source of another node's container from outside", silence)
		send(s.client, "fd5c:ae11:9::707", "[2001:db8::1]:9")
		got(false, "the IPv6 source of another node's container from outside", silence)
	})
}

// TestLoopbackIsTheHosts: route_localnet on the bridge does not open 127.0.0.1 to a container that sends there.
func TestLoopbackIsTheHosts(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, true)
		s.set(with(s.config))
		serve(t, s.node, "127.0.0.1:9999")
		s.wants(s.node, "127.0.0.1:9999", "node to 127.0.0.1")
		s.other.Sysctl("net.ipv4.conf.all.route_localnet", "1")
		s.other.Run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
		s.other.Run("ip", "route", "add", "127.0.0.1", "via", "10.160.0.1")
		s.refuses(s.other, "127.0.0.1:9999")
	})
}

// TestConnectionsGoOn changes ports, addresses and repeats under an open connection through a published port.
func TestConnectionsGoOn(t *testing.T) {
	s := newSite(t, false)
	s.set(s.config)
	listener := s.web.Listen("tcp", ":80")
	client, err := s.client.Dial(t.Context(), "tcp", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	talk := func(when string) {
		t.Helper()
		_ = client.SetDeadline(time.Now().Add(patience))
		_ = server.SetDeadline(time.Now().Add(patience))
		for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
			fmt.Fprint(way[0], "x")
			if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	talk("at first")
	c := s.config
	c.Ports = c.Ports[2:]
	s.set(c)
	talk("after its port was taken back")
	s.refuses(s.client, "192.0.2.1:8080")
	c.Addresses = append(c.Addresses, netip.MustParsePrefix("10.160.7.1/26"), netip.MustParsePrefix("fd5c:ae11:9::1c1/122"))
	s.set(c)
	talk("after a second block")
	s.set(s.config)
	talk("after everything came back")
}

// dockerRules are what Docker makes of the filter table.
const dockerRules = `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:DOCKER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
`

// strictRules are an administrator's, with nothing of Docker's.
const strictRules = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i wlan0 -j ACCEPT
COMMIT
`

// TestOthersFirewalls has Docker's rules, or an administrator's, in nf_tables or in the older tables: our traffic passes, and theirs are as
// they were afterwards.
func TestOthersFirewalls(t *testing.T) {
	for name, rules := range map[string]string{"docker": dockerRules, "strict": strictRules} {
		for _, variant := range []string{"nft", "legacy", "legacy alone"} {
			t.Run(name+" in "+variant, func(t *testing.T) {
				s := newSite(t, true)
				variant, alone := strings.CutSuffix(variant, " alone")
				if alone {
					s.config = link.OldKernel(s.config)
				}
				file := t.TempDir() + "/rules"
				if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
					t.Fatal(err)
				}
				serve(t, s.node, ":53")
				for _, program := range []string{"iptables-", "ip6tables-"} {
					s.node.Run(program+variant+"-restore", file)
				}
				before := s.node.Run("iptables-"+variant+"-save", "-t", "filter") + s.node.Run("ip6tables-"+variant+"-save", "-t", "filter")
				serve(t, s.web, ":80")
				serve(t, s.server, ":8080")
				for range 2 {
					s.set(s.config)
					s.wants(s.client, "192.0.2.1:8080", "web to 192.0.2.2")
					s.wants(s.client, "[2001:db8::1]:8080", "web to 2001:db8::2")
					s.wants(s.other, "192.0.2.3:8080", "server to 192.0.2.1")
					s.refuses(s.other, "10.160.0.2:80") // only the engine, which is not there, knows whether it may
					s.wants(s.other, "192.0.2.1:8080", "web to 10.160.0.1")
					s.wants(s.other, "10.160.0.1:53", "node to 10.160.0.3")
					s.wants(s.other, "[fd5c:ae11:9::1]:53", "node to fd5c:ae11:9::3")
				}
				if got := strings.Count(s.node.Run("iptables-"+variant+"-save"), "-i labb -j ACCEPT"); got != 1 && !alone {
					t.Errorf("got %d rules of ours after setting twice, want 1", got)
				}
				s.node.Do(func() {
					if err := link.CleanUp("lab", s.config.StateDir); err != nil {
						t.Fatal(err)
					}
				})
				after := s.node.Run("iptables-"+variant+"-save", "-t", "filter") + s.node.Run("ip6tables-"+variant+"-save", "-t", "filter")
				if diff := cmp.Diff(withoutCounts(before), withoutCounts(after)); diff != "" {
					t.Errorf("their rules changed (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// withoutCounts leaves out what iptables-save says about the time and the packets.
func withoutCounts(saved string) string {
	var lines []string
	for line := range strings.Lines(saved) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line, _, _ = strings.Cut(line, "[")
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}

// TestCleanUpRestores compares everything with what it was, for hosts that forward and that do not, after a crash in between and twice.
func TestCleanUpRestores(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		for name, forwards := range map[string]bool{"a router": true, "a host": false} {
			t.Run(name, func(t *testing.T) {
				s := newSite(t, forwards)
				s.node.Run("ip", "link", "del", "labt")
				for _, program := range []string{"iptables-legacy", "ip6tables-legacy"} { // so that listing them makes no difference
					s.node.Run(program, "-t", "raw", "-A", "OUTPUT", "-p", "sctp", "-j", "ACCEPT")
					s.node.Run(program, "-t", "nat", "-L")
					s.node.Run(program, "-L")
				}
				before := s.everything()
				s.node.Tap("labt")
				s.set(with(s.config))
				s.node.Do(func() {
					for range 2 {
						if err := link.CleanUp("lab", s.config.StateDir); err != nil {
							t.Fatal(err)
						}
					}
				})
				if diff := cmp.Diff(before, s.everything()); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
				if left, err := os.ReadDir(s.config.StateDir); err != nil || len(left) > 0 {
					t.Errorf("left %v, %v in the state directory", left, err)
				}
			})
		}
	})
}

func (s *site) everything() (text string) {
	s.t.Helper()
	s.node.Do(func() { text = linktest.Dump(s.t) })
	for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		text += withoutCounts(s.node.Run(program))
	}
	return text
}

// TestTwoEngines share a host: the host's own switches come back with the last of them.
func TestTwoEngines(t *testing.T) {
	s := newSite(t, false)
	s.node.Run("ip", "link", "del", "labt")
	before := s.everything()
	s.node.Tap("labt")
	s.node.Tap("edget")
	second := s.config
	second.Name = "edge"
	second.Addresses = []netip.Prefix{netip.MustParsePrefix("10.160.0.65/26"), netip.MustParsePrefix("fd5c:ae11:9::41/122")}
	second.Ports = []link.Port{{HostPort: 9090, Protocol: link.TCP, Target: netip.MustParseAddrPort("10.160.0.66:80")}}
	s.set(s.config)
	box := nettest.NewHost(t, "box")
	s.node.Do(func() {
		for range 2 {
			if _, err := link.Set(second); err != nil {
				t.Fatal(err)
			}
		}
		_, err := attach.Attach(t.Context(), attach.Attachment{Network: "edge", ID: "box", NetNS: box.Path(), MTU: 1420,
			Addresses: []netip.Addr{netip.MustParseAddr("10.160.0.66")}, Gateways: []netip.Addr{netip.MustParseAddr("10.160.0.65")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := link.Conflicts(second.Overlay, "edge"); err != nil {
			t.Errorf("another engine is in the way: %v", err)
		}
	})
	serve(t, s.web, ":80")
	serve(t, box, ":80")
	s.wants(s.client, "192.0.2.1:8080", "web to 192.0.2.2")
	s.wants(s.client, "192.0.2.1:9090", "box to 192.0.2.2")
	s.node.Do(func() {
		if err := link.CleanUp("lab", s.config.StateDir); err != nil {
			t.Fatal(err)
		}
	})
	s.wants(s.client, "192.0.2.1:9090", "box to 192.0.2.2")
	s.refuses(s.client, "192.0.2.1:8080")
	s.node.Do(func() {
		if err := link.CleanUp("edge", s.config.StateDir); err != nil {
			t.Fatal(err)
		}
	})
	if diff := cmp.Diff(before, s.everything()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}
