package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// errNoReply says that an echo was not answered in time.
var errNoReply = errors.New("no reply")

// ping sends one echo request from a network namespace, this process's own where path is empty, and returns how long the reply took.
func ping(ctx context.Context, path string, to netip.Addr) (time.Duration, error) {
	conn, err := within(path, func() (net.PacketConn, error) {
		if to.Is6() {
			return net.ListenPacket("ip6:ipv6-icmp", "::") //nolint:noctx // it waits for nothing
		}
		return net.ListenPacket("ip4:icmp", "0.0.0.0") //nolint:noctx // it waits for nothing
	})
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	defer conn.Close()                                      //nolint:errcheck // nothing is lost with it
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // as above
	defer stop()
	id := uint16(rand.Uint32()) //nolint:gosec // any number does, and it tells one flow from another
	begun := time.Now()
	if err := conn.SetDeadline(begun.Add(pingWait)); err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	if _, err := conn.WriteTo(echo(to.Is6(), id), &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	for buffer := make([]byte, 1500); ; {
		n, _, err := conn.ReadFrom(buffer)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, errNoReply
		case err != nil:
			return 0, fmt.Errorf("ping %s: %w", to, err)
		case isReply(buffer[:n], to.Is6(), id):
			return time.Since(begun), nil
		}
	}
}

// isReply reports whether a packet is the answer to the echo request of that number: everybody in the namespace is given everybody's.
func isReply(packet []byte, v6 bool, id uint16) bool {
	kind := byte(0)
	if v6 {
		kind = 129
	}
	return len(packet) >= 8 && packet[0] == kind && binary.BigEndian.Uint16(packet[4:]) == id
}

// echo is an echo request with a little to carry.
func echo(v6 bool, id uint16) []byte {
	b := make([]byte, 8, 64)
	b[0] = 8
	if v6 {
		b[0] = 128 // the kernel fills in the checksum, which covers addresses too
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], 1)
	b = append(b, "skerry network trace: how long does this take?"...)
	if v6 {
		return b
	}
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum)) //nolint:gosec // folded to 16 bits
	return b
}

// within opens something in a network namespace. The thread that went there does not come back where it cannot.
func within[T any](path string, open func() (T, error)) (T, error) {
	if path == "" {
		return open()
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		var r result
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = enter(path)
		}
		if err != nil {
			r.err = err
			runtime.UnlockOSThread()
			done <- r
			return
		}
		r.value, r.err = open()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- r
	}()
	r := <-done
	return r.value, r.err
}

func enter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
