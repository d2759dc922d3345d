//go:build linux

package netmanager_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/attach"
	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
)

// Malformed packets of every kind, from a container and straight into the TUN, cost no other flow an answer, and the containers go on.
func TestMalformedPackets(t *testing.T) {
	w := newWorld(t, 2)
	client, server := w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Service("client", client)
	w.Set()
	serveTCP(server, ":80")
	serveUDP(server, ":80")
	flows := controlFlows(t, client, web)
	container := openWire(t, client.Host, attach.Interface, bridgeMAC(w.nodes[0]))
	inTUN := openWire(t, w.nodes[0].Host, link.TUN(w.nodes[0].Static.Name), nil)
	gateway := w.Config(w.nodes[0])
	packets := 0
	for _, way := range []*wire{container, inTUN} {
		for _, to := range [][2]netip.Addr{{client.Address, web.RoundRobin}, {client.Address, server.Address}, {client.Address, gateway.Gateway},
			{client.Address6, web.RoundRobin6}, {client.Address6, server.Address6}, {client.Address6, gateway.Gateway6}} {
			for _, kind := range malformed(to[0], to[1]) {
				packets += len(kind.packets)
				for some := range slices.Chunk(kind.packets, 50) { // no more at once than the queue of a TUN device takes: its losses are not meant here
					for _, p := range some {
						way.send(t, p)
					}
					flows.goOn(t, kind.name)
				}
			}
		}
	}
	flows.end()
	s, _ := w.nodes[0].Status()
	w.nodes[1].Status()
	t.Logf("%d packets among %d requests: %+v", packets, flows.answered(), s.Packets)
	if s.Packets.Malformed < 1000 || s.Packets.Spoofed < 10 || s.Packets.Fragments < 10 || s.Packets.Stray < 10 {
		t.Errorf("got %+v: most have not come as far as the TUN", s.Packets)
	}
	for _, address := range []netip.Addr{web.RoundRobin, web.RoundRobin6, server.Address, server.Address6} {
		if got := who(t, client, address, 80); got != server.ID {
			t.Errorf("%s afterwards: got %q", address, got)
		}
		if out, err := client.Output("ping", "-c", "1", "-W", "10", address.String()); err != nil {
			t.Errorf("ping %s afterwards: %v\n%s", address, err, out)
		}
	}
}

// control is flows on which one request follows the answer of the other.
type control struct {
	count   []atomic.Int64
	longest []atomic.Int64 // nanoseconds that an answer took
	stop    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// controlFlows begins one flow by each protocol and family from a container through a service's address.
func controlFlows(t *testing.T, from *labtest.Container, to *labtest.Service) *control {
	t.Helper()
	var conns []net.Conn
	for _, address := range []netip.Addr{to.RoundRobin, to.RoundRobin6} {
		for _, network := range []string{"tcp", "udp"} {
			conn, err := from.Dial(t.Context(), network, netip.AddrPortFrom(address, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			if network == "tcp" {
				if _, err := readName(conn); err != nil {
					t.Fatal(err)
				}
			}
			conns = append(conns, conn)
		}
	}
	c := &control{count: make([]atomic.Int64, len(conns)), longest: make([]atomic.Int64, len(conns)), stop: make(chan struct{})}
	for i, conn := range conns {
		c.wg.Go(func() { c.run(t, i, conn) })
	}
	t.Cleanup(c.end)
	return c
}

func (c *control) run(t *testing.T, i int, conn net.Conn) {
	buf := make([]byte, 200)
	for request := 0; ; request++ {
		select {
		case <-c.stop:
			return
		default:
		}
		text, began := fmt.Sprintf("request-%d", request), time.Now()
		_ = conn.SetDeadline(time.Now().Add(soon))
		_, err := conn.Write([]byte(text))
		for got := ""; err == nil && !strings.HasSuffix(got, text); { // a stream's answer may come in pieces
			var n int
			n, err = conn.Read(buf)
			got += string(buf[:n])
		}
		if err != nil {
			t.Errorf("%s %s: request %d: %v", conn.RemoteAddr().Network(), conn.RemoteAddr(), request, err)
			return
		}
		c.longest[i].Store(max(c.longest[i].Load(), int64(time.Since(began))))
		c.count[i].Add(1)
	}
}

// slowest returns how long the slowest answer took since the last call.
func (c *control) slowest() (d time.Duration) {
	for i := range c.longest {
		d = max(d, time.Duration(c.longest[i].Swap(0)))
	}
	return d
}

// goOn waits until every flow has had another answer.
func (c *control) goOn(t *testing.T, after string) {
	t.Helper()
	for i := range c.count {
		before := c.count[i].Load()
		for began := time.Now(); c.count[i].Load() == before; time.Sleep(100 * time.Microsecond) {
			if t.Failed() || time.Since(began) > soon {
				t.Fatalf("after %s flow %d stands still", after, i)
			}
		}
	}
}

func (c *control) end() {
	c.once.Do(func() { close(c.stop) })
	c.wg.Wait()
}

func (c *control) answered() (total int64) {
	for i := range c.count {
		total += c.count[i].Load()
	}
	return total
}

// wire sends packets as they are out of an interface.
type wire struct {
	fd int
	to unix.SockaddrLinklayer
}

func openWire(t *testing.T, h *nettest.Host, name string, mac net.HardwareAddr) *wire {
	t.Helper()
	w := &wire{}
	h.Do(func() {
		device, err := net.InterfaceByName(name)
		if err == nil {
			w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.to = unix.SockaddrLinklayer{Ifindex: device.Index, Halen: uint8(len(mac))}
		copy(w.to.Addr[:], mac)
	})
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// bridgeMAC is the hardware address of a node's containers' gateway.
func bridgeMAC(n *labtest.Node) (mac net.HardwareAddr) {
	n.Host.Do(func() { mac = n.Host.Link(link.Bridge(n.Static.Name)).Attrs().HardwareAddr })
	return mac
}

func (w *wire) send(t *testing.T, p packet) {
	t.Helper()
	protocol := uint16(unix.ETH_P_IP)
	if p.v6 {
		protocol = unix.ETH_P_IPV6
	}
	w.to.Protocol = protocol<<8 | protocol>>8
	for began := time.Now(); ; time.Sleep(100 * time.Microsecond) { // a queue may be full
		err := unix.Sendto(w.fd, p.b, 0, &w.to)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ENOBUFS) || time.Since(began) > soon {
			t.Fatalf("%d bytes: %v", len(p.b), err)
		}
	}
}

// Port 65535 is one like any other: for a service and for who asks, twice at once, near and far.
func TestLastPort(t *testing.T) {
	w := newWorld(t, 2)
	clients := []*labtest.Container{w.nodes[0].Container(), w.nodes[0].Container()}
	reuse := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) } // one port, several destinations
	for _, server := range []*labtest.Container{w.nodes[0].Container(), w.nodes[1].Container()} {
		web := w.Service("web-"+server.ID, server)
		w.Set()
		serveTCP(server, ":65535")
		serveUDP(server, ":65535")
		for _, address := range []netip.Addr{web.RoundRobin, web.RoundRobin6, web.Instances[0].Service, web.Instances[0].Service6} {
			to := netip.AddrPortFrom(address, 65535)
			for _, client := range clients {
				own := client.Address
				if address.Is6() {
					own = client.Address6
				}
				from := netip.AddrPortFrom(own, 65535)
				stream := dialWith(t, client, reuse, net.TCPAddrFromAddrPort(from), to)
				if got, err := readName(stream); err != nil || got != server.ID {
					t.Errorf("TCP %s to %s: got %q, %v", from, to, got, err)
				}
				if got := askUDP(t, dialWith(t, client, reuse, net.UDPAddrFromAddrPort(from), to), "x"); got != server.ID {
					t.Errorf("UDP %s to %s: got %q", from, to, got)
				}
			}
		}
	}
}

// packet is one of IPv4 or IPv6, right or wrong.
type packet struct {
	b  []byte
	v6 bool
}

// kind is packets that are wrong in one way.
type kind struct {
	name    string
	packets []packet
}

// forge builds packets from one address to another.
type forge struct {
	src, dst netip.Addr
	random   *rand.Rand
}

const ipHeader, ip6Header = 20, 40

// make puts a right IP header before what follows it, whose own checksum is made right where it is one that has any.
func (f forge) make(proto byte, body []byte) packet {
	p := packet{v6: f.src.Is6()}
	if p.v6 {
		p.b = make([]byte, ip6Header, ip6Header+len(body))
		p.b[0], p.b[6], p.b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(p.b[4:], uint16(len(body)))
		copy(p.b[8:], f.src.AsSlice())
		copy(p.b[24:], f.dst.AsSlice())
	} else {
		p.b = make([]byte, ipHeader, ipHeader+len(body))
		p.b[0], p.b[8], p.b[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(p.b[2:], uint16(ipHeader+len(body)))
		copy(p.b[12:], f.src.AsSlice())
		copy(p.b[16:], f.dst.AsSlice())
	}
	p.b = append(p.b, body...)
	at := map[byte]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}[proto]
	if at > 0 && len(body) >= at+2 {
		pseudo := uint32(proto) + uint32(len(body)) + sum(f.src.AsSlice()) + sum(f.dst.AsSlice())
		if proto == unix.IPPROTO_ICMP {
			pseudo = 0
		}
		binary.BigEndian.PutUint16(p.b[len(p.b)-len(body)+at:], checksum(pseudo+sum(body)))
	}
	return p.sealed()
}

// sealed makes the checksum of an IPv4 header right, however long that says to be.
func (p packet) sealed() packet {
	if !p.v6 && len(p.b) >= ipHeader {
		p.b[10], p.b[11] = 0, 0
		binary.BigEndian.PutUint16(p.b[10:], checksum(sum(p.b[:max(ipHeader, min(len(p.b), int(p.b[0]&15)*4))])))
	}
	return p
}

// with changes bytes of a packet; the header is whole for all that.
func (p packet) with(change func(b []byte)) packet {
	change(p.b)
	return p.sealed()
}

// cut leaves the first bytes of a packet.
func (p packet) cut(n int) packet { return packet{p.b[:n], p.v6} }

func sum(b []byte) (total uint32) {
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

func checksum(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}
