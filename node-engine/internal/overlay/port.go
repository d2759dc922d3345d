package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// number is a host port.
type number struct {
	protocol string
	port     int
}

// keeper holds the host ports that are published: by a socket for each, bound and never used, so that another program is told that
// the port is taken. What arrives is led to the instance by the kernel before a socket is looked for. It is not safe for concurrent use.
type keeper struct {
	held map[number]socket
}

// socket is what holds a port; where it is negative the port is ours but could not be held.
type socket int

func newKeeper() *keeper { return &keeper{held: map[number]socket{}} }

// take holds every port of want and returns them with the host ports filled in. kept are those of an earlier time: a port that is to be
// chosen is that one again where it can be. On an error nothing is held. The error is driver.ErrPortInUse where somebody has a port.
func (k *keeper) take(want, kept []messages.Port) ([]messages.Port, error) {
	var got []messages.Port
	for _, p := range want {
		p.Protocol = cmp.Or(p.Protocol, "tcp")
		host, err := k.hold(p, kept)
		if err != nil {
			k.give(got)
			return nil, err
		}
		p.Host = host
		got = append(got, p)
	}
	return got, nil
}

func (k *keeper) hold(p messages.Port, kept []messages.Port) (int, error) {
	if p.Host == 0 {
		for _, old := range kept {
			if old.Container == p.Container && old.Protocol == p.Protocol && k.bind(number{p.Protocol, old.Host}) == nil {
				return old.Host, nil
			}
		}
		return k.choose(p.Protocol)
	}
	err := k.bind(number{p.Protocol, p.Host})
	if errors.Is(err, syscall.EADDRINUSE) {
		return 0, fmt.Errorf("%w: port %d is taken by another program or container on this node", driver.ErrPortInUse, p.Host)
	}
	if err != nil {
		return 0, fmt.Errorf("host port %d/%s: %w", p.Host, p.Protocol, err)
	}
	return p.Host, nil
}

// choose holds a port that nobody has.
func (k *keeper) choose(protocol string) (int, error) {
	for range 100 {
		s, port, err := open(number{protocol: protocol}, false)
		if err != nil {
			return 0, fmt.Errorf("choose a host port: %w", err)
		}
		n := number{protocol, port}
		if _, ours := k.held[n]; ours { // one of ours that could not be held
			s.close()
			continue
		}
		k.held[n] = s
		return port, nil
	}
	return 0, errors.New("choose a host port: there is none")
}

// bind holds one port; syscall.EADDRINUSE where somebody has it.
func (k *keeper) bind(n number) error {
	if _, ours := k.held[n]; ours {
		return syscall.EADDRINUSE
	}
	s, _, err := open(n, false)
	if errors.Is(err, syscall.EADDRINUSE) && free(n) { // old connections alone, which are over in a minute
		s, _, err = open(n, true)
		if errors.Is(err, syscall.EADDRINUSE) {
			s, err = -1, nil
		}
	}
	if err != nil {
		return err
	}
	k.held[n] = s
	return nil
}

// give lets ports go.
func (k *keeper) give(ports []messages.Port) {
	for _, p := range ports {
		n := number{cmp.Or(p.Protocol, "tcp"), p.Host}
		if s, ok := k.held[n]; ok {
			s.close()
			delete(k.held, n)
		}
	}
}

func (k *keeper) close() {
	for n, s := range k.held {
		s.close()
		delete(k.held, n)
	}
}

// free reports whether a program could listen on the port.
func free(n number) bool {
	at := net.JoinHostPort("", strconv.Itoa(n.port))
	if n.protocol == "udp" {
		return false // it has no old connections
	}
	l, err := net.Listen("tcp", at) //nolint:noctx // nothing is waited for
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// open binds a socket to a port on all addresses, of both families where the kernel has both. Not by package net: that would listen.
func open(n number, reuse bool) (socket, int, error) {
	kind := syscall.SOCK_STREAM
	if n.protocol == "udp" {
		kind = syscall.SOCK_DGRAM
	}
	var at syscall.Sockaddr = &syscall.SockaddrInet6{Port: n.port}
	fd, err := syscall.Socket(syscall.AF_INET6, kind|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 0)
	}
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		at = &syscall.SockaddrInet4{Port: n.port}
		fd, err = syscall.Socket(syscall.AF_INET, kind|syscall.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return -1, 0, err
	}
	s := socket(fd)
	if reuse {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = syscall.Bind(fd, at)
	}
	var port int
	if err == nil {
		port, err = boundTo(fd)
	}
	if err != nil {
		s.close()
		return -1, 0, err
	}
	return s, port, nil
}

func boundTo(fd int) (int, error) {
	at, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch at := at.(type) {
	case *syscall.SockaddrInet4:
		return at.Port, nil
	case *syscall.SockaddrInet6:
		return at.Port, nil
	default:
		return 0, fmt.Errorf("a socket of %T", at)
	}
}

func (s socket) close() {
	if s >= 0 {
		syscall.Close(int(s)) //nolint:errcheck // it holds nothing
	}
}
