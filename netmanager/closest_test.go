//go:build linux

package netmanager_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
)

// The closest of two instances on other hosts is the one that answers sooner over a real delay, by address and by name, also the plain one
// where that stands for the closest, and the other one once that is so.
func TestClosestIsTheQuicker(t *testing.T) {
	t.Parallel()
	w := &world{Lab: labtest.New(t), t: t}
	var ends []nettest.End
	for i := range 3 {
		ends = append(ends, nettest.End{Host: nettest.NewHost(t, fmt.Sprintf("host%d", i)), Interface: "eth0", Addresses: []string{underlay(i) + "/24"}})
	}
	delays := slowSwitch(t, ends...)
	const quick, slow = 5 * time.Millisecond, 50 * time.Millisecond
	delays[1].Store(int64(slow))
	delays[2].Store(int64(quick))
	for i := range ends {
		w.nodes = append(w.nodes, w.Node(ends[i].Host, underlay(i)))
	}
	w.Set()
	client, first, second := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[2].Container()
	web, plain := w.Service("web", first, second), w.Service("plain", first, second)
	plain.PlainClosest = true
	w.Set()
	serveTCP(first, ":80")
	serveTCP(second, ":80")
	resolver := resolver(client, w.Config(w.nodes[0]).Gateway)
	goesTo := func(want *labtest.Container) {
		t.Helper()
		began := time.Now()
		labtest.Eventually(t, 6*soon, "the closest to be "+want.ID, func() bool { // the times are looked at every five seconds
			for range 4 { // as long as the times are not known it is one after the other
				if who(t, client, web.Closest, 80) != want.ID {
					return false
				}
			}
			return true
		})
		t.Logf("%s is the closest after %s", want.ID, time.Since(began))
		named, err := resolver.LookupNetIP(t.Context(), "ip4", web.FQDN("closest"))
		if err != nil || len(named) != 1 {
			t.Fatalf("closest by name: got %v, %v", named, err)
		}
		for _, address := range []netip.Addr{web.Closest, web.Closest6, named[0]} {
			for range 5 {
				if got := who(t, client, address, 80); got != want.ID {
					t.Errorf("%s: got %s, want %s", address, got, want.ID)
				}
			}
		}
		for _, family := range []string{"ip4", "ip6"} {
			named, err := resolver.LookupNetIP(t.Context(), family, plain.FQDN())
			if err != nil || len(named) != 1 {
				t.Fatalf("a plain name for the closest: got %v, %v", named, err)
			}
			for range 3 {
				if got := who(t, client, named[0], 80); got != want.ID {
					t.Errorf("a plain name for the closest, %s: got %s, want %s", named[0], got, want.ID)
				}
			}
		}
		seen := map[string]int{}
		for range 10 {
			seen[who(t, client, web.RoundRobin, 80)]++
		}
		if seen[first.ID] != 5 {
			t.Errorf("round robin: got %v, want five each", seen)
		}
	}
	goesTo(second)
	delays[1].Store(int64(quick))
	delays[2].Store(int64(slow))
	goesTo(first)
}

// slowSwitch joins hosts on one segment whose every frame takes the delay of the port that it comes in by and of the one that it leaves by, in this
// program: a kernel without netem has no delay of its own.
func slowSwitch(t *testing.T, ends ...nettest.End) []atomic.Int64 {
	t.Helper()
	h := nettest.NewHost(t, "slow")
	delays, ports := make([]atomic.Int64, len(ends)), make([]*os.File, len(ends))
	for i, end := range ends {
		name := fmt.Sprintf("port%d", i)
		nettest.Cable(t, nettest.End{Host: h, Interface: name}, end)
		ports[i] = openPort(t, h, name)
	}
	var wg sync.WaitGroup
	for i, from := range ports {
		var to []chan frame
		for j, port := range ports {
			if j == i {
				continue
			}
			way := make(chan frame, 10_000)
			to = append(to, way)
			wg.Go(func() {
				for f := range way {
					time.Sleep(time.Until(f.came.Add(time.Duration(delays[i].Load() + delays[j].Load()))))
					_, _ = port.Write(f.b) // one that is lost is lost
				}
			})
		}
		wg.Go(func() {
			buf := make([]byte, 1<<17)
			for {
				n, err := from.Read(buf)
				if err != nil {
					break
				}
				f := frame{time.Now(), append([]byte(nil), buf[:n]...)}
				for _, way := range to {
					way <- f
				}
			}
			for _, way := range to {
				close(way)
			}
		})
	}
	t.Cleanup(func() {
		for _, port := range ports {
			_ = port.Close()
		}
		wg.Wait()
	})
	return delays
}

// frame is one on its way, with what the kernel says of checksums and segments that are still to be made.
type frame struct {
	came time.Time
	b    []byte
}

// openPort opens what comes in by an interface, and leaves by it.
func openPort(t *testing.T, h *nettest.Host, name string) (port *os.File) {
	t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	h.Do(func() {
		device, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		port = os.NewFile(uintptr(fd), name)
		for option, value := range map[int]int{unix.PACKET_VNET_HDR: 1, unix.PACKET_IGNORE_OUTGOING: 1} {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}); err != nil {
			t.Fatal(err)
		}
	})
	return port
}
