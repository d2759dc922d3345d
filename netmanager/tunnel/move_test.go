package tunnel

import (
	"net/netip"

	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/nettest"
)

// A flow keeps a TCP stream busy and notes when bytes come back.
type flow struct {
	last    atomic.Int64 // when
	longest atomic.Int64 // pause
	total   atomic.Int64
}

// startFlow writes small messages every few milliseconds to an echo server until the test ends.
func startFlow(t *testing.T, host *nettest.Host, addr string) *flow {
	t.Helper()
	return startFlowOf(t, host, addr, 100)
}

// startFlowOf is startFlow with messages of a size.
func startFlowOf(t *testing.T, host *nettest.Host, addr string, size int) *flow {
	t.Helper()
	c := dialEcho(t, host, addr)
	f := new(flow)
	f.last.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if _, err := c.Write(make([]byte, size)); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			now := time.Now().UnixNano()
			f.longest.Store(max(f.longest.Load(), now-f.last.Swap(now)))
			f.total.Add(int64(n))
		}
	})
	t.Cleanup(func() {
		close(done)
		c.Close()
		wg.Wait()
	})
	return f
}

// pause returns the longest time without an answer since the last call, the present one included, and begins anew.
func (f *flow) pause() time.Duration {
	return time.Duration(max(f.longest.Swap(0), time.Now().UnixNano()-f.last.Load()))
}

// flows waits until answers come in again.
func (f *flow) flows(t *testing.T, limit time.Duration) {
	t.Helper()
	before := f.total.Load()
	for end := time.Now().Add(limit); f.total.Load() < before+1000; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing flows for %v", limit)
		}
	}
}

// readdress takes an interface's address away and gives it another.
func readdress(host *nettest.Host, link, from, to, gateway string) {
	host.Do(func() {
		a, _ := netlink.ParseAddr(from)
		_ = netlink.AddrDel(host.Link(link), a)
	})
	host.Address(link, to)
	if gateway != "" {
		host.Route("default", gateway)
	}
}

func TestAddressChange(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds []natKind
		nats  []NAT
		way   Way
		limit time.Duration
	}{
		{"direct", []natKind{noNAT, noNAT}, []NAT{"none", "none"}, Direct, time.Second},
		{"behind NATs", []natKind{restricted, restricted}, []NAT{"cone", "cone"}, Direct, time.Second},
		{"relayed", []natKind{symmetric, symmetric}, []NAT{"symmetric", "symmetric"}, Relayed, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() {
				c.limit *= 5 // under the race detector all programs of the lab are slow
			}
			l := newLab(t, c.kinds...)
			a, b := l.pair(c.nats...)
			echo(t, b.host, inner)
			f := startFlow(t, a.host, inner)
			a.waitWay(b, c.way, 10*time.Second)
			b.waitWay(a, c.way, 10*time.Second)
			f.flows(t, 5*time.Second)
			f.pause()
			for i, s := range l.sites {
				if s.nat == nil {
					readdress(s.host, "wan", netip.AddrFrom4([4]byte{203, 0, 113, byte(11 + i)}).String()+"/24", netip.AddrFrom4([4]byte{203, 0, 113, byte(111 + i)}).String()+"/24", "")
				} else {
					readdress(s.host, "eth0", "192.168.1.2/24", "192.168.1.99/24", "192.168.1.1")
				}
				f.flows(t, 10*time.Second)
				time.Sleep(500 * time.Millisecond)
				p := f.pause()
				t.Logf("%s: longest pause %v", s.host.Name, p)
				if p > c.limit {
					t.Errorf("%s: a pause of %v, want at most %v", s.host.Name, p, c.limit)
				}
			}
			a.waitWay(b, c.way, 10*time.Second)
		})
	}
}

// A node's public address changes without it seeing that: its NAT comes up anew elsewhere.
func TestNATChangesAddress(t *testing.T) {
	l := newLab(t, restricted, restricted)
	a, b := l.pair("cone", "cone")
	echo(t, b.host, inner)
	f := startFlow(t, a.host, inner)
	a.waitWay(b, Direct, 10*time.Second)
	b.waitWay(a, Direct, 10*time.Second)
	f.flows(t, 5*time.Second)
	f.pause()
	readdress(l.sites[0].nat, "wan", "203.0.113.11/24", "203.0.113.111/24", "")
	f.flows(t, 10*time.Second)
	t.Logf("longest pause %v", f.pause())
	a.waitWay(b, Direct, 20*time.Second)
	b.waitWay(a, Direct, 20*time.Second)
}

// A restart with the same key and port, by force, under an open stream.
func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds []natKind
		nats  []NAT
		way   Way
	}{
		{"direct", []natKind{noNAT, noNAT}, []NAT{"none", "none"}, Direct},
		{"relayed", []natKind{symmetric, symmetric}, []NAT{"symmetric", "symmetric"}, Relayed},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.kinds...)
			a, b := l.pair(c.nats...)
			pa, pb := a.offered(), b.offered()
			echo(t, b.host, inner)
			f := startFlow(t, a.host, inner)
			a.waitWay(b, c.way, 10*time.Second)
			b.waitWay(a, c.way, 10*time.Second)
			for _, n := range []*node{a, b} {
				f.flows(t, 5*time.Second)
				f.pause()
				n.end(syscall.SIGKILL)
				n.start()
				if n == a {
					n.set(pb)
				} else {
					n.set(pa)
				}
				f.flows(t, 10*time.Second)
				t.Logf("%s: longest pause %v", n.config.Name, f.pause())
			}
			a.waitWay(b, c.way, 10*time.Second)
		})
	}
}

// A peer vanishes under traffic: others feel nothing of it.
func TestPeerVanishes(t *testing.T) {
	t.Parallel()
	l := newLab(t, noNAT, noNAT, noNAT)
	a, b := l.pair("none", "none")
	c := l.node(2)
	c.waitNAT("none")
	a.set(b.offered(), c.offered())
	b.set(a.offered())
	c.set(a.offered())
	echo(t, b.host, inner)
	echo(t, c.host, "10.160.0.3:80")
	fb := startFlow(t, a.host, inner)
	fc := startFlow(t, a.host, "10.160.0.3:80")
	fb.flows(t, 5*time.Second)
	fc.flows(t, 5*time.Second)
	u, err := a.host.Dial(t.Context(), "udp", "10.160.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	flood := func() time.Duration {
		fc.pause()
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			for range 10 {
				_, _ = u.Write(make([]byte, 1300))
			}
		}
		return fc.pause()
	}
	before := flood()
	b.end(syscall.SIGKILL)
	after := flood()
	t.Logf("longest pause of another stream %v before, %v after", before, after)
	if after > max(3*before, time.Second) { // waiting for the dead one would take longer
		t.Errorf("a stream to another paused for %v, %v before", after, before)
	}
	// And it comes back.
	b.start()
	b.set(a.offered())
	fb.flows(t, 20*time.Second)
}
