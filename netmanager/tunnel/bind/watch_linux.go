package bind

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long changes of addresses are gathered: a new network brings several.
const settle = 30 * time.Millisecond

// watchAddresses returns a function that sends to moved (which has room for one) when an address or a route of
// this machine came or went, until stop.
func watchAddresses() (watch func(moved chan<- struct{}), stop func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("watch addresses: %w", err)
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, nil, fmt.Errorf("watch addresses: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	watch = func(moved chan<- struct{}) {
		buf := make([]byte, 1<<13)
		for {
			_, err := file.Read(buf) // what has changed is read anew anyway
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			_ = file.SetReadDeadline(time.Now().Add(settle))
			for err == nil {
				_, err = file.Read(buf)
			}
			_ = file.SetReadDeadline(time.Time{})
			select {
			case moved <- struct{}{}:
			default:
			}
		}
	}
	return watch, func() { file.Close() }, nil
}
