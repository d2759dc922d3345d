package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/nettest"
)

// A flow keeps a TCP stream or a UDP socket busy and notes when bytes come back.
type flow struct {
	last    atomic.Int64 // when
	longest atomic.Int64 // pause
	sent    atomic.Int64 // bytes
	total   atomic.Int64 // up to this one of them they came back
}

// startFlow writes small messages every few milliseconds to an echo server until the test ends.
func startFlow(t *testing.T, host *nettest.Host, addr string) *flow {
	t.Helper()
	return startFlowOf(t, host, addr, 100)
}

// startFlowOf is startFlow with messages of a size.
func startFlowOf(t *testing.T, host *nettest.Host, addr string, size int) *flow {
	t.Helper()
	f := new(flow)
	f.start(t, dialEcho(t, host, addr), size, func(got []byte) int64 { return f.total.Load() + int64(len(got)) })
	return f
}

// startDatagrams is startFlow over UDP, where nothing is sent again and what is lost stays so.
func startDatagrams(t *testing.T, host *nettest.Host, addr string) *flow {
	t.Helper()
	c, err := host.Dial(t.Context(), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f := new(flow)
	f.start(t, c, 100, func(got []byte) int64 { return int64(binary.BigEndian.Uint64(got)) })
	return f
}

// start writes messages that say how many bytes there were with them, and takes what comes back; reached says how far that is.
func (f *flow) start(t *testing.T, c net.Conn, size int, reached func(got []byte) int64) {
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
			if _, err := c.Write(binary.BigEndian.AppendUint64(make([]byte, 0, size), uint64(f.sent.Add(int64(size))))[:size]); err != nil && !passing(err) {
				return
			}
		}
	})
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil && !passing(err) {
				return
			}
			if err == nil {
				now := time.Now().UnixNano()
				f.longest.Store(max(f.longest.Load(), now-f.last.Swap(now)))
				f.total.Store(max(f.total.Load(), reached(buf[:n])))
			}
		}
	})
	t.Cleanup(func() {
		close(done)
		c.Close()
		wg.Wait()
	})
}

// passing says whether an error is one that a UDP socket shows for a datagram of before.
func passing(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// stands waits until nothing comes back any more.
func (f *flow) stands(t *testing.T, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().UnixNano()-f.last.Load() < int64(100*time.Millisecond); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing was interrupted within %v", limit)
		}
	}
}

// goesOn waits until something is answered that is sent from now on.
func (f *flow) goesOn(t *testing.T, limit time.Duration) {
	t.Helper()
	sent := f.sent.Load()
	for end := time.Now().Add(limit); f.total.Load() <= sent; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing flows for %v", limit)
		}
	}
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

// A node's public address changes without it seeing that: its NAT comes up anew elsewhere. Flows go on within a second, besides what the machine keeps a flow
// waiting that nothing has happened to.
func TestNATChangesAddress(t *testing.T) {
	l := newLab(t, restricted, restricted, noNAT)
	a, b := l.pair("cone", "cone")
	c := l.node(2)
	c.waitNAT("none")
	c.set(b.offered())
	b.set(a.offered(), c.offered())
	echo(t, b.host, inner)
	stream, datagrams, control := startFlow(t, a.host, inner), startDatagrams(t, a.host, inner), startDatagrams(t, c.host, inner)
	limit := time.Second
	if testing.Short() {
		limit *= 5 // under the race detector all programs of the lab are slow
	}
	for _, n := range []*node{a, c} {
		n.waitWay(b, Direct, 10*time.Second)
		b.waitWay(n, Direct, 10*time.Second)
	}
	time.Sleep(500 * time.Millisecond) // so that nothing helps which is still under way from the beginning
	for _, f := range []*flow{stream, datagrams, control} {
		f.goesOn(t, 5*time.Second)
		f.pause()
	}
	readdress(l.sites[0].nat, "wan", "203.0.113.11/24", "203.0.113.111/24", "")
	datagrams.stands(t, 10*time.Second) // the kernel forgets what goes by the old address a moment later
	datagrams.goesOn(t, 10*time.Second)
	stream.goesOn(t, 10*time.Second)
	ofDatagrams, ofStream, ofControl := datagrams.pause(), stream.pause(), control.pause()
	t.Logf("longest pause of datagrams %v, of a stream %v, of another node's datagrams %v", ofDatagrams, ofStream, ofControl)
	if ofDatagrams-ofControl > limit {
		t.Errorf("a pause of %v, want at most %v and the %v of the flow that nothing has happened to", ofDatagrams, limit, ofControl)
	}
	if ofStream-ofControl > 2*limit { // its kernel tries again after some 0.2, 0.6 and 1.4 s: that is when it can go on
		t.Errorf("a pause of the stream of %v, want at most %v and the %v of the flow that nothing has happened to", ofStream, 2*limit, ofControl)
	}
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
