//go:build linux

// Package attach gives a network namespace its interface on the overlay: one end of a veth pair, made directly inside it, the other on the
// bridge that package link keeps. The namespace belongs to whoever made it and goes with it, and so does the pair; Detach takes a pair away
// before that, and Prune those that nobody knows any more. All state is in the kernel: what is attached is read from there, so that a
// restarted engine takes it up again.
package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"unicode"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/link"
)

// Interface is what the interface is called inside the namespace.
const Interface = "eth0"

// ErrNoNamespace says that the namespace is gone, and with it whoever was to be attached.
var ErrNoNamespace = errors.New("the network namespace is gone")

// Attachment is one namespace's place on the overlay.
type Attachment struct {
	// Network is the engine's name, as in link.Config.
	Network string
	// ID is the caller's name for the attachment; it is in the host's link as its alias, so at most 200 bytes of what can be printed.
	ID string
	// NetNS is the namespace as a file, such as /proc/<pid>/ns/net.
	NetNS string
	// Addresses are the interface's, one for IPv4 and at most one for IPv6. Nothing but the gateway is beside them on the link.
	Addresses []netip.Addr
	// Gateways are the bridge's addresses, one for each family of Addresses.
	Gateways []netip.Addr
	// MTU is the interface's.
	MTU int

	oldKernel bool // for tests: as if the kernel had no classifiers
}

// Validate reports everything that is wrong with the attachment.
func (a Attachment) Validate() error {
	var errs []error
	if a.Network == "" || len(a.Network) > 8 {
		errs = append(errs, fmt.Errorf("network %q is not of 1 to 8 characters", a.Network))
	}
	if a.ID == "" || len(a.ID) > 200 || strings.ContainsFunc(a.ID, func(r rune) bool { return !unicode.IsGraphic(r) || r == ' ' }) {
		errs = append(errs, fmt.Errorf("id %q is empty, too long or not to be printed", a.ID))
	}
	if a.NetNS == "" {
		errs = append(errs, errors.New("no network namespace"))
	}
	if a.MTU < 1280 || a.MTU > 65535 {
		errs = append(errs, fmt.Errorf("mtu %d is not within 1280 and 65535", a.MTU))
	}
	if !slices.ContainsFunc(a.Addresses, netip.Addr.Is4) {
		errs = append(errs, errors.New("no IPv4 address"))
	}
	for i, p := range a.Addresses {
		if !p.IsValid() || !a.gateway(p.Is4()).IsValid() {
			errs = append(errs, fmt.Errorf("address %s has no gateway of its family", p))
		}
		if slices.ContainsFunc(a.Addresses[:i], func(q netip.Addr) bool { return q.Is4() == p.Is4() }) {
			errs = append(errs, fmt.Errorf("address %s is the second of its family", p))
		}
	}
	return errors.Join(errs...)
}

// gateway is that of the family.
func (a Attachment) gateway(v4 bool) netip.Addr {
	for _, g := range a.Gateways {
		if g.Is4() == v4 {
			return g
		}
	}
	return netip.Addr{}
}

// main is the address by which the interface is named and from which its hardware address is made.
func (a Attachment) main() netip.Addr {
	for _, p := range a.Addresses {
		if p.Is4() {
			return p
		}
	}
	return netip.Addr{}
}

// Attach gives the namespace its interface, with its addresses, its default routes and the entries that spare the first packet a question to
// its neighbour. When it returns the network works. It may be repeated: what is there and as it shall be is left alone, anything else of that
// ID or in the interface's place is replaced. The bridge must be there. walled says that the container can use no addresses but these; where the
// kernel has no classifier for that, it can reach no other container past the host's routing all the same, but for its published ports.
func Attach(ctx context.Context, a Attachment) (walled bool, err error) {
	if err := a.Validate(); err != nil {
		return false, fmt.Errorf("attach %s: %w", a.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if walled, err = attach(a); err != nil {
		return false, fmt.Errorf("attach %s: %w", a.ID, err)
	}
	return walled, nil
}

func attach(a Attachment) (bool, error) {
	namespace, err := openNamespace(a.NetNS)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(namespace) }()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	bridge, err := host.LinkByName(link.Bridge(a.Network))
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", link.Bridge(a.Network), err)
	}
	if err := provide(host, a, bridge, namespace); err != nil {
		return false, err
	}
	if err := within(namespace, func() error { return configure(a, bridge.Attrs().HardwareAddr) }); err != nil {
		return false, err
	}
	port, err := host.LinkByName(a.hostEnd())
	if err != nil {
		return false, fmt.Errorf("link %s: %w", a.hostEnd(), err)
	}
	if err := neighbours(host, a, bridge, port); err != nil {
		return false, err
	}
	walled, err := wall(host, a, port, bridge.Attrs().HardwareAddr)
	if err != nil {
		return false, err
	}
	return walled, setPort(a, !walled)
}

// openNamespace opens the namespace's file; what is there instead of one is refused by the kernel later.
func openNamespace(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return -1, fmt.Errorf("%w: %s", ErrNoNamespace, path)
	}
	if err != nil {
		return -1, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return fd, nil
}

// within calls fn with its thread inside the namespace.
func within(namespace int, fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own namespace: %w", err)
	}
	defer func() { _ = unix.Close(home) }()
	if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace: %w", err)
	}
	err = fn()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and ends with its goroutine: nobody else may run in there.
		return errors.Join(err, fmt.Errorf("leave namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Detach takes an attachment away; one that is not there is no error.
func Detach(network, id string) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("detach %s: netlink: %w", id, err)
	}
	defer host.Close()
	all, err := list(host, network)
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	for _, p := range all {
		if p.id != id {
			continue
		}
		if err := p.remove(host, network); err != nil {
			return fmt.Errorf("detach %s: %w", id, err)
		}
	}
	return nil
}

// Prune takes away every attachment of an engine that keep does not name, half-made ones among them.
func Prune(network string, keep []string) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("prune attachments: netlink: %w", err)
	}
	defer host.Close()
	all, err := list(host, network)
	if err != nil {
		return fmt.Errorf("prune attachments: %w", err)
	}
	var errs []error
	kept := map[string]bool{}
	for _, p := range all {
		name := p.link.Attrs().Name
		if p.id != "" && slices.Contains(keep, p.id) {
			kept[name] = true
		} else if err := p.remove(host, network); err != nil {
			errs = append(errs, fmt.Errorf("prune %s: %w", name, err))
		}
	}
	errs = append(errs, forget(host, network, func(end string) bool { return !kept[end] }))
	return errors.Join(errs...)
}
