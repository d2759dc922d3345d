//go:build linux

package link_test

import (
	"errors"
	"net"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// setHopLimit makes a socket's packets look like those of a neighbour, which advertisements have to.
func setHopLimit(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255) })
	return errors.Join(err, set)
}

// removeTable flushes as an administrator does who knows nothing of us.
func removeTable(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	return conn.Flush()
}
