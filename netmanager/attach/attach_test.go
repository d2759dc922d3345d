//go:build linux

package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
)

// bridge sets up a node in this namespace.
func bridge(t testing.TB) link.Config {
	t.Helper()
	c := configIn(t.TempDir())
	if err := nettest.AddTUN(link.TUN(c.Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Set(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// attachment is the nth container's.
func attachment(n int, path string) Attachment {
	return Attachment{
		Network: "lab", ID: fmt.Sprintf("web.%d", n), NetNS: path, MTU: 1420,
		Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.160.0.%d", n+1)), netip.MustParseAddr(fmt.Sprintf("fd5c:ae11:9::%x", n+1))},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.160.0.1"), netip.MustParseAddr("fd5c:ae11:9::1")},
	}
}

func mustAttach(t testing.TB, a Attachment) {
	t.Helper()
	if _, err := Attach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

// attached returns whose the pairs of the node are and what their host's ends are called.
func attached(t *testing.T) (found []string) {
	t.Helper()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	all, err := list(host, "lab")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		found = append(found, p.id+" "+p.link.Attrs().Name)
	}
	return found
}

func dumpOf(t *testing.T, h *nettest.Host) (text string) {
	t.Helper()
	h.Do(func() { text = linktest.Network(t) })
	return text
}

func TestAttachTwice(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	before := linktest.Network(t)
	h := nettest.NewHost(t, "container")
	a := attachment(1, h.Path())
	h.Sysctl("net.ipv6.conf.all.disable_ipv6", "1") // as Docker leaves it
	mustAttach(t, a)
	outside, inside := linktest.Network(t), dumpOf(t, h)
	linktest.Golden(t, "inside", inside)
	number := index(t, "labva00002")
	mustAttach(t, a)
	if diff := cmp.Diff(outside, linktest.Network(t)); diff != "" {
		t.Errorf("a repeat changed the host (-once +twice):\n%s", diff)
	}
	if diff := cmp.Diff(inside, dumpOf(t, h)); diff != "" {
		t.Errorf("a repeat changed the namespace (-once +twice):\n%s", diff)
	}
	if again := index(t, "labva00002"); again != number {
		t.Error("a repeat made another pair")
	}
	if got, want := attached(t), []string{"web.1 labva00002"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range 2 {
		if err := Detach("lab", "web.1"); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, linktest.Network(t)); diff != "" {
		t.Errorf("detach left a difference (-before +after):\n%s", diff)
	}
}

func index(t *testing.T, name string) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// TestAttachReplaces gives an address to another namespace, and a namespace another address.
func TestAttachReplaces(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	one, two := nettest.NewHost(t, "one"), nettest.NewHost(t, "two")
	mustAttach(t, attachment(1, one.Path()))
	moved := attachment(1, two.Path())
	mustAttach(t, moved)
	if text := dumpOf(t, one); strings.Contains(text, "eth0") {
		t.Errorf("the first holder still has\n%s", text)
	}
	renamed := attachment(7, two.Path())
	mustAttach(t, renamed)
	if got, want := attached(t), []string{"web.7 labva00008"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if text := dumpOf(t, two); !strings.Contains(text, "10.160.0.8/32") || strings.Contains(text, "10.160.0.2") {
		t.Errorf("the second holder has\n%s", text)
	}
}

// TestAttachHeals repairs what somebody changed, without making a new pair.
func TestAttachHeals(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	h := nettest.NewHost(t, "container")
	a := attachment(1, h.Path())
	mustAttach(t, a)
	outside, inside, number := linktest.Network(t), dumpOf(t, h), index(t, "labva00002")
	end, _ := netlink.LinkByName("labva00002")
	if err := errors.Join(netlink.LinkSetNoMaster(end), netlink.LinkSetDown(end), netlink.LinkSetMTU(end, 1300)); err != nil {
		t.Fatal(err)
	}
	h.Do(func() {
		eth0 := h.Link(Interface)
		if err := errors.Join(netlink.LinkSetDown(eth0), netlink.LinkSetMTU(eth0, 1300)); err != nil { // which takes routes and IPv6 away
			t.Fatal(err)
		}
	})
	mustAttach(t, a)
	if diff := cmp.Diff(outside, linktest.Network(t)); diff != "" {
		t.Errorf("the host (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(inside, dumpOf(t, h)); diff != "" {
		t.Errorf("the namespace (-before +after):\n%s", diff)
	}
	if again := index(t, "labva00002"); again != number {
		t.Error("a new pair was made")
	}
}

// TestApart: a container reaches another of its node by the host's routing alone, whatever it does to its own interface, and where the kernel has
// classifiers it can be nobody else.
func TestApart(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	host := nettest.Inside(t, "host", "/proc/self/ns/net")
	for name, old := range map[string]bool{"walled": false, "isolated": true} {
		t.Run(name, func(t *testing.T) {
			boxes := []*nettest.Host{nettest.NewHost(t, "one"), nettest.NewHost(t, "two")}
			for i, h := range boxes {
				a := attachment(i+1, h.Path())
				a.oldKernel = old
				if walled, err := Attach(t.Context(), a); err != nil || walled == old {
					t.Fatalf("got walled %v, %v", walled, err)
				}
			}
			one, two := boxes[0], boxes[1]
			for i, other := range []int{3, 2} {
				mac := fmt.Sprintf("02:5e:0a:a0:00:%02d", other)
				for _, address := range []string{fmt.Sprintf("10.160.0.%d", other), fmt.Sprintf("fd5c:ae11:9::%d", other)} {
					boxes[i].Run("ip", "route", "replace", address, "dev", "eth0")
					boxes[i].Run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", "eth0")
				}
			}
			inbox, hosts := two.ListenPacket("udp", ":9"), host.ListenPacket("udp", ":9")
			defer hosts.Close()
			for _, v := range []struct{ mine, theirs, gateway string }{{"10.160.0.2", "10.160.0.3", "10.160.0.1"}, {"fd5c:ae11:9::2", "fd5c:ae11:9::3", "fd5c:ae11:9::1"}} {
				sends(t, one, v.mine, v.gateway, hosts, true)
				sends(t, host, v.gateway, v.theirs, inbox, true)
				sends(t, one, v.mine, v.theirs, inbox, false)
				if old {
					continue
				}
				one.Address("eth0", netip.PrefixFrom(netip.MustParseAddr(v.theirs), netip.MustParseAddr(v.theirs).BitLen()).String())
				sends(t, one, v.theirs, v.gateway, hosts, false)
				for _, mac := range []string{"02:5e:0a:a0:00:03", "02:5e:0a:a0:00:02"} {
					one.Run("ip", "link", "set", "eth0", "address", mac) // which forgets the gateways'
					for _, gateway := range []string{"10.160.0.1", "fd5c:ae11:9::1"} {
						one.Run("ip", "neighbour", "replace", gateway, "lladdr", "02:5e:0a:a0:00:01", "dev", "eth0")
					}
					sends(t, one, v.mine, v.gateway, hosts, mac == "02:5e:0a:a0:00:02")
				}
				sends(t, host, v.gateway, v.theirs, inbox, true)
			}
			if err := Prune("lab", nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// sends lets a host send a datagram, which shall arrive or shall not.
func sends(t *testing.T, h *nettest.Host, from, to string, inbox net.PacketConn, want bool) {
	t.Helper()
	conn := h.ListenPacket("udp", net.JoinHostPort(from, "0"))
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 9))); err != nil && want {
		t.Fatal(err)
	}
	patience := 10 * time.Second
	if !want {
		patience = 400 * time.Millisecond // long enough for what must not come
	}
	_ = inbox.SetReadDeadline(time.Now().Add(patience))
	if _, got, err := inbox.ReadFrom(make([]byte, 9)); (err == nil) != want {
		t.Errorf("%s as %s to %s: got one from %v, %v, want it to arrive: %v", h.Name, from, to, got, err, want)
	}
}

// TestAttachEarlier takes up what an earlier version made, under open connections: an interface with the whole block beside it and nothing in front.
func TestAttachEarlier(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	host, h := nettest.Inside(t, "host", "/proc/self/ns/net"), nettest.NewHost(t, "one")
	a := attachment(1, h.Path())
	mustAttach(t, a)
	outside, inside, number := linktest.Network(t), dumpOf(t, h), index(t, "labva00002")
	h.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	h.Run("ip", "route", "flush", "dev", "eth0")
	h.Run("ip", "-6", "route", "flush", "dev", "eth0", "proto", "boot")
	h.Address("eth0", "10.160.0.2/26", "fd5c:ae11:9::2/122")
	h.Run("ip", "route", "add", "default", "via", "10.160.0.1")
	h.Run("ip", "route", "add", "default", "via", "fd5c:ae11:9::1")
	host.Run("tc", "qdisc", "del", "dev", "labva00002", "ingress")
	for _, address := range []string{"10.160.0.2", "fd5c:ae11:9::2"} {
		host.Run("ip", "neighbour", "replace", address, "lladdr", "02:5e:0a:a0:00:02", "nud", "stale", "dev", "labb")
	}
	var talks []func()
	for _, address := range []string{"10.160.0.2:80", "[fd5c:ae11:9::2]:80"} {
		listener := h.Listen("tcp", address)
		client, err := host.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		talks = append(talks, func() {
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				_ = way[1].SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := way[0].Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := way[1].Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	for range 2 {
		mustAttach(t, a)
		for _, talk := range talks {
			talk()
		}
	}
	if diff := cmp.Diff(outside, linktest.Network(t)); diff != "" {
		t.Errorf("the host (-new +taken up):\n%s", diff)
	}
	if diff := cmp.Diff(inside, dumpOf(t, h)); diff != "" {
		t.Errorf("the namespace (-new +taken up):\n%s", diff)
	}
	if again := index(t, "labva00002"); again != number {
		t.Error("a new pair was made")
	}
	h.Address("eth0", "10.160.0.9/32")
	inbox := host.ListenPacket("udp", ":9")
	defer inbox.Close()
	sends(t, h, "10.160.0.9", "10.160.0.1", inbox, false)
}

func TestPrune(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	before := linktest.Network(t)
	for n := range 3 {
		mustAttach(t, attachment(n+1, nettest.NewHost(t, "container").Path()))
	}
	gone := attachment(9, "") // its namespace ended, and the pair with it
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index(t, "labb"), State: netlink.NUD_PERMANENT, IP: gone.main().AsSlice(), HardwareAddr: link.MAC(gone.main())}); err != nil {
		t.Fatal(err)
	}
	half, _ := netlink.LinkByName("labva00003")
	if err := netlink.LinkSetAlias(half, ""); err != nil { // killed between the two messages
		t.Fatal(err)
	}
	if err := Prune("lab", []string{"web.1"}); err != nil {
		t.Fatal(err)
	}
	if got, want := attached(t), []string{"web.1 labva00002"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := Prune("lab", nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, linktest.Network(t)); diff != "" {
		t.Errorf("prune left a difference (-before +after):\n%s", diff)
	}
}

func TestGoneNamespace(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	bridge(t)
	before := linktest.Network(t)
	if _, err := Attach(t.Context(), attachment(1, "/proc/1073741824/ns/net")); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("got %v, want %v", err, ErrNoNamespace)
	}
	if _, err := Attach(t.Context(), attachment(1, "/proc/self/ns/uts")); err == nil {
		t.Error("attached to something else than a network namespace")
	}
	if diff := cmp.Diff(before, linktest.Network(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	// A namespace that ends takes its pair with it.
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	home, _ := os.Readlink("/proc/self/ns/net")
	path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if there, _ := os.Readlink(path); there != home || time.Now().After(end) {
			break
		}
	}
	mustAttach(t, attachment(1, path))
	stdin.Close()
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		found := attached(t)
		if len(found) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("still there: %v", found)
		}
	}
}

func TestValidate(t *testing.T) {
	good := attachment(1, "/proc/self/ns/net")
	if err := good.Validate(); err != nil {
		t.Errorf("a good attachment: %v", err)
	}
	for want, spoil := range map[string]func(*Attachment){
		"network":              func(a *Attachment) { a.Network = "" },
		"id":                   func(a *Attachment) { a.ID = "a b" },
		"no network namespace": func(a *Attachment) { a.NetNS = "" },
		"mtu":                  func(a *Attachment) { a.MTU = 0 },
		"no IPv4 address":      func(a *Attachment) { a.Addresses = a.Addresses[1:] },
		"no gateway":           func(a *Attachment) { a.Gateways = a.Gateways[1:] },
		"second of its family": func(a *Attachment) { a.Addresses = append(a.Addresses, a.Addresses[0]) },
	} {
		a := attachment(1, "/proc/self/ns/net")
		spoil(&a)
		if err := a.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	h := nettest.NewHost(b, "node")
	h.Do(func() {
		bridge(b)
		container := nettest.NewHost(b, "container")
		a := attachment(1, container.Path())
		b.ResetTimer()
		for b.Loop() {
			mustAttach(b, a)
			b.StopTimer()
			if err := Detach("lab", a.ID); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func BenchmarkAttachAgain(b *testing.B) {
	h := nettest.NewHost(b, "node")
	h.Do(func() {
		bridge(b)
		container := nettest.NewHost(b, "container")
		for b.Loop() {
			mustAttach(b, attachment(1, container.Path()))
		}
	})
}
