//go:build linux

package netmanager_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
)

// Containers exchange streams and datagrams of every size by a service address, whatever the path between their hosts carries, and whether or not it
// says so.
func TestPathsOfEveryMTU(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		link, path int
		silent     bool
	}{
		{1280, 1280, false}, {1500, 1280, false}, {1500, 1280, true}, {1500, 1400, false}, {1500, 1400, true}, {1500, 1500, false},
		{9000, 9000, false}, {9000, 1280, false}, {9000, 1280, true}, {9000, 1500, true},
	} {
		t.Run(fmt.Sprintf("link %d path %d silent %v", c.link, c.path, c.silent), func(t *testing.T) {
			t.Parallel()
			w := routedWorld(t, c.link, c.path, c.silent)
			client, server := w.nodes[0].Container(), w.nodes[1].Container()
			web := w.Service("web", server)
			w.Set()
			serveTCP(server, ":80")
			serveUDP(server, ":80")
			for _, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6} {
				thereAndBack(t, client, netip.AddrPortFrom(to, 80), 4<<20)
				headers := 28
				if to.Is6() {
					headers = 48
				}
				// What a container may send in one packet on each of the paths, what takes two, and many.
				for _, size := range []int{1, c.path - 80 - headers, c.link - 80 - headers, c.link, 4000, 30_000} {
					datagrams(t, client, netip.AddrPortFrom(to, 80), size)
				}
			}
		})
	}
}

// routedWorld is two nodes with a router between them; the link to the second carries path bytes, and a silent one says nothing when that is too little.
func routedWorld(t *testing.T, link, path int, silent bool) *world {
	t.Helper()
	w := &world{Lab: labtest.New(t), t: t}
	one, two, router := nettest.NewHost(t, "host0"), nettest.NewHost(t, "host1"), nettest.NewHost(t, "router")
	nettest.Cable(t, nettest.End{Host: one, Interface: "eth0", Addresses: []string{"198.51.100.1/24"}, MTU: link},
		nettest.End{Host: router, Interface: "eth0", Addresses: []string{"198.51.100.254/24"}, MTU: link})
	nettest.Cable(t, nettest.End{Host: two, Interface: "eth0", Addresses: []string{"192.0.2.2/24"}, MTU: path},
		nettest.End{Host: router, Interface: "eth1", Addresses: []string{"192.0.2.254/24"}, MTU: path})
	router.Forward()
	for _, host := range []*nettest.Host{one, two} {
		withoutBridgeFilter(host)
	}
	one.Route("default", "198.51.100.254")
	two.Route("default", "192.0.2.254")
	if silent {
		err := router.Try(func() error {
			c := new(nftables.Conn)
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "silent"})
			chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
				Type: nftables.ChainTypeFilter})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMP}},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
			return c.Flush()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.nodes = []*labtest.Node{w.Node(one, "198.51.100.1"), w.Node(two, "192.0.2.2")}
	w.Set()
	return w
}

// withoutBridgeFilter takes br_netfilter off a host, which Docker may have loaded: it puts fragments of IPv6 together on the bridge and loses how long they were,
// so that the host passes on a packet as long as its own MTU, and a container that has been told of a narrower path sends in vain (README, "What a board needs").
func withoutBridgeFilter(host *nettest.Host) {
	const name = "bridge-nf-call-ip6tables"
	there := false
	host.Do(func() {
		_, err := os.Stat("/proc/sys/net/bridge/" + name)
		there = err == nil
	})
	if there {
		host.Sysctl("net.bridge."+name, "0")
	}
}

// thereAndBack sends bytes through the echo of a service, both ways at once.
func thereAndBack(t *testing.T, from *labtest.Container, to netip.AddrPort, size int) {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	if _, err := readName(conn); err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789abcde"), size/15)
	_ = conn.SetDeadline(time.Now().Add(3 * soon))
	wg.Go(func() { _, _ = conn.Write(sent) })
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%s: got %d bytes of %d back, %v", to, n, len(sent), err)
	}
}

// datagrams sends some of a size, each of which is answered; the first ones may be lost for being too large while nobody knows it. Of many fragments any
// may be lost on a machine that is busy: there one answer will do.
func datagrams(t *testing.T, from *labtest.Container, to netip.AddrPort, size int) {
	t.Helper()
	conn, err := from.Dial(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 65536)
	labtest.Eventually(t, soon, fmt.Sprintf("the answer to %d bytes to %s", size, to), func() bool {
		_, _ = conn.Write(bytes.Repeat([]byte("?"), size))
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, err := conn.Read(buf)
		return err == nil
	})
	for range 20 {
		if size > 9000 {
			return
		}
		last := askLatest(t, conn, strings.Repeat("x", size))
		if last != size {
			t.Fatalf("%s: sent %d bytes, got %d", to, size, last)
		}
	}
}

// askLatest asks as askUDP does; answers to earlier questions, which are of question marks, are passed over.
func askLatest(t *testing.T, conn net.Conn, text string) int {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(soon))
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%d bytes: %v", len(text), err)
		}
		words := strings.Fields(string(buf[:n]))
		if len(words) == 3 && strings.HasPrefix(words[2], "x") {
			return len(words[2])
		}
	}
}

// delayer passes datagrams on between a host and a node on another, each later than it came: this kernel may have no netem.
type delayer struct{ delay atomic.Int64 }

func (d *delayer) run(in, out net.PacketConn, to net.Addr) {
	var client atomic.Value
	pass := func(from, by net.PacketConn, target func() net.Addr) {
		type late struct {
			b   []byte
			due time.Time
		}
		queue := make(chan late, 10_000)
		go func() {
			for p := range queue { // in the order that they came
				time.Sleep(time.Until(p.due))
				if a := target(); a != nil {
					_, _ = by.WriteTo(p.b, a)
				}
			}
		}()
		defer close(queue)
		buf := make([]byte, 65536)
		for {
			n, sender, err := from.ReadFrom(buf)
			if err != nil {
				return
			}
			if from == in {
				client.Store(sender)
			}
			select {
			case queue <- late{slices.Clone(buf[:n]), time.Now().Add(time.Duration(d.delay.Load()))}:
			default:
			}
		}
	}
	go pass(in, out, func() net.Addr { return to })
	go pass(out, in, func() net.Addr { a, _ := client.Load().(net.Addr); return a })
}

// The closest instance is the one that is here, and without one the one behind the quicker path, as it is measured, and not as it once was.
func TestClosestByDelay(t *testing.T) {
	t.Parallel()
	w := &world{Lab: labtest.New(t), t: t}
	between := nettest.NewHost(t, "between")
	delays := make([]delayer, 3)
	for i := range 3 {
		host := nettest.NewHost(t, fmt.Sprintf("host%d", i))
		nettest.Cable(t, nettest.End{Host: host, Interface: "eth0", Addresses: []string{fmt.Sprintf("192.0.%d.1/24", i)}},
			nettest.End{Host: between, Interface: fmt.Sprintf("eth%d", i), Addresses: []string{fmt.Sprintf("192.0.%d.254/24", i), fmt.Sprintf("192.0.%d.253/24", i)}})
		endpoint := "" // nobody knows where the first is: so that all goes through the delayers
		if i > 0 {
			host.Route("default", fmt.Sprintf("192.0.%d.254", i))
			endpoint = fmt.Sprintf("192.0.0.%d", 252+i)
			in := between.ListenPacket("udp", fmt.Sprintf("%s:%d", endpoint, labtest.Port))
			out := between.ListenPacket("udp", fmt.Sprintf("192.0.%d.254:0", i))
			delays[i].run(in, out, addr(netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("192.0.%d.1", i)), labtest.Port)))
		}
		w.nodes = append(w.nodes, w.Node(host, endpoint))
	}
	w.Set()
	client := w.nodes[0].Container()
	here, one, two := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[2].Container()
	web := w.Service("web", one, two, here)
	w.Set()
	for _, c := range []*labtest.Container{here, one, two} {
		serveTCP(c, ":80")
	}
	for range 10 {
		if got := who(t, client, web.Closest, 80); got != here.ID {
			t.Errorf("got %s, want %s, on the same node", got, here.ID)
		}
	}
	web.Instances[2].Healthy = false
	for _, c := range []struct {
		delays [2]time.Duration // one way
		want   *labtest.Container
	}{
		{[2]time.Duration{2 * time.Millisecond, 60 * time.Millisecond}, one}, {[2]time.Duration{60 * time.Millisecond, 2 * time.Millisecond}, two},
		{[2]time.Duration{2 * time.Millisecond, 60 * time.Millisecond}, one},
	} {
		delays[1].delay.Store(int64(c.delays[0]))
		delays[2].delay.Store(int64(c.delays[1]))
		w.Set()
		began := time.Now()
		for _, to := range []netip.Addr{web.Closest, web.Closest6} {
			labtest.Eventually(t, 3*soon, fmt.Sprintf("%s with delays %v", c.want.ID, c.delays), func() bool {
				return !slices.ContainsFunc(make([]int, 5), func(int) bool { return who(t, client, to, 80) != c.want.ID })
			})
		}
		t.Logf("%s after %v with delays %v", c.want.ID, time.Since(began), c.delays)
	}
}
