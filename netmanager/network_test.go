//go:build linux

package netmanager_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/netmanager"
	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tunnel"
)

// Containers on two and three hosts reach one another by every kind of address, over both families and every protocol.
func TestEveryKindOfAddress(t *testing.T) {
	w := newWorld(t, 3)
	client := w.nodes[0].Container()
	near, far, sick := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[2].Container()
	web := w.Service("web", near, far, sick)
	web.Instances[2].Healthy = false
	w.Service("client", client)
	w.Set()
	for _, c := range []*labtest.Container{near, far, sick} {
		serveTCP(c, ":80")
		serveUDP(c, ":80")
		serveWhole(c, ":81")
	}
	for _, family := range []struct {
		name                  string
		robin, closest, third netip.Addr
		direct, beside        netip.Addr
	}{
		{"IPv4", web.RoundRobin, web.Closest, web.Instances[1].Service, far.Address, near.Address},
		{"IPv6", web.RoundRobin6, web.Closest6, web.Instances[1].Service6, far.Address6, near.Address6},
	} {
		t.Run(family.name, func(t *testing.T) {
			seen := map[string]int{}
			for range 40 {
				seen[who(t, client, family.robin, 80)]++
			}
			if len(seen) != 2 || seen[near.ID] != 20 || seen[far.ID] != 20 {
				t.Errorf("round robin: got %v, want 20 each of %s and %s", seen, near.ID, far.ID)
			}
			for range 5 {
				if got := who(t, client, family.closest, 80); got != near.ID {
					t.Errorf("closest: got %s, want %s, on the same node", got, near.ID)
				}
			}
			if got := who(t, client, family.third, 80); got != far.ID {
				t.Errorf("instance: got %s, want %s", got, far.ID)
			}
			if got := who(t, client, family.direct, 80); got != far.ID {
				t.Errorf("container: got %s, want %s", got, far.ID)
			}
			if got := who(t, client, family.beside, 80); got != near.ID {
				t.Errorf("container of the same node: got %s, want %s", got, near.ID)
			}
			for what, address := range map[string]netip.Addr{"round robin": family.robin, "closest": family.closest, "instance": family.third,
				"container": family.direct, "container of the same node": family.beside} {
				conn, err := client.Dial(t.Context(), "udp", netip.AddrPortFrom(address, 80).String())
				if err != nil {
					t.Fatal(err)
				}
				for _, size := range []int{1, 4000} { // the larger one in fragments, its answer too
					if got := askUDP(t, conn, strings.Repeat("x", size)); got != near.ID && got != far.ID {
						t.Errorf("%d bytes of UDP to %s: answered by %q", size, what, got)
					}
				}
				conn.Close()
				if out, err := client.Output("ping", "-c", "2", "-i", "0.1", "-W", "5", address.String()); err != nil {
					t.Errorf("ping %s: %v\n%s", what, err, out)
				}
				halfClosed(t, client, netip.AddrPortFrom(address, 81))
			}
		})
	}
}

// serveWhole lets a container send back what it is sent, once the client has closed its side.
func serveWhole(c *labtest.Container, address string) {
	serveEach(c, address, func(conn net.Conn) {
		if all, err := io.ReadAll(conn); err == nil {
			_, _ = conn.Write(all)
		}
	})
}

// halfClosed sends bytes to a service of serveWhole, closes its side, and reads all that comes back on the other one.
func halfClosed(t *testing.T, from *labtest.Container, to netip.AddrPort) {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	sent := bytes.Repeat([]byte("0123456789abcdef!"), 30_000)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("half a connection to %s: got %d bytes of %d, %v", to, len(got), len(sent), err)
	}
}

// Who is not allowed gets nothing from a container, by whatever address and from wherever, and hears so.
func TestAllow(t *testing.T) {
	w := newWorld(t, 2)
	server := w.nodes[0].Container()
	friends := []*labtest.Container{w.nodes[0].Container(), w.nodes[1].Container()}
	others := []*labtest.Container{w.nodes[0].Container(), w.nodes[1].Container()}
	web := w.Service("web", server)
	web.Allow = []string{"friend"}
	w.Service("friend", friends...)
	w.Service("other", others[0])
	w.Set()
	serveTCP(server, ":80")
	for _, address := range []netip.Addr{web.RoundRobin, web.RoundRobin6, web.Instances[0].Service, server.Address, server.Address6} {
		for _, c := range friends {
			if got := who(t, c, address, 80); got != server.ID {
				t.Errorf("%s to %s: got %q", c.ID, address, got)
			}
		}
		for _, c := range others {
			if got, err := askTCP(t, c, address, 80); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
				t.Errorf("%s to %s: got %q, %v, want it prohibited", c.ID, address, got, err)
			}
		}
	}
}

// What a container sees as its client is that one's instance address, wherever it runs.
func TestServerSeesInstanceAddress(t *testing.T) {
	w := newWorld(t, 2)
	server, near, far := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	clients := w.Service("client", near, far)
	w.Set()
	serveUDP(server, ":53")
	for i, c := range []*labtest.Container{near, far} {
		conn, err := c.Dial(t.Context(), "udp", netip.AddrPortFrom(web.RoundRobin, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		buf := make([]byte, 200)
		_ = conn.SetDeadline(time.Now().Add(soon))
		_, err = conn.Write([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v", c.ID, err)
		}
		from, _ := netip.ParseAddrPort(strings.Fields(string(buf[:n]))[1])
		if from.Addr().Unmap() != clients.Instances[i].Service {
			t.Errorf("%s is seen as %s, want %s", c.ID, from, clients.Instances[i].Service)
		}
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t, 2)
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Set()
	gateway := w.Config(w.nodes[0]).Gateway
	r := resolver(client, gateway)
	for name, want := range map[string]netip.Addr{web.FQDN(): web.RoundRobin, web.FQDN("closest"): web.Closest, web.FQDN("0"): web.Instances[0].Service} {
		got, err := r.LookupNetIP(t.Context(), "ip4", name)
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: got %v %v, want %s", name, got, err, want)
		}
	}
	if got, err := r.LookupNetIP(t.Context(), "ip6", web.FQDN()); err != nil || len(got) != 1 || got[0] != web.RoundRobin6 {
		t.Errorf("AAAA: got %v %v, want %s", got, err, web.RoundRobin6)
	}
}

// A TCP stream through a service address goes on over kill -9 and restart of either node, ten times, and nothing is left behind.
func TestStreamSurvivesKills(t *testing.T) {
	t.Run("without a manager", func(t *testing.T) { streamSurvivesKills(t, newWorld(t, 2)) })
	t.Run("beside a relay", func(t *testing.T) { streamSurvivesKills(t, newWorldWithManager(t, 2)) })
}

func streamSurvivesKills(t *testing.T, w *world) {
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Set()
	serveTCP(server, ":80")
	conn := openStream(t, client, web)
	var before []string
	for i := range w.nodes {
		before = append(before, w.dump(i))
	}
	for round := range 10 {
		n := w.nodes[round%2]
		n.Kill()
		if _, err := conn.Write([]byte(strconv.Itoa(round))); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		n.Start()
		n.Set()
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		got := make([]byte, 1)
		if _, err := conn.Read(got); err != nil || string(got) != strconv.Itoa(round) {
			t.Fatalf("round %d: got %q %v", round, got, err)
		}
		t.Logf("round %d: on its way again after %s", round, time.Since(began))
	}
	for i := range w.nodes {
		if after := w.dump(i); after != before[i] {
			t.Errorf("host %d after ten kills:\n%s\nbefore:\n%s", i, after, before[i])
		}
	}
}

// dump returns all that the kernel of a host holds of networks.
func (w *world) dump(i int) (text string) {
	w.t.Helper()
	w.nodes[i].Host.Do(func() { text = linktest.Network(w.t) })
	return text
}

// Where an instance is moved its address leads to the new place.
func TestMoveKeepsTheAddress(t *testing.T) {
	w := newWorld(t, 3)
	client, first, second := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[2].Container()
	web := w.Service("web", first)
	w.Set()
	serveTCP(first, ":80")
	serveTCP(second, ":80")
	if got := who(t, client, web.Instances[0].Service, 80); got != first.ID {
		t.Errorf("before: got %s", got)
	}
	web.Move(0, second)
	w.Set()
	for range 10 {
		if got := who(t, client, web.Instances[0].Service, 80); got != second.ID {
			t.Errorf("after: got %s", got)
		}
	}
}

// Two containers of one node that use one source port for the same service get their own answers.
func TestSameSourcePort(t *testing.T) {
	w := newWorld(t, 2)
	one, two, server := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Service("client", one, two)
	w.Set()
	serveUDP(server, ":7")
	for round := range 3 {
		for _, c := range []*labtest.Container{one, two} {
			conn := c.ListenPacket("udp", netip.AddrPortFrom(c.Address, uint16(4000+round)).String())
			to := netip.AddrPortFrom(web.RoundRobin, 7)
			if _, err := conn.WriteTo([]byte(c.ID), addr(to)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 200)
			_ = conn.SetReadDeadline(time.Now().Add(soon))
			n, from, err := conn.ReadFrom(buf)
			if err != nil || from.String() != to.String() || !strings.HasSuffix(string(buf[:n]), c.ID) {
				t.Errorf("%s: got %q from %v, %v", c.ID, buf[:n], from, err)
			}
		}
	}
}

// Two engines on one host that were given the same addresses by two clusters: the second is refused, and told what to do.
func TestSecondClusterOnOneHost(t *testing.T) {
	w := newWorld(t, 1)
	other := labtest.New(t)
	n := other.Node(w.nodes[0].Host, "")
	n.Static.Name, n.Static.ListenPort = "other", 0
	n.Stop()
	n.Start()
	err := n.TrySet(other.Config(n))
	if err == nil || !strings.Contains(err.Error(), "has the block 10.160.0.0/26") || !strings.Contains(err.Error(), "--clean-up") {
		t.Errorf("got %v", err)
	}
	if _, err := n.Host.Output("ip", "link", "show", "otherb"); err == nil {
		t.Error("it was made all the same")
	}
}

// A manager that moves its relay and its reflectors costs no connection.
func TestRelayChanges(t *testing.T) {
	t.Parallel()
	w := newWorldWithManager(t, 2)
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Set()
	serveTCP(server, ":80")
	conn := openStream(t, client, web)
	relay, stun := w.Relay, w.STUN
	for round := range 4 {
		w.Relay, w.STUN = "", nil
		if round%2 == 1 {
			w.Relay, w.STUN = relay, stun
		}
		w.Set()
		_ = conn.SetDeadline(time.Now().Add(soon))
		got := make([]byte, 1)
		if _, err := conn.Write([]byte(strconv.Itoa(round))); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(got); err != nil || string(got) != strconv.Itoa(round) {
			t.Fatalf("round %d: got %q %v", round, got, err)
		}
	}
}

// A change that cannot be made, whether at opening its plane or in the kernel, leaves everything as it was: a stream goes on without another word, new
// ones are opened, names are answered, and the kernel has the same links, routes and rules.
func TestAChangeThatFails(t *testing.T) {
	w := newWorld(t, 2)
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Set()
	serveTCP(server, ":80")
	conn := openStream(t, client, web)
	n := w.nodes[0]
	before := w.dump(0)
	relay := w.Config(n)
	relay.Relay = "ftp://198.51.100.100/"
	other := w.Config(n)
	other.Network, other.Services, other.ServiceTable, other.Peers = netip.MustParsePrefix("10.144.0.0/12"), netip.MustParsePrefix("10.156.0.0/14"), nil, nil
	other.Blocks[0], other.Gateway = netip.MustParsePrefix("10.144.0.0/26"), netip.MustParseAddr("10.144.0.1")
	state, aside := n.Static.StateDir, n.Static.StateDir+".aside"
	for _, c := range []struct {
		name           string
		config         netmanager.Config
		obstruct, mend func() error
	}{
		{"a relay that is none", relay, func() error { return nil }, func() error { return nil }},
		{"another network, and nothing can be written down", other, func() error { return errors.Join(os.Rename(state, aside), os.WriteFile(state, nil, 0o600)) },
			func() error { return errors.Join(os.Remove(state), os.Rename(aside, state)) }},
	} {
		if err := c.obstruct(); err != nil {
			t.Fatal(err)
		}
		if err := n.TrySet(c.config); err == nil {
			t.Errorf("%s: was taken", c.name)
		}
		if err := c.mend(); err != nil {
			t.Fatal(err)
		}
		if after := w.dump(0); after != before {
			t.Errorf("%s: the kernel has\n%s\nbefore:\n%s", c.name, after, before)
		}
		echo(t, conn)
		if got := who(t, client, web.RoundRobin, 80); got != server.ID {
			t.Errorf("%s: a new stream: got %s", c.name, got)
		}
		if got, err := resolver(client, n.Block.Gateway()).LookupNetIP(t.Context(), "ip4", web.FQDN()); err != nil || len(got) != 1 || got[0].Unmap() != web.RoundRobin {
			t.Errorf("%s: its name: got %v, %v", c.name, got, err)
		}
	}
	if err := n.TrySet(other); err != nil {
		t.Errorf("once it can be made: %v", err)
	}
}

// Peers whose keys are nobody's cost the others nothing.
func TestBadPeer(t *testing.T) {
	w := newWorld(t, 2)
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	for i, key := range []tunnel.Key{{}, {0: 1}} {
		w.nodes[0].Peer(tunnel.Peer{Key: key, Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.160.9.%d/32", i))}})
	}
	w.Set()
	w.Set()
	serveTCP(server, ":80")
	if got := who(t, client, web.RoundRobin, 80); got != server.ID {
		t.Errorf("got %s, want %s", got, server.ID)
	}
}

// Where somebody else has port 53 packets are carried all the same, and names answered once it is free.
func TestNamesComeLater(t *testing.T) {
	w := &world{Lab: labtest.New(t), t: t}
	host, second := nettest.NewHost(t, "host0"), nettest.NewHost(t, "host1")
	nettest.Cable(t, nettest.End{Host: host, Interface: "eth0", Addresses: []string{underlay(0) + "/24"}},
		nettest.End{Host: second, Interface: "eth0", Addresses: []string{underlay(1) + "/24"}})
	taken := host.ListenPacket("udp", "0.0.0.0:53")
	one, two := w.Node(host, underlay(0)), w.Node(second, underlay(1))
	w.Set()
	client, server := one.Container(), two.Container()
	web := w.Service("web", server)
	w.Set()
	serveTCP(server, ":80")
	if got := who(t, client, web.RoundRobin, 80); got != server.ID {
		t.Errorf("got %s, want %s", got, server.ID)
	}
	if s, _ := one.Status(); s.Names == "" {
		t.Error("the status does not say that no names are answered")
	}
	taken.Close()
	labtest.Eventually(t, soon, "names", func() bool { s, _ := one.Status(); return s.Names == "" })
	got, err := resolver(client, one.Block.Gateway()).LookupNetIP(t.Context(), "ip4", web.FQDN())
	if err != nil || len(got) != 1 || got[0].Unmap() != web.RoundRobin {
		t.Errorf("got %v, %v, want %s", got, err, web.RoundRobin)
	}
}
