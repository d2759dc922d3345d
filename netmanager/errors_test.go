//go:build linux

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
			for _, hops := range []int{1, 2} {
				if hops == 2 && server == near {
					continue // it is there by then
				}
				conn := dialWith(t, client, func(fd int) error {
					if to.Is6() {
						return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops))
					}
					return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops))
				}, new(net.UDPAddr), netip.AddrPortFrom(to, 81))
				if _, err := conn.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(soon))
				if n, err := conn.Read(make([]byte, 10)); !errors.Is(err, unix.EHOSTUNREACH) {
					t.Fatalf("%s on %s after %d hops: got %d bytes, %v, want it unreachable", to, server.ID, hops, n, err)
				}
			}
		}
	}
}

// Who sends to a port of a service at which nobody listens hears so, as from a host.
func TestClosedPort(t *testing.T) {
	w := newWorld(t, 2)
	client, near, far := w.nodes[0].Container(), w.nodes[0].Container(), w.nodes[1].Container()
	web, beside := w.Service("web", far), w.Service("beside", near)
	w.Set()
	for _, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6, web.Closest, web.Closest6, web.Instances[0].Service, web.Instances[0].Service6,
		far.Address, far.Address6, beside.RoundRobin, beside.RoundRobin6, beside.Closest6, beside.Instances[0].Service} {
		conn, err := client.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(soon))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to %s: got %v, want it refused", to, err)
		}
		_ = conn.Close()
		if _, err := askTCP(t, client, to, 9); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("TCP to %s: got %v, want it refused", to, err)
		}
	}
}
