//go:build linux

package netmanager_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	wgconn "golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"skerry.internal/netmanager"
	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tunnel"
)

const (
	// hostileMemory is the most that a flood may add to a node's resident memory, in MB, with what the race detector makes of it.
	hostileMemory = 128
	// hostileWait is the longest that an answer of others may take beside a flood, with which they share the processors.
	hostileWait = 3 * time.Second
)

// Whatever a peer seals, a stranger sends or a thief repeats: a node counts it, no container sees it, and no flow of others loses an answer.
func TestHostilePeer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	server, client := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Service("client", client)
	host := nettest.NewHost(t, "hostile")
	nettest.Cable(t, nettest.End{Host: w.nodes[0].Host, Interface: "eth1", Addresses: []string{"203.0.113.1/24"}},
		nettest.End{Host: host, Interface: "eth0", Addresses: []string{"203.0.113.2/24"}})
	node := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), labtest.Port)
	peer, stranger := startStock(t, host, w.nodes[0], node), startStock(t, host, w.nodes[0], node)
	own, own6 := netip.MustParseAddr("10.160.9.1"), netip.MustParseAddr("fd5c:ae11:9:9::1")
	w.nodes[0].Peer(tunnel.Peer{Key: peer.key, Prefixes: []netip.Prefix{netip.PrefixFrom(own, 26).Masked(), netip.PrefixFrom(own6, 64)}})
	w.Set()
	serveTCP(server, ":80")
	serveUDP(server, ":80")
	came := openInbox(server, ":9")
	flows := controlFlows(t, client, web)
	honest := forge{src: own, dst: server.Address}
	said := 0
	// after waits until the node has taken all that the peer has sent, and the others' flows go on; it returns what the node has counted.
	after := func(t *testing.T, what string) netmanager.Status {
		t.Helper()
		said++
		text := fmt.Sprintf("honest-%d", said)
		peer.tun.Outbound <- honest.toInbox(text).b
		labtest.Eventually(t, soon, "an honest packet after "+what, func() bool { return came.count(text) == 1 })
		flows.goOn(t, what)
		s, _ := w.nodes[0].Status()
		return s
	}
	for range 20 {
		after(t, "nothing")
	}
	stolen := peer.bind.kept()

	t.Run("forged", func(t *testing.T) {
		const times = 100
		before := after(t, "nothing").Packets
		for i := range times {
			if i%10 == 0 {
				flows.goOn(t, "forged packets") // through the same socket: it has room again
			}
			peer.tun.Outbound <- honest.make(unix.IPPROTO_UDP, udpHeader(7, data)).b
			peer.tun.Outbound <- forge{src: own6, dst: client.Address6}.toInbox("stray").b
			for _, src := range []netip.Addr{client.Address, client.Address6, server.Address, web.RoundRobin, web.Instances[0].Service6, netip.MustParseAddr("198.51.100.2")} {
				to := server.Address
				if src.Is6() {
					to = server.Address6
				}
				peer.tun.Outbound <- forge{src: src, dst: to}.toInbox("forged").b
			}
			stranger.tun.Outbound <- forge{src: client.Address, dst: server.Address}.toInbox("stranger").b
		}
		got := after(t, "forged packets").Packets
		if malformed, stray := got.Malformed-before.Malformed, got.Stray-before.Stray; malformed != times || stray != times {
			t.Errorf("counted %d malformed and %d stray packets, want %d each", malformed, stray, times)
		}
		labtest.Eventually(t, soon, "the stranger to ask", func() bool { return len(stranger.bind.kept()) > 0 })
	})

	t.Run("malformed", func(t *testing.T) {
		before, packets := after(t, "nothing").Packets, 0
		for _, way := range [][2]netip.Addr{{own, server.Address}, {own, web.RoundRobin}, {own, w.Config(w.nodes[0]).Gateway}, {own6, server.Address6}} {
			for _, kind := range malformed(way[0], way[1]) {
				packets += len(kind.packets)
				for some := range slices.Chunk(kind.packets, 100) {
					for _, p := range some {
						peer.tun.Outbound <- p.b
					}
					flows.goOn(t, kind.name)
				}
			}
		}
		got := after(t, "malformed packets").Packets
		t.Logf("%d packets: %+v", packets, got)
		if got.Malformed < before.Malformed+1000 || got.Stray < before.Stray+1000 || got.Fragments < before.Fragments+100 {
			t.Errorf("got %+v after %+v: most have not come out of the tunnel", got, before)
		}
	})

	thief, err := host.Dial(t.Context(), "udp", node.String())
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()

	t.Run("garbage", func(t *testing.T) {
		before, none := after(t, "nothing").Tunnel, uint64(0)
		for round := range 20 {
			for _, n := range []int{0, 1, 3, 4, 32, 92, 148, 1400, 9000} {
				for kind := range byte(6) { // WireGuard has four
					datagram := make([]byte, max(n, 4))
					for i := range datagram[4:] {
						datagram[4+i] = byte(rand.Uint32()) //nolint:gosec // nothing is hidden
					}
					datagram[0] = kind
					datagram = datagram[:n]
					if n > 0 && (n < 4 || kind == 0 || kind == 5) {
						none++
					}
					if _, err := thief.Write(datagram); err != nil {
						t.Fatal(err)
					}
				}
			}
			flows.goOn(t, fmt.Sprintf("garbage, round %d", round))
		}
		got := after(t, "garbage").Tunnel
		if got.Ignored-before.Ignored < none {
			t.Errorf("counted %d datagrams that are none of WireGuard's, sent %d", got.Ignored-before.Ignored, none)
		}
	})

	t.Run("handshakes", func(t *testing.T) {
		i := slices.IndexFunc(stolen, func(b []byte) bool {
			return len(b) == wgdevice.MessageInitiationSize && b[0] == wgdevice.MessageInitiationType
		})
		if i < 0 {
			t.Fatal("none was stolen")
		}
		flows.slowest()
		_, before := w.nodes[0].Status()
		for round := range 100 {
			for n := range 200 { // a socket's room
				datagram := bytes.Clone(stolen[i]) // the key's own work for the node, or a cookie when it has much of it
				if n%2 == 0 {
					datagram[len(datagram)-32+n%16]++ // within the first MAC
				}
				if _, err := thief.Write(datagram); err != nil {
					t.Fatal(err)
				}
			}
			flows.goOn(t, fmt.Sprintf("a flood of handshakes, round %d", round))
		}
		after(t, "a flood of handshakes")
		_, usage := w.nodes[0].Status()
		slowest := flows.slowest()
		t.Logf("the slowest answer took %s, the node had %.0f MB at most, %.0f before", slowest, usage.MaxMB, before.MaxMB)
		if usage.MaxMB-before.MaxMB > hostileMemory || slowest > hostileWait {
			t.Errorf("want at most %d MB more and %s", hostileMemory, hostileWait)
		}
	})

	t.Run("replays", func(t *testing.T) {
		for range 3 {
			for _, datagram := range stolen {
				if _, err := thief.Write(datagram); err != nil {
					t.Fatal(err)
				}
				if err := peer.bind.again(datagram); err != nil {
					t.Fatal(err)
				}
				changed := bytes.Clone(datagram)
				changed[len(changed)-1]++
				if _, err := thief.Write(changed); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := after(t, "replays").Tunnel
		i := slices.IndexFunc(got.Peers, func(p tunnel.PeerStats) bool { return p.Key == peer.key })
		if len(got.Peers) != 2 || i < 0 || got.Peers[i].Endpoint.Port() != peer.bind.port {
			t.Errorf("got %+v, want the peer at port %d, where it was", got.Peers, peer.bind.port)
		}
	})

	flows.end()
	for i := range said {
		if text := fmt.Sprintf("honest-%d", i+1); came.count(text) != 1 {
			t.Errorf("%s came %d times", text, came.count(text))
		}
	}
	if total := came.total(); total != said {
		t.Errorf("%d datagrams came, want the %d honest ones: %v", total, said, came.texts)
	}
	for _, address := range []netip.Addr{web.RoundRobin, web.RoundRobin6, server.Address, server.Address6} {
		if got := who(t, client, address, 80); got != server.ID {
			t.Errorf("%s afterwards: got %q", address, got)
		}
	}
}

// toInbox is a datagram to port 9.
func (f forge) toInbox(text string) packet {
	body := udpHeader(8+len(text), text)
	body[3] = 9
	return f.make(unix.IPPROTO_UDP, body)
}

// inbox counts the datagrams that come to a container, by their text.
type inbox struct {
	mu    sync.Mutex
	texts map[string]int
}

func openInbox(c *labtest.Container, address string) *inbox {
	in := &inbox{texts: map[string]int{}}
	conn := c.ListenPacket("udp", address)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			in.mu.Lock()
			in.texts[string(buf[:n])]++
			in.mu.Unlock()
		}
	}()
	return in
}

func (in *inbox) count(text string) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.texts[text]
}

func (in *inbox) total() (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, times := range in.texts {
		n += times
	}
	return n
}

// stock is the protocol's first implementation in Go, in this program: it seals what the test gives it, whatever that is, and what comes back is lost.
type stock struct {
	key  tunnel.Key // public
	tun  *tuntest.ChannelTUN
	bind *keeper
}

// startStock starts one on a host. It knows the node and takes everything to be behind it.
func startStock(t *testing.T, host *nettest.Host, node *labtest.Node, at netip.AddrPort) *stock {
	t.Helper()
	key, err := tunnel.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &stock{key: key.Public(), tun: tuntest.NewChannelTUN(), bind: &keeper{Bind: wgconn.NewDefaultBind(), host: host}}
	d := wgdevice.NewDevice(s.tun.TUN(), s.bind, wgdevice.NewLogger(wgdevice.LogLevelSilent, ""))
	over := make(chan struct{})
	t.Cleanup(func() {
		d.Close()
		close(over)
	})
	go func() {
		for {
			select {
			case <-s.tun.Inbound:
			case <-over:
				return
			}
		}
	}()
	public := node.Static.PrivateKey.Public()
	if err := d.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		hex.EncodeToString(key[:]), hex.EncodeToString(public[:]), at)); err != nil {
		t.Fatal(err)
	}
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	return s
}

// keeper is sockets on a host, and keeps what goes out by them.
type keeper struct {
	wgconn.Bind
	host *nettest.Host
	port uint16

	mu   sync.Mutex // guards what follows
	sent [][]byte
	to   wgconn.Endpoint
}

func (k *keeper) Open(port uint16) (fns []wgconn.ReceiveFunc, actual uint16, err error) {
	k.host.Do(func() { fns, actual, err = k.Bind.Open(port) })
	k.port = actual
	return fns, actual, err
}

func (k *keeper) Send(bufs [][]byte, to wgconn.Endpoint) error {
	k.mu.Lock()
	for _, b := range bufs {
		k.sent = append(k.sent, bytes.Clone(b))
	}
	k.to = to
	k.mu.Unlock()
	return k.Bind.Send(bufs, to)
}

// kept returns what has been sent up to now.
func (k *keeper) kept() [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.sent)
}

// again sends a datagram once more from where it came.
func (k *keeper) again(datagram []byte) error {
	k.mu.Lock()
	to := k.to
	k.mu.Unlock()
	return k.Bind.Send([][]byte{datagram}, to)
}
