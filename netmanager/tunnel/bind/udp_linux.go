package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/tailscale/wireguard-go/conn"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	socketBuffer  = 7 << 20 // a burst of a fast link while the decrypting goroutines are away
	maxDatagram   = 1<<16 - 1
	maxSegments   = 64 // the kernel's limit for one UDP_SEGMENT
	cmsgPktinfo   = unix.SizeofInet6Pktinfo
	maxPayload4   = maxDatagram - 20 - 8
	maxPayload6   = maxDatagram - 8
	overhead4     = 20 + 8 // IP and UDP
	overhead6     = 40 + 8
	batch         = conn.IdealBatchSize
	received      = 2   // datagrams at once: a slab has room for two of the largest
	controlLength = 128 // pktinfo and the segment size
)

// destination is where a datagram goes and, where that is known to matter, the address of ours that it leaves from. It does not change.
type destination struct {
	addr netip.AddrPort
	udp  *net.UDPAddr
	src  []byte // IP_PKTINFO as the kernel takes it; nil: as the kernel routes
}

func newDestination(addr netip.AddrPort) *destination {
	return &destination{addr: addr, udp: net.UDPAddrFromAddrPort(addr)}
}

// overhead returns the bytes of IP and UDP before a payload.
func overhead(a netip.Addr) int {
	if a.Is4() {
		return overhead4
	}
	return overhead6
}

// batcher is what ipv4.PacketConn and ipv6.PacketConn have in common.
type batcher interface {
	ReadBatch(ms []ipv6.Message, flags int) (int, error)
	WriteBatch(ms []ipv6.Message, flags int) (int, error)
}

// socket is a UDP socket of one family. It sends and receives batches, and lets the kernel cut and join equal segments. What it
// sends may be fragmented on the way: a datagram that is too large for a link must arrive all the same.
type socket struct {
	conn  *net.UDPConn
	raw   syscall.RawConn
	pc    batcher
	v6    bool
	gso   atomic.Bool
	gro   bool
	probe sync.Mutex     // held while the socket is set to not fragment
	pool  sync.Pool      // of *[]ipv6.Message, to send
	in    []ipv6.Message // reused: a socket has one receiver
}

// messages returns room for n messages, which grows where they hold more than one packet.
func messages(n int) []ipv6.Message {
	ms := make([]ipv6.Message, n)
	for i := range ms {
		ms[i].Buffers = make(net.Buffers, 1)
		ms[i].OOB = make([]byte, 0, controlLength)
	}
	return ms
}

// listen opens the sockets of both families on one port. One family may be missing on this machine.
func listen(port uint16) (sockets []*socket, bound uint16, err error) {
	for try := 0; ; try++ {
		sockets, bound, err = listenOnce(port)
		if err == nil || port != 0 || try == 20 || !errors.Is(err, syscall.EADDRINUSE) {
			return sockets, bound, err // a port that is free for IPv4 may be taken for IPv6: only then another one
		}
	}
}

func listenOnce(port uint16) ([]*socket, uint16, error) {
	var sockets []*socket
	for _, network := range []string{"udp4", "udp6"} {
		s, err := listenOn(network, port)
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue
		}
		if err != nil {
			closeAll(sockets)
			return nil, 0, err
		}
		sockets = append(sockets, s)
		port = s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	if len(sockets) == 0 {
		return nil, 0, fmt.Errorf("listen on port %d: %w", port, syscall.EAFNOSUPPORT)
	}
	return sockets, port, nil
}

func closeAll(sockets []*socket) {
	for _, s := range sockets {
		_ = s.conn.Close()
	}
}

func listenOn(network string, port uint16) (*socket, error) {
	s := &socket{v6: network == "udp6", in: messages(received)}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = s.configure(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.conn = pc.(*net.UDPConn)
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		_ = s.conn.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	if s.pc = ipv4.NewPacketConn(s.conn); s.v6 {
		s.pc = ipv6.NewPacketConn(s.conn)
	}
	s.pool.New = func() any {
		ms := messages(batch)
		return &ms
	}
	return s, nil
}

func (s *socket) configure(fd int) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer) // as much as we may have
	}
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.gso.Store(err == nil)
	s.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	if s.v6 {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
			s.fragment(fd, true))
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1), s.fragment(fd, true))
}

// fragment says whether what leaves the socket may be cut on the way. IPv4 leaves that to the routers, whatever they told before; in IPv6
// only the sender cuts, so it must believe them.
func (s *socket) fragment(fd int, may bool) error {
	switch {
	case s.v6 && may:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	case s.v6:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	case may:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	default:
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
}

// sendWhole sends a datagram that no one may cut. Others that leave the socket in the same microseconds are not cut either: they may be lost if
// they are too large, as on any link, which is cheaper than a lock on every packet.
func (s *socket) sendWhole(b []byte, to *destination) error {
	s.probe.Lock()
	defer s.probe.Unlock()
	var err error
	if e := s.raw.Control(func(fd uintptr) { err = s.fragment(int(fd), false) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	_, _, sent := s.conn.WriteMsgUDPAddrPort(b, to.src, to.addr)
	if e := s.raw.Control(func(fd uintptr) { err = s.fragment(int(fd), true) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	return sent
}

func (s *socket) sendOne(b []byte, to *destination) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, to.src, to.addr)
	return err
}

// send sends a batch, each packet from offset on.
func (s *socket) send(bufs [][]byte, offset int, to *destination) error {
	ms := s.pool.Get().(*[]ipv6.Message)
	gso := s.gso.Load()
	n := s.fill(*ms, bufs, offset, to, gso)
	err := s.write((*ms)[:n])
	release((*ms)[:n])
	s.pool.Put(ms)
	if err == nil || !gso {
		return err
	}
	if errors.Is(err, syscall.EIO) { // the device cannot make checksums
		s.gso.Store(false)
	} else if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EMSGSIZE) {
		return err
	}
	// Segments that are larger than the link do not go in a train; alone they go in fragments. What went already is dropped as a repeat.
	err = nil
	for _, b := range bufs {
		err = errors.Join(err, s.sendOne(b[offset:], to))
	}
	return err
}

func (s *socket) write(ms []ipv6.Message) error {
	for len(ms) > 0 {
		n, err := s.pc.WriteBatch(ms, 0)
		if err != nil {
			return err
		}
		ms = ms[n:]
	}
	return nil
}

// fill lays out bufs in messages: runs of equal size go as one train, whose last one may be shorter.
func (s *socket) fill(ms []ipv6.Message, bufs [][]byte, offset int, to *destination, gso bool) int {
	maxPayload := maxPayload4
	if s.v6 {
		maxPayload = maxPayload6
	}
	n, total, size := 0, 0, 0
	open := false // the last message takes more
	for _, b := range bufs {
		b = b[offset:]
		if open && len(b) <= size && total+len(b) <= maxPayload && len(ms[n-1].Buffers) < maxSegments {
			ms[n-1].Buffers = append(ms[n-1].Buffers, b)
			total += len(b)
			open = len(b) == size
			if len(ms[n-1].Buffers) == 2 {
				ms[n-1].OOB = appendSegment(ms[n-1].OOB, uint16(size))
			}
			continue
		}
		m := &ms[n]
		m.Buffers = append(m.Buffers[:0], b)
		m.OOB = append(m.OOB[:0], to.src...)
		m.Addr = to.udp
		n, total, size, open = n+1, len(b), len(b), gso
	}
	return n
}

func appendSegment(oob []byte, size uint16) []byte {
	space := unix.CmsgSpace(2)
	at := len(oob)
	oob = append(oob, make([]byte, space)...)
	hdr := (*unix.Cmsghdr)(unsafe.Pointer(&oob[at]))
	hdr.Level = unix.IPPROTO_UDP
	hdr.Type = unix.UDP_SEGMENT
	hdr.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&oob[at+unix.CmsgLen(0)])) = size
	return oob
}

// release takes the packets out of the messages.
func release(ms []ipv6.Message) {
	for i := range ms {
		clear(ms[i].Buffers)
		ms[i] = ipv6.Message{Buffers: ms[i].Buffers[:1], OOB: ms[i].OOB[:0]}
	}
}

// receive reads datagrams into slab and calls found for each; where the kernel joined some of one sender, for each part.
func (s *socket) receive(slab []byte, found func(offset, size int, from netip.AddrPort, control []byte) error) error {
	ms := s.in[:min(max(1, len(slab)/maxDatagram), received)]
	defer release(ms)
	for i := range ms {
		ms[i].Buffers[0] = slab[i*maxDatagram : min((i+1)*maxDatagram, len(slab))]
		ms[i].OOB = ms[i].OOB[:controlLength]
	}
	n, err := s.pc.ReadBatch(ms, 0)
	if err != nil {
		return err
	}
	for i, m := range ms[:n] {
		from, ok := m.Addr.(*net.UDPAddr)
		if !ok || m.N == 0 {
			continue
		}
		addr := from.AddrPort()
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		src, segment := control(m.OOB[:m.NN])
		if !s.gro || segment <= 0 {
			segment = m.N
		}
		for at := 0; at < m.N; at += segment {
			if err := found(i*maxDatagram+at, min(segment, m.N-at), addr, src); err != nil {
				return err
			}
		}
	}
	return nil
}

// control returns the packet information and the segment size in a received control message. The first is as it is sent back: whole.
func control(oob []byte) (src []byte, segment int) {
	for len(oob) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return src, segment
		}
		switch {
		case hdr.Level == unix.IPPROTO_UDP && hdr.Type == unix.UDP_GRO && len(data) >= 2:
			segment = int(*(*uint16)(unsafe.Pointer(&data[0])))
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			src = oob[:min(unix.CmsgSpace(unix.SizeofInet4Pktinfo), len(oob))]
		case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			src = oob[:min(unix.CmsgSpace(unix.SizeofInet6Pktinfo), len(oob))]
		}
		oob = rest
	}
	return src, segment
}
