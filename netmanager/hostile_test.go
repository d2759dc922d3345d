//go:build linux

package netmanager_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
)

// Packets of every malformed kind, from a container and put straight on the node's device, cost no flow an answer, and the nodes neither end nor grow.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	client, hostile, far := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	web := w.Service("web", far)
	w.Set()
	serveTCP(far, ":80")
	serveUDP(far, ":80")
	gateway := w.Config(w.nodes[0])
	targets := []ends{
		{hostile.Address, web.RoundRobin}, {hostile.Address6, web.RoundRobin6}, {hostile.Address, far.Address}, {hostile.Address6, far.Address6},
		{hostile.Address, gateway.Gateway}, {hostile.Address6, gateway.Gateway6}, {hostile.Address, web.Instances[0].Service},
	}
	var mac net.HardwareAddr
	host := w.nodes[0].Host
	host.Do(func() { mac = host.Link(w.nodes[0].Static.Name + "b").Attrs().HardwareAddr })
	ways := []func([]byte){packetSocket(t, hostile.Host, "eth0", mac), packetSocket(t, host, link.TUN(w.nodes[0].Static.Name), nil)}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var answers [4]atomic.Int64
	for i, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6} {
		for j, network := range []string{"tcp", "udp"} {
			conn, err := client.Dial(t.Context(), network, netip.AddrPortFrom(to, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { echoes(ctx, t, conn, &answers[2*i+j]) })
		}
	}
	// Between the batches every flow makes some requests, so that no queue overflows, which would be no fault.
	breathe := func() {
		for i := range answers {
			before := answers[i].Load()
			labtest.Eventually(t, soon, fmt.Sprintf("an answer of flow %d", i), func() bool { return answers[i].Load() > before+1 || t.Failed() })
		}
	}
	const rounds, batch = 2, 100
	var before [2]float64
	sent, random := 0, rand.New(rand.NewPCG(4, 4)) //nolint:gosec // the same packets every time
	for round := range rounds {                    // the first fills what has room
		for _, target := range targets {
			packets := malformed(target, random)
			for _, send := range ways {
				for at, p := range packets {
					send(p)
					if sent++; at%batch == batch-1 {
						breathe()
					}
				}
				breathe()
			}
		}
		for i, n := range w.nodes {
			_, use := n.Status()
			if round == 0 {
				before[i] = use.MaxMB
			} else if use.MaxMB > before[i]+16 {
				t.Errorf("node %d had %.1f MB after %d packets, has %.1f after %d", i, before[i], sent/rounds, use.MaxMB, sent)
			}
		}
	}
	t.Logf("%d packets; requests answered meanwhile: %d %d %d %d", sent, answers[0].Load(), answers[1].Load(), answers[2].Load(), answers[3].Load())
	if got := who(t, hostile, web.RoundRobin, 80); got != far.ID {
		t.Errorf("a new flow of the container that sent them: got %q", got)
	}
}

// echoes makes one request after another over an open flow until ctx ends; each has to be answered.
func echoes(ctx context.Context, t *testing.T, conn net.Conn, answers *atomic.Int64) {
	defer conn.Close()
	_, datagrams := conn.(*net.UDPConn)
	if !datagrams {
		if _, err := readName(conn); err != nil {
			t.Error(err)
			return
		}
	}
	buf := make([]byte, 200)
	for i := 0; ctx.Err() == nil; i++ {
		text := fmt.Sprintf("request %08d", i)
		_ = conn.SetDeadline(time.Now().Add(soon))
		_, err := conn.Write([]byte(text))
		n := len(text)
		switch {
		case err != nil:
		case datagrams:
			n, err = conn.Read(buf)
		default:
			_, err = io.ReadFull(conn, buf[:n])
		}
		if err != nil || n < len(text) || string(buf[n-len(text):n]) != text {
			t.Errorf("%s of %T: got %q, %v", text, conn, buf[:n], err)
			return
		}
		answers.Add(1)
	}
}

// packetSocket returns what sends packets out of an interface as they are, to the address where the interface has any.
func packetSocket(t *testing.T, host *nettest.Host, name string, to net.HardwareAddr) (send func([]byte)) {
	t.Helper()
	var fd, index int
	err := host.Try(func() (err error) {
		index = host.Link(name).Attrs().Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(p []byte) {
		address := &unix.SockaddrLinklayer{Ifindex: index, Protocol: networkOrder(unix.ETH_P_IP), Halen: uint8(len(to))}
		if len(p) > 0 && p[0]>>4 == 6 {
			address.Protocol = networkOrder(unix.ETH_P_IPV6)
		}
		copy(address.Addr[:], to)
		// The kernel takes no empty packet, and has no room for a moment when its queue is full.
		if err := unix.Sendto(fd, p, 0, address); err != nil && (!errors.Is(err, unix.EINVAL) || len(p) > 0) && !errors.Is(err, unix.ENOBUFS) {
			t.Errorf("packet of %d bytes: %v", len(p), err)
		}
	}
}

func networkOrder(n uint16) uint16 { return n<<8 | n>>8 }

// ends are the addresses of a packet, both of one family.
type ends struct{ src, dst netip.Addr }

// ip puts a header with the right checksum before a payload.
func ip(e ends, proto uint8, payload []byte) []byte {
	if e.src.Is6() {
		b := append([]byte{0x60, 0, 0, 0, 0, 0, proto, 64}, append(e.src.AsSlice(), e.dst.AsSlice()...)...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		return append(b, payload...)
	}
	b := append([]byte{0x45, 0, 0, 0, 0, 7, 0, 0, 64, proto, 0, 0}, append(e.src.AsSlice(), e.dst.AsSlice()...)...)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	return sealed(append(b, payload...))
}

// sealed sets the checksum of a header of IPv4.
func sealed(b []byte) []byte {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], sum(b[:20]))
	return b
}

func sum(parts ...[]byte) uint16 {
	var total uint32
	for _, b := range parts {
		for i := range b {
			total += uint32(b[i]) << (8 * (1 - i%2))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// transports returns a header of each transport with the right checksum and a few bytes behind it.
func transports(e ends) map[uint8][]byte {
	icmp, request := uint8(unix.IPPROTO_ICMP), uint8(8)
	if e.src.Is6() {
		icmp, request = unix.IPPROTO_ICMPV6, 128
	}
	all := map[uint8][]byte{
		unix.IPPROTO_UDP: {0xff, 0xff, 0, 81, 0, 16, 0, 0, 'n', 'o', 'n', 's', 'e', 'n', 's', 'e'},
		unix.IPPROTO_TCP: {0xff, 0xff, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0, 'n', 'o', 'n', 's'},
		icmp:             {request, 0, 0, 0, 0, 1, 0, 1, 'n', 'o', 'n', 's', 'e', 'n', 's', 'e'},
	}
	for proto, at := range map[uint8]int{unix.IPPROTO_UDP: 6, unix.IPPROTO_TCP: 16, icmp: 2} {
		b := all[proto]
		pseudo := append(append(e.src.AsSlice(), e.dst.AsSlice()...), 0, proto, 0, uint8(len(b)))
		if proto == unix.IPPROTO_ICMP {
			pseudo = nil
		}
		binary.BigEndian.PutUint16(b[at:], sum(pseudo, b))
	}
	return all
}

// malformed returns packets that no well-behaved sender makes.
func malformed(e ends, random *rand.Rand) [][]byte {
	list := [][]byte{{}}
	change := func(b []byte, how func([]byte)) {
		b = append([]byte(nil), b...)
		how(b)
		list = append(list, b)
	}
	for proto, t := range transports(e) {
		whole := ip(e, proto, t)
		header := len(whole) - len(t)
		for n := 1; n < len(whole); n += 3 { // cut off, with a length that says otherwise and with one that fits
			list = append(list, whole[:n])
			if n >= header {
				list = append(list, ip(e, proto, t[:n-header]))
			}
		}
		for i := range whole[:header+min(len(t), 20)] { // every byte of the headers at its limits
			for _, v := range []byte{0, 1, 0xff, whole[i] ^ 0x10} {
				change(whole, func(b []byte) { b[i] = v })
				if header == 20 && i < 10 {
					change(whole, func(b []byte) { b[i] = v; sealed(b) }) // so that the kernel lets it pass
				}
			}
		}
		for range 50 {
			change(whole, func(b []byte) {
				for range 1 + random.IntN(6) {
					b[random.IntN(len(b))] = byte(random.Uint32())
				}
				if header == 20 {
					sealed(b)
				}
			})
		}
		list = append(list, fragments(e, proto, t)...)
		for _, kind := range [][]byte{{3, 3}, {3, 4}, {11, 0}, {12, 0}, {5, 1}, {1, 4}, {2, 0}, {4, 1}} { // errors that quote it, in part or nonsense
			for _, quote := range [][]byte{nil, whole[:header-1], whole[:header+4], whole, t, ip(ends{e.dst, e.src}, proto, t)} {
				icmp := uint8(unix.IPPROTO_ICMP)
				if e.src.Is6() {
					icmp = unix.IPPROTO_ICMPV6
				}
				list = append(list, ip(e, icmp, append([]byte{kind[0], kind[1], 0, 0, 0, 0, 0, 0}, quote...)))
			}
		}
	}
	sources := []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.175.255.255"}
	if e.src.Is6() {
		sources = []string{"::", "::1", "ff02::1", "fe80::1", "::ffff:10.160.0.2"}
	}
	for _, s := range append(sources, e.dst.String()) {
		from := ends{netip.MustParseAddr(s), e.dst}
		for proto, t := range transports(from) {
			list = append(list, ip(from, proto, t))
			to := ends{e.src, from.src}
			list = append(list, ip(to, proto, t))
		}
	}
	return list
}

// fragments returns parts of a packet that overlap, are twice there, come last first, reach too far, or have nothing in them.
func fragments(e ends, proto uint8, t []byte) (list [][]byte) {
	part := func(from, to, offset int, more bool) {
		var flag uint16
		if more {
			flag = 1
		}
		if e.src.Is6() {
			head := binary.BigEndian.AppendUint16([]byte{proto, 0}, uint16(offset)|flag)
			list = append(list, ip(e, unix.IPPROTO_FRAGMENT, append(append(head, 0, 0, 0, 9), t[from:to]...)))
			return
		}
		b := ip(e, proto, t[from:to])
		binary.BigEndian.PutUint16(b[6:], uint16(offset/8)|flag<<13)
		list = append(list, sealed(b))
	}
	end := len(t)
	part(8, end, 8, false) // the last first
	part(0, 8, 0, true)
	part(0, 16, 0, true) // overlapping
	part(8, end, 8, false)
	part(0, 16, 0, true) // teardrop
	part(0, 4, 8, false)
	part(0, 8, 0, true) // one twice, and no end
	part(0, 8, 0, true)
	part(0, 8, 65528, false) // beyond the largest
	part(0, 16, 65528, true)
	part(0, 0, 0, true) // nothing in it
	part(0, 0, 8, false)
	part(0, 7, 0, true)  // no multiple of eight
	part(0, 4, 0, false) // less than a header
	if e.src.Is6() {
		for _, kind := range []uint8{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH} {
			var chain []byte
			for range 20 {
				chain = append(chain, kind, 0, 1, 4, 0, 0, 0, 0)
			}
			list = append(list, ip(e, kind, chain), ip(e, kind, append(chain, append([]byte{proto, 0, 1, 4, 0, 0, 0, 0}, t...)...)), ip(e, kind, chain[:4]),
				ip(e, kind, []byte{proto, 0xff, 1, 4, 0, 0, 0, 0}))
		}
	}
	return list
}

// dialAs connects a container from a port and with what else the socket shall have.
func dialAs(t *testing.T, c *labtest.Container, network string, from uint16, to netip.AddrPort, options func(fd int) error) (net.Conn, error) {
	t.Helper()
	d := net.Dialer{Timeout: soon, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = options(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	local := netip.AddrPortFrom(c.Address, from)
	if to.Addr().Is6() {
		local = netip.AddrPortFrom(c.Address6, from)
	}
	if network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	var conn net.Conn
	err := c.Try(func() (err error) {
		conn, err = d.DialContext(t.Context(), network, to.String())
		return err
	})
	return conn, err
}

// The last port is one as any other, on either side.
func TestLastPort(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	client, near, far := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	for _, server := range []*labtest.Container{near, far} {
		web := w.Service("on-"+server.ID, server)
		w.Set()
		serveTCP(server, ":65535")
		serveUDP(server, ":65535")
		for _, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6} {
			for _, network := range []string{"tcp", "udp"} {
				conn, err := dialAs(t, client, network, 65535, netip.AddrPortFrom(to, 65535), func(fd int) error {
					return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // beside the one before, which has just ended
				})
				if err != nil {
					t.Fatalf("%s to %s: %v", network, to, err)
				}
				var got string
				if network == "tcp" {
					if got, err = readName(conn); err != nil {
						t.Error(err)
					}
				} else {
					got = askUDP(t, conn, "x")
				}
				if got != server.ID {
					t.Errorf("%s to %s: got %q, want %s", network, to, got, server.ID)
				}
				conn.Close()
			}
		}
	}
}

// An error about a packet to a service address reaches the socket that sent it, which knows no other address: the kernel finds the socket by what the
// error quotes.
func TestErrorsReachTheSender(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	client, near, far := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	for _, server := range []*labtest.Container{near, far} {
		web := w.Service("on-"+server.ID, server)
		w.Set()
		for _, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6, web.Instances[0].Service, web.Closest6} {
			for hops, want := range map[int]error{64: unix.ECONNREFUSED, 1: unix.EHOSTUNREACH, 2: unix.EHOSTUNREACH} {
				if hops == 2 && server == near {
					continue // it is there by then
				}
				conn, err := dialAs(t, client, "udp", 0, netip.AddrPortFrom(to, 81), func(fd int) error {
					if to.Is6() {
						return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops))
					}
					return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops))
				})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(soon))
				if n, err := conn.Read(make([]byte, 10)); !errors.Is(err, want) {
					t.Fatalf("%s on %s after %d hops: got %d bytes, %v, want %v", to, server.ID, hops, n, err, want)
				}
				conn.Close()
			}
		}
	}
}
