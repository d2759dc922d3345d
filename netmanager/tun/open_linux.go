package tun

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

const clonePath = "/dev/net/tun"

// flags must be the same whenever a persistent device is taken up again.
const flags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// Open takes up the TUN device of that name, or makes it, and sets its MTU. Close of the device leaves it in the kernel; Remove does not.
// ErrInUse when another process has it open.
func Open(name string, mtu int) (Device, error) {
	file, err := attach(name)
	if err != nil {
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	if err := persist(file, true); err != nil {
		return nil, errors.Join(fmt.Errorf("keep tun %s: %w", name, err), file.Close())
	}
	dev, err := tun.CreateTUNFromFile(file, mtu) // it closes the file on error
	if err != nil {
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	return &device{dev, file}, nil
}

// Remove takes the TUN device of that name out of the kernel. One that does not exist is no error.
func Remove(name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil
	}
	file, err := attach(name)
	if err != nil {
		return fmt.Errorf("remove tun %s: %w", name, err)
	}
	err = persist(file, false)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("remove tun %s: %w", name, err)
	}
	return nil
}

// attach returns the open device; the file is not blocking, as CreateTUNFromFile wants it.
func attach(name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	req.SetUint16(flags)
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clonePath, Err: err}
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = ErrInUse
		}
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), clonePath), nil
}

func persist(file *os.File, on bool) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	value := 0
	if on {
		value = 1
	}
	var ioctl error
	err = conn.Control(func(fd uintptr) { ioctl = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, value) })
	return errors.Join(err, ioctl)
}
