package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tun"
)

// board is a node with a real TUN in a network namespace, and containers on its bridge in theirs.
type board struct {
	*nettest.Host
	node       *node
	containers []*nettest.Host
}

// newBoard makes node number with that many containers, from 10.160.number.2 on.
func newBoard(t testing.TB, number, containers int, o Options) *board {
	b := &board{Host: nettest.NewHost(t, fmt.Sprint("node", number))}
	b.Forward()
	at := func(i int) []string {
		a := fmt.Sprintf("10.160.%d.%d", number, i)
		return []string{a + "/26", six(a) + "/122"}
	}
	ends := []nettest.End{{Host: b.Host, Interface: "br", Addresses: at(1)}}
	for i := range containers {
		c := nettest.NewHost(t, fmt.Sprintf("container%d.%d", number, i))
		ends = append(ends, nettest.End{Host: c, Interface: "eth0", Addresses: at(2 + i), MTU: 1420})
		b.containers = append(b.containers, c)
	}
	nettest.Switch(t, fmt.Sprint("bridge", number), ends...)
	for _, c := range b.containers {
		c.Route("default", fmt.Sprintf("10.160.%d.1", number))
		c.Route("default6", six(fmt.Sprintf("10.160.%d.1", number)))
	}
	b.Do(func() {
		dev, err := tun.Open("tun", 1420)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			nettest.Unable(t, err.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // the device stops when nobody hears its events
			for range dev.Events() {
			}
		})
		t.Cleanup(wg.Wait)
		link := b.Link("tun")
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		for i, p := range bothPrefixes(testNetwork.String()) {
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			src := netip.MustParsePrefix(at(1)[i]).Addr().AsSlice()
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Src: src}); err != nil {
				t.Fatal(err)
			}
		}
		b.node = &node{Device: Wrap(dev, o), block: bothPrefixes(fmt.Sprintf("10.160.%d.0/26", number)), number: number}
	})
	return b
}

// connect carries packets between boards in batches, until the test ends.
func connect(t testing.TB, boards ...*board) {
	var wg sync.WaitGroup
	for _, b := range boards {
		for _, q := range b.node.Queues() {
			wg.Go(func() { convey(q, boards) })
		}
	}
	t.Cleanup(func() {
		for _, b := range boards {
			b.node.Close()
		}
		wg.Wait()
	})
}

func convey(q tun.Queue, boards []*board) {
	slab, packets := make([]byte, 1<<17), make([]tun.ReadPacket, 256)
	bufs := make([][]byte, 0, 256)
	for {
		n, err := q.Read(slab, packets)
		for _, to := range boards {
			bufs = bufs[:0]
			for _, at := range packets[:n] {
				var p packet
				if p.parse(slab[at.Offset:at.Offset+at.Size]) && (to.node.block[0].Contains(p.dst.netip()) || to.node.block[1].Contains(p.dst.netip())) {
					bufs = append(bufs, slab[at.Offset-headroom:at.Offset+at.Size])
				}
			}
			if len(bufs) > 0 {
				to.node.Write(bufs, headroom)
			}
		}
		if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			return
		}
	}
}

// serve answers on a port with the name of the server, who asked, and the length of the request.
func serve(t testing.TB, wg *sync.WaitGroup, h *nettest.Host, name, address string) {
	listener := h.Listen("tcp", address)
	t.Cleanup(func() { listener.Close() })
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				n, _ := io.Copy(io.Discard, conn)
				fmt.Fprintf(conn, "%s %s %d", name, conn.RemoteAddr().(*net.TCPAddr).IP, n)
			})
		}
	})
}

// ask sends size bytes to a service and returns what it answers.
func ask(t testing.TB, h *nettest.Host, address string, size int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", address)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	return string(answer)
}

// Two nodes with two containers each, real kernels and TUN devices with offload: round robin reaches the instance here and the one there, with a
// megabyte each, in both families; the server sees its client's instance address; the node itself is a client too.
func TestKernel(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	one, two := newBoard(t, 1, 2, Options{}), newBoard(t, 2, 2, Options{})
	s := service("web", "10.172.0.1", "10.172.0.2", container(0, "10.172.0.10", "10.160.1.3"), container(1, "10.172.0.11", "10.160.2.2"))
	c := service("client", "10.172.2.1", "10.172.2.2", container(0, "10.172.2.10", "10.160.1.2"))
	one.node.set("", s, c)
	two.node.set("", s, c)
	connect(t, one, two)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, a := range []func(string) string{func(a string) string { return a }, six} {
		serve(t, &wg, one.containers[1], "web.0", net.JoinHostPort(a("10.160.1.3"), "80"))
		serve(t, &wg, two.containers[0], "web.1", net.JoinHostPort(a("10.160.2.2"), "80"))
	}
	const size = 1 << 20
	for _, a := range []func(string) string{func(a string) string { return a }, six} {
		got := map[string]int{}
		for range 10 {
			got[ask(t, one.containers[0], net.JoinHostPort(a("10.172.0.1"), "80"), size)]++
		}
		want := fmt.Sprintf(" %s %d", a("10.172.2.10"), size)
		if got["web.0"+want] != 5 || got["web.1"+want] != 5 {
			t.Errorf("round robin: got %v", got)
		}
		if got := ask(t, one.containers[0], net.JoinHostPort(a("10.172.0.2"), "80"), 10); got[:5] != "web.0" {
			t.Errorf("closest: got %s", got)
		}
		if got := ask(t, one.containers[0], net.JoinHostPort(a("10.172.0.11"), "80"), 10); got[:5] != "web.1" {
			t.Errorf("instance 1: got %s", got)
		}
		for _, target := range []string{"10.172.0.10", "10.172.0.11"} { // from the node itself
			if got := ask(t, one.Host, net.JoinHostPort(a(target), "80"), size); got[:4] != "web." {
				t.Errorf("from the node: got %s", got)
			}
		}
		if got := ask(t, one.containers[1], net.JoinHostPort(a("10.172.0.2"), "80"), size); got != fmt.Sprintf("web.0 %s %d", a("10.172.0.10"), size) {
			t.Errorf("to itself: got %s", got)
		}
	}
	if s := one.node.Stats(); s.Malformed+s.Denied+s.Missed+s.Fragments > 0 {
		t.Errorf("%+v", s)
	}
}
