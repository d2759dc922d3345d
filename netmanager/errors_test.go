package netmanager_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/labtest"
)

// dialUDP connects a container's socket that has these options.
func dialUDP(t *testing.T, c *labtest.Container, to netip.AddrPort, options func(fd int) error) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: soon, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = options(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	var conn net.Conn
	if err := c.Try(func() (err error) {
		conn, err = d.DialContext(t.Context(), "udp", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
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
				conn := dialUDP(t, client, netip.AddrPortFrom(to, 81), func(fd int) error {
					if to.Is6() {
						return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops))
					}
					return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops))
				})
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
