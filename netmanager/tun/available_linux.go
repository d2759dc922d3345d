package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Available says why this process cannot have a TUN device, nil where it can. It makes one that is gone at once.
func Available() error {
	req, err := unix.NewIfreq("") // the kernel finds a name
	if err != nil {
		return err
	}
	req.SetUint16(flags)
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("this kernel offers no TUN device (try: modprobe tun): %w", &os.PathError{Op: "open", Path: clonePath, Err: err})
	case err != nil:
		return fmt.Errorf("no right to a TUN device (run as root, or give CAP_NET_ADMIN): %w", &os.PathError{Op: "open", Path: clonePath, Err: err})
	}
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("no right to a TUN device (run as root, or give CAP_NET_ADMIN): %w", err)
	}
	return nil
}
