package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	headerSize = 12
	// maxQuery bounds a query: names, types and options fill no more.
	maxQuery = 4096
	// plainSize is what fits into an answer by UDP for a client that says nothing of its own.
	plainSize = 512
	// mostByUDP bounds what a client may ask for: longer answers come by TCP.
	mostByUDP = 4096
	// ownSize is how much we say that we take by UDP.
	ownSize = 1232
	// tcpPatience is how long a connection may be idle, and how long a client may take for a query or an answer.
	tcpPatience = 5 * time.Second
	// readPause keeps a socket that fails for a while from taking the processor.
	readPause = 50 * time.Millisecond
)

// listen binds both sockets of an address. They may be bound before the address is there, or while an IPv6 address is still being checked for
// duplicates.
func listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, net.Listener, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) // of both families
		})
		return errors.Join(err, failed)
	}}
	packets, err := lc.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, nil, fmt.Errorf("listen %s: %w", at, err)
	}
	udp, ok := packets.(*net.UDPConn)
	if !ok {
		_ = packets.Close()
		return nil, nil, fmt.Errorf("listen %s: not a UDP socket", at)
	}
	if bound, ok := udp.LocalAddr().(*net.UDPAddr); ok { // port 0 has become a number
		at = bound.AddrPort()
	}
	tcp, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		_ = udp.Close()
		return nil, nil, fmt.Errorf("listen %s: %w", at, err)
	}
	return udp, tcp, nil
}

// serveUDP reads queries. What the table knows is answered here at once; what must wait waits in a goroutine of its own.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	buffer := make([]byte, maxQuery+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("read %s: %w", conn.LocalAddr(), err)
		}
		if err != nil { // about one packet, or for want of memory: the socket itself is whole
			select {
			case <-time.After(readPause):
			case <-ctx.Done():
			}
			continue
		}
		client := from.Addr().Unmap()
		if !s.welcome(client) {
			continue
		}
		send := func(reply []byte) {
			if reply != nil {
				_, _ = conn.WriteToUDPAddrPort(reply, from) // the client asks again
			}
		}
		reply, later := s.begin(buffer[:n], false)
		if later == nil {
			send(reply)
			continue
		}
		if !s.busy.take(client) {
			send(later.fail(wire.RcodeServerFailure))
			continue
		}
		wg.Go(func() {
			defer s.busy.give(client)
			send(later.answer(ctx))
		})
	}
}

// serveTCP accepts connections, a bounded number from each client.
func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		}
		if err != nil { // a connection that ended before, or no descriptors left: the listener itself is whole
			select {
			case <-time.After(readPause):
			case <-ctx.Done():
			}
			continue
		}
		client, ok := clientOf(conn)
		switch {
		case !ok || !s.welcome(client):
			conn.Close()
		case !s.conns.take(client):
			conn.Close()
		default:
			wg.Go(func() {
				defer s.conns.give(client)
				s.converse(ctx, conn, client)
			})
		}
	}
}

func clientOf(c net.Conn) (netip.Addr, bool) {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return a.AddrPort().Addr().Unmap(), true
}

// converse answers one query after the other until the client has had enough.
func (s *Server) converse(ctx context.Context, conn net.Conn, client netip.Addr) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for {
		if conn.SetDeadline(time.Now().Add(tcpPatience)) != nil {
			return
		}
		query, err := readFramed(conn, maxQuery)
		if err != nil {
			return
		}
		reply, later := s.begin(query, true)
		if later != nil {
			reply = s.wait(ctx, later, client)
		}
		if reply == nil || conn.SetDeadline(time.Now().Add(tcpPatience)) != nil || writeFramed(conn, reply) != nil {
			return
		}
	}
}

func (s *Server) wait(ctx context.Context, q *query, client netip.Addr) []byte {
	if !s.busy.take(client) {
		return q.fail(wire.RcodeServerFailure)
	}
	defer s.busy.give(client)
	return q.answer(ctx)
}

// readFramed reads a message with its length before it.
func readFramed(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > most {
		return nil, fmt.Errorf("a message of %d bytes, at most %d", n, most)
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeFramed(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(min(len(m), 0xffff))), m...))
	return err
}
