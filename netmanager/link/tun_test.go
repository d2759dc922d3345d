//go:build linux

package link_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/attach"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
)

// wire is the far side of the node's TUN device, with the header that says what is left to do for a packet.
type wire struct {
	t    *testing.T
	file *os.File
}

const virtioHeader = 10

func openWire(t *testing.T, h *nettest.Host, name string) *wire {
	t.Helper()
	fd := -1
	h.Do(func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			t.Fatal(err)
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			t.Fatal(err)
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			t.Fatal(err)
		}
	})
	w := &wire{t, os.NewFile(uintptr(fd), name)}
	t.Cleanup(func() { w.file.Close() })
	return w
}

// read returns the next packet between unicast addresses, with its header; nil when none comes.
func (w *wire) read(patience time.Duration) (header, packet []byte) {
	w.t.Helper()
	_ = w.file.SetReadDeadline(time.Now().Add(patience))
	for {
		buffer := make([]byte, 1<<17)
		n, err := w.file.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			w.t.Fatal(err)
		}
		packet := buffer[virtioHeader:n]
		if _, to := ends(packet); !to.IsMulticast() {
			return buffer[:virtioHeader], packet
		}
	}
}

func (w *wire) write(header, packet []byte) {
	w.t.Helper()
	if header == nil {
		header = make([]byte, virtioHeader)
	}
	if _, err := w.file.Write(append(bytes.Clone(header), packet...)); err != nil {
		w.t.Fatal(err)
	}
}

// wants reads one packet and compares its ends.
func (w *wire) wants(what, from, to string) {
	w.t.Helper()
	_, packet := w.read(patience)
	if packet == nil {
		w.t.Errorf("%s: nothing came out of the TUN device", what)
		return
	}
	gotFrom, gotTo := ends(packet)
	if gotFrom.String() != from || gotTo.String() != to {
		w.t.Errorf("%s: got %s to %s, want %s to %s", what, gotFrom, gotTo, from, to)
	}
}

func ends(packet []byte) (from, to netip.Addr) {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	}
	return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
}

// datagram is a whole UDP packet with its checksums.
func datagram(from, to netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	binary.BigEndian.PutUint16(udp[6:], ^sum(pseudo(from.Addr(), to.Addr(), 17, len(udp)), udp))
	if from.Addr().Is4() {
		head := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
		head = append(append(head, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(head[2:], uint16(len(head)+len(udp)))
		binary.BigEndian.PutUint16(head[10:], ^sum(0, head))
		return append(head, udp...)
	}
	head := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(udp)))
	head = append(append(append(head, 17, 64), from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(head, udp...)
}

// sum is the ones' complement sum.
func sum(start uint32, b []byte) uint16 {
	for len(b) > 1 {
		start += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

func pseudo(from, to netip.Addr, protocol byte, length int) uint32 {
	return uint32(sum(uint32(protocol)+uint32(length), append(from.AsSlice(), to.AsSlice()...)))
}

func ap(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// arrives says whether a socket gets a datagram, and from whom.
func arrives(t *testing.T, conn net.PacketConn, patience time.Duration) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, from, err := conn.ReadFrom(make([]byte, 2048))
	if err != nil {
		return ""
	}
	return from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()
}

func TestThroughTheTUN(t *testing.T) {
	bothFirewalls(t, func(t *testing.T, with func(link.Config) link.Config) {
		s := newSite(t, false)
		w := openWire(t, s.node, "labt")
		s.set(with(s.config))
		for family, far := range map[string]struct{ far, guest, service, here, gateway, outside string }{
			"IPv4": {"10.170.0.5", "10.170.0.9", "10.175.0.1", "10.160.0.3", "10.160.0.1", "192.0.2.3"},
			"IPv6": {"fd5c:ae11:9::a:5", "fd5c:ae11:9::a:9", "fd5c:ae11:9::f:1", "fd5c:ae11:9::3", "fd5c:ae11:9::1", "2001:db8::3"},
		} {
			port := func(address string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(address), 700) }
			inbox := s.other.ListenPacket("udp", port(far.here).String())
			send := func(conn net.PacketConn, to string) {
				_, _ = conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(port(to)))
			}
			send(inbox, far.far)
			w.wants(family+": a container's packet", far.here, far.far)
			w.write(nil, datagram(port(far.far), port(far.here), "x"))
			if got := arrives(t, inbox, patience); got != far.far {
				t.Errorf("%s: from the tunnel came %q, want %s", family, got, far.far)
			}
			send(s.node.ListenPacket("udp", ":0"), far.service)
			w.wants(family+": the host's packet", far.gateway, far.service)
			w.write(nil, datagram(port(far.gateway), port(far.here), "x")) // a service that turned out to be here
			if got := arrives(t, inbox, patience); got != far.gateway {
				t.Errorf("%s: the host's own came back as %q, want %s", family, got, far.gateway)
			}
			w.write(nil, datagram(port(far.guest), port(far.service), "x"))
			w.wants(family+": a guest's packet to a service", far.guest, far.service)
			outside := s.server.ListenPacket("udp", port(far.outside).String())
			w.write(nil, datagram(port(far.guest), port(far.outside), "x"))
			if got := arrives(t, outside, silence); got != "" {
				t.Errorf("%s: the tunnel reached the node's surroundings as %s", family, got)
			}
			if _, packet := w.read(silence); packet != nil { // a redirect would be here by now
				t.Errorf("%s: %x came out of the TUN device besides", family, packet)
			}
		}
	})
}

// TestPartialChecksums: what a container leaves to the hardware reaches the TUN device as it was, still to be finished, and in pieces larger than the MTU.
func TestPartialChecksums(t *testing.T) {
	s := newSite(t, false)
	w := openWire(t, s.node, "labt")
	s.set(s.config)
	for _, far := range []string{"10.170.0.5", "fd5c:ae11:9::a:5"} {
		done := make(chan error, 1)
		go func() {
			conn, err := s.other.Dial(t.Context(), "tcp", net.JoinHostPort(far, "80"))
			if err == nil {
				conn.Close()
			}
			done <- err
		}()
		header, packet := w.read(patience)
		if packet == nil {
			t.Fatal("no packet")
		}
		from, to := ends(packet)
		start, offset := int(binary.NativeEndian.Uint16(header[6:])), int(binary.NativeEndian.Uint16(header[8:]))
		if header[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || packet[start+13] != 0x02 {
			t.Errorf("to %s: got header %x of a packet with flags %x, want a SYN whose checksum is to be finished", far, header, packet[start+13])
		}
		segment := packet[start:]
		want := uint16(pseudo(from, to, 6, len(segment)))
		if got := binary.BigEndian.Uint16(segment[offset:]); got != want {
			t.Errorf("to %s: the checksum holds %x, want the pseudo header's %x", far, got, want)
		}
		// Refused, with a checksum that is to be finished as well: the container believes it.
		reset := answer(packet, start)
		w.write(header, reset)
		if err := <-done; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("to %s: got %v, want it refused", far, err)
		}
	}
}

// answer turns a SYN into the reset that answers it; its checksum is the pseudo header's.
func answer(packet []byte, start int) []byte {
	from, to := ends(packet)
	reply := bytes.Clone(packet[:start+20])
	if from.Is4() {
		copy(reply[12:], to.AsSlice())
		copy(reply[16:], from.AsSlice())
		binary.BigEndian.PutUint16(reply[2:], uint16(len(reply)))
		reply[10], reply[11] = 0, 0
		binary.BigEndian.PutUint16(reply[10:], ^sum(0, reply[:start]))
	} else {
		copy(reply[8:], to.AsSlice())
		copy(reply[24:], from.AsSlice())
		binary.BigEndian.PutUint16(reply[4:], 20)
	}
	segment, syn := reply[start:], packet[start:]
	copy(segment[0:], syn[2:4])
	copy(segment[2:], syn[0:2])
	binary.BigEndian.PutUint32(segment[4:], 0)
	binary.BigEndian.PutUint32(segment[8:], binary.BigEndian.Uint32(syn[4:])+1)
	segment[12], segment[13] = 5<<4, 0x14
	binary.BigEndian.PutUint16(segment[16:], uint16(pseudo(to, from, 6, len(segment))))
	return reply
}

// TestEnginesDoNotMix: each engine's packets go through its own tunnel, also to the containers of the other on the same host.
func TestEnginesDoNotMix(t *testing.T) {
	s := newSite(t, false)
	s.node.Tap("edget")
	first, second := openWire(t, s.node, "labt"), openWire(t, s.node, "edget")
	s.set(s.config)
	edge := s.config
	edge.Name, edge.Ports = "edge", nil
	edge.Addresses = []netip.Prefix{netip.MustParsePrefix("10.160.0.65/26")}
	box := nettest.NewHost(t, "box")
	s.node.Do(func() {
		if _, err := link.Set(edge); err != nil {
			t.Fatal(err)
		}
		_, err := attach.Attach(t.Context(), attach.Attachment{Network: "edge", ID: "box", NetNS: box.Path(), MTU: 1420,
			Addresses: []netip.Addr{netip.MustParseAddr("10.160.0.66")}, Gateways: []netip.Addr{netip.MustParseAddr("10.160.0.65")}})
		if err != nil {
			t.Fatal(err)
		}
	})
	_, _ = box.ListenPacket("udp", ":700").WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap("10.160.0.3:700")))
	second.wants("from edge to lab", "10.160.0.66", "10.160.0.3")
	inbox := s.other.ListenPacket("udp4", ":700")
	first.write(nil, datagram(ap("10.160.0.66:700"), ap("10.160.0.3:700"), "x"))
	if got := arrives(t, inbox, patience); got != "10.160.0.66" {
		t.Errorf("got %q by lab's tunnel, want 10.160.0.66", got)
	}
	_, _ = inbox.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap("10.160.0.66:700")))
	first.wants("from lab to edge", "10.160.0.3", "10.160.0.66")
	for name, gateway := range map[string]*wire{"10.160.0.1": first, "10.160.0.65": second} {
		conn := s.node.ListenPacket("udp4", fmt.Sprintf("%s:700", name))
		_, _ = conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap("10.170.0.5:700")))
		gateway.wants("from the gateway", name, "10.170.0.5")
	}
}
