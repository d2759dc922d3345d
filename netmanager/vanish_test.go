//go:build linux

package netmanager_test

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skerry.internal/netmanager/labtest"
)

// A peer that is frozen in the middle of a flow does nothing to the others': what they ask takes no longer than before, and the flow goes on afterwards.
func TestPeerVanishes(t *testing.T) {
	const (
		rounds  = 10
		allowed = 5 * time.Millisecond // beside twice as long as before: a turn or two of another program on a processor
	)
	requests := 100
	if testing.Short() {
		requests = 20
	}
	w := newWorld(t, 4)
	client, stays, goes, beside := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[2].Container(), w.nodes[3].Container()
	a, b := w.Service("a", stays), w.Service("b", goes)
	w.Set()
	serveTCP(stays, ":80")
	serveTCP(goes, ":80")
	serveUDP(goes, ":80")
	open := map[*labtest.Container]net.Conn{client: openStream(t, client, a), beside: openStream(t, beside, a)}
	// slowest returns what 99 in 100 requests are quicker than: the client's, and those of one who sends the frozen peer nothing.
	slowest := func() (own, control time.Duration) {
		times := map[*labtest.Container][]time.Duration{}
		for range requests {
			for from, conn := range open {
				began := time.Now()
				if got := who(t, from, a.RoundRobin, 80); got != stays.ID {
					t.Fatalf("got %s", got)
				}
				echo(t, conn)
				times[from] = append(times[from], time.Since(began))
			}
		}
		for _, of := range times {
			slices.Sort(of)
		}
		return times[client][requests*98/100], times[beside][requests*98/100]
	}
	echoed := keepSending(t, client, b)
	own, control := slowest()
	for range 2 {
		again, controlAgain := slowest()
		own, control = min(own, again), min(control, controlAgain)
	}
	w.nodes[2].Signal(syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { w.nodes[2].Signal(syscall.SIGCONT) })
	defer thaw()
	stopped := echoed.Load()
	held := 0
	for round := 0; round < rounds && held < 3; round++ {
		during, controlDuring := slowest()
		t.Logf("p99 %v, before %v; beside it %v, before %v", during, own, controlDuring, control)
		if during <= 2*max(own, own*controlDuring/control)+allowed {
			held++
		}
	}
	if held < 3 {
		t.Errorf("in %d of %d rounds 99 of 100 requests take no more than twice as long as before", held, rounds)
	}
	still := echoed.Load()
	underWay := 100 + 2*own.Milliseconds() // a byte a millisecond, and on a busy machine an answer takes hundreds of those
	if late := still - stopped; stopped == 0 || late > underWay {
		t.Errorf("the frozen peer answered %d times before, %d times after: want %d at most", stopped, late, underWay)
	}
	thaw()
	labtest.Eventually(t, soon, "answers once the peer is back", func() bool { return echoed.Load() > still+100 })
}

// keepSending sends a byte a millisecond to a service, in a stream and in datagrams, until the test ends, and counts what the stream brings back.
func keepSending(t *testing.T, from *labtest.Container, to *labtest.Service) (echoed *atomic.Int64) {
	t.Helper()
	stream := openStream(t, from, to)
	_ = stream.SetDeadline(time.Time{})
	datagrams, err := from.Dial(t.Context(), "udp", netip.AddrPortFrom(to.RoundRobin, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	echoed = new(atomic.Int64)
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.Tick(time.Millisecond); ; <-tick {
			if _, err := stream.Write([]byte("x")); err != nil {
				return
			}
			_, _ = datagrams.Write([]byte("x"))
		}
	})
	wg.Go(func() {
		buf := make([]byte, 1000)
		for {
			n, err := stream.Read(buf)
			if err != nil {
				return
			}
			echoed.Add(int64(n))
		}
	})
	t.Cleanup(func() {
		_ = stream.Close()
		_ = datagrams.Close()
		wg.Wait()
	})
	return echoed
}
