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
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
)

// Containers reach a service on another host over every width of the path, also where the router before the narrow link says nothing, and whether or
// not the bridges call the firewall.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		link, path     int
		silent, filter bool
	}{
		{1280, 1280, false, true}, {1500, 1500, false, true}, {9000, 9000, false, true},
		{1500, 1280, false, true}, {9000, 1280, false, true}, {9000, 1500, false, true},
		{1500, 1280, true, true}, {9000, 1280, true, true}, {9000, 1500, true, true},
		{1500, 1280, false, false}, {9000, 1500, false, false},
	} {
		t.Run(fmt.Sprintf("link %d path %d silent %v filter %v", c.link, c.path, c.silent, c.filter), func(t *testing.T) {
			t.Parallel()
			w := throughRouter(t, c.link, c.path, c.silent, c.filter)
			one, two := w.nodes[0].Container(), w.nodes[1].Container()
			there, here := w.Service("there", two), w.Service("here", one)
			w.Set()
			for _, server := range []*labtest.Container{one, two} {
				serveTCP(server, ":80")
				serveUDP(server, ":80")
			}
			ways := []struct {
				client *labtest.Container
				to     netip.Addr
			}{{one, there.RoundRobin}, {one, there.RoundRobin6}, {two, here.RoundRobin}, {two, here.RoundRobin6}}
			for _, way := range ways { // also while nothing is known of the path
				streamBothWays(t, way.client, way.to, 2<<20)
			}
			for i, n := range w.nodes {
				labtest.Eventually(t, soon, fmt.Sprintf("a path of %d bytes from host %d", c.path, i), func() bool {
					s, _ := n.Status()
					got := s.Tunnel.Peers[0].PathMTU
					return got <= c.path && got >= c.path-8
				})
			}
			for _, way := range ways {
				for _, size := range []int{1, 1100, c.path - 108, c.path - 100, c.path - 28, c.link - 108, 4000, 60_000} {
					datagrams(t, way.client, way.to, size)
				}
				echoes(t, way.client, way.to, c.link+1000)
				streamBothWays(t, way.client, way.to, 1<<20)
			}
		})
	}
}

// echoes sends three large ones, all of which must come back; again where one did not, as datagrams does: a part of it may find a queue full.
func echoes(t *testing.T, client *labtest.Container, to netip.Addr, size int) {
	t.Helper()
	const tries = 3
	for try := 1; ; try++ {
		out, err := client.Output("ping", "-c", "3", "-i", "0.05", "-W", "3", "-s", fmt.Sprint(size), to.String())
		if err == nil && strings.Contains(out, " 0% packet loss") {
			return
		}
		t.Logf("try %d: ping from %s to %s: %v\n%s", try, client.ID, to, err, out)
		if try == tries {
			t.Errorf("ping from %s to %s: no three in a row came back", client.ID, to)
			return
		}
	}
}

// throughRouter makes two nodes with a router between them, whose link to the second carries path bytes.
func throughRouter(t *testing.T, link, path int, silent, filter bool) *world {
	t.Helper()
	w := &world{Lab: labtest.New(t), t: t}
	hosts := []*nettest.Host{nettest.NewHost(t, "host0"), nettest.NewHost(t, "host1")}
	router := nettest.NewHost(t, "router")
	router.Forward()
	if silent {
		router.Run("iptables", "-A", "OUTPUT", "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP")
	}
	for _, h := range hosts {
		bridgesFilter(t, h, filter)
	}
	for i, mtu := range []int{link, path} {
		net := fmt.Sprintf("198.51.100.%d", i*128)
		nettest.Cable(t,
			nettest.End{Host: hosts[i], Interface: "eth0", Addresses: []string{next(net, 1) + "/25"}, MTU: mtu},
			nettest.End{Host: router, Interface: fmt.Sprintf("eth%d", i), Addresses: []string{next(net, 2) + "/25"}, MTU: mtu})
		hosts[i].Route("default", next(net, 2))
		w.nodes = append(w.nodes, w.Node(hosts[i], next(net, 1)))
	}
	w.Set()
	return w
}

// bridgesFilter says whether a host's bridges call its firewall, as they do where Docker is: then the kernel puts fragments together on the bridge, and
// forgets how long they were.
func bridgesFilter(t *testing.T, h *nettest.Host, on bool) {
	t.Helper()
	value := "0"
	if on {
		value = "1"
	}
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		if on {
			nettest.Unable(t, "br_netfilter is not loaded")
		}
		return
	}
	h.Sysctl("net.bridge.bridge-nf-call-iptables", value)
	h.Sysctl("net.bridge.bridge-nf-call-ip6tables", value)
}

// next returns the address that comes so many after another.
func next(address string, n byte) string {
	a := netip.MustParseAddr(address).As4()
	a[3] += n
	return netip.AddrFrom4(a).String()
}

// streamBothWays sends bytes to a service of serveTCP while it reads them back.
func streamBothWays(t *testing.T, from *labtest.Container, to netip.Addr, size int) {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(to, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := readName(conn); err != nil {
		t.Fatalf("%s to %s: %v", from.ID, to, err)
	}
	_ = conn.SetDeadline(time.Now().Add(3 * soon))
	sent := bytes.Repeat([]byte("0123456789abcdef!"), size/17)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(sent))
	n, err := io.ReadFull(conn, got)
	if err != nil {
		t.Fatalf("%s to %s: %d of %d bytes: %v", from.ID, to, n, len(sent), err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%s to %s: what came back is not what was sent", from.ID, to)
	}
}

// datagrams asks a service of serveUDP. Of the first datagrams one may be lost in each direction, by which the senders hear how much the path carries:
// after an answer none.
func datagrams(t *testing.T, from *labtest.Container, to netip.Addr, size int) {
	t.Helper()
	text := strings.Repeat("x", size)
	conn, err := from.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 65536)
	tries := 0
	labtest.Eventually(t, soon, fmt.Sprintf("an answer to %d bytes from %s to %s", size, from.ID, to), func() bool {
		tries++
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := conn.Write([]byte(text))
		if err == nil {
			_, err = conn.Read(buf)
		}
		var late net.Error
		if err != nil && !errors.Is(err, syscall.EMSGSIZE) && (!errors.As(err, &late) || !late.Timeout()) {
			t.Fatalf("%d bytes from %s to %s: %v", size, from.ID, to, err)
		}
		return err == nil
	})
	if tries > 1 {
		t.Logf("%d bytes from %s to %s: %d tries", size, from.ID, to, tries)
	}
	for range 20 {
		askUDP(t, conn, text)
	}
}
