//go:build linux

package netmanager_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"skerry.internal/netmanager/labtest"
)

// Thousands of flows at once go round robin within two in a hundred, none to an unhealthy instance, and each stays where it is. One that turns unhealthy
// while flows are opened gets no other one from then on, and keeps those that it has.
func TestRoundRobinIsFair(t *testing.T) {
	w := newWorld(t, 2)
	client := w.nodes[0].Container()
	var at []*labtest.Container
	for i := range 4 {
		c := w.nodes[i%2].Container()
		for _, port := range []string{":7", ":8"} {
			serveUDP(c, port)
			answerStreams(c, port)
		}
		serveTCP(c, ":80")
		at = append(at, c)
	}
	web := w.Service("web", at...)
	web.Instances[3].Healthy = false
	w.Set()
	for range 3 { // as long as there is no session with the other node, a few packets wait for it and more are lost
		who(t, client, web.RoundRobin, 80)
	}
	dial := func(t *testing.T, network string, to netip.Addr, port uint16, flows int) (conns []net.Conn) {
		t.Helper()
		client.Do(func() {
			for range flows {
				conn, err := new(net.Dialer).DialContext(t.Context(), network, netip.AddrPortFrom(to, port).String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				conns = append(conns, conn)
			}
		})
		return conns
	}
	for _, c := range []struct {
		network string
		to      netip.Addr
		flows   int // a stream has both of its ends in this program, whose open files have a limit
	}{{"udp", web.RoundRobin, 10_000}, {"udp", web.RoundRobin6, 10_000}, {"tcp", web.RoundRobin, 3_000}, {"tcp", web.RoundRobin6, 3_000}} {
		t.Run(fmt.Sprintf("%s %s", c.network, c.to), func(t *testing.T) {
			if testing.Short() {
				c.flows /= 10
			}
			conns := dial(t, c.network, c.to, 7, c.flows)
			first := askAll(t, conns, "x")
			for i, got := range askAll(t, conns, "y") {
				if got != first[i] {
					t.Fatalf("flow %d was with %s and is with %s", i, first[i], got)
				}
			}
			seen := map[string]int{}
			for _, name := range first {
				seen[name]++
			}
			for _, c := range at[:3] {
				if got, want := float64(seen[c.ID]), float64(len(conns))/3; got < want*0.98 || got > want*1.02 {
					t.Errorf("%s had %v flows, want %.0f within 2 %%", c.ID, got, want)
				}
			}
			if n := seen[at[3].ID]; n > 0 {
				t.Errorf("an unhealthy instance had %d flows", n)
			}
		})
	}
	before := dial(t, "tcp", web.RoundRobin, 8, 30)
	first := askAll(t, before, "x")
	over, opened := make(chan struct{}), make(chan int)
	go func() { // flows that are opened meanwhile
		n := 0
		for ; ; n++ {
			select {
			case <-over:
				opened <- n
				return
			default:
			}
			if _, err := askTCP(t, client, web.RoundRobin, 80); err != nil {
				t.Error(err)
			}
		}
	}()
	web.Instances[1].Healthy = false
	w.Set()
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []netip.Addr{web.RoundRobin, web.RoundRobin6} {
			names := askAll(t, dial(t, network, to, 8, 100), "x") // not port 7, of which a datagram may belong to a flow from before
			if slices.Contains(names, at[1].ID) || !slices.Contains(names, at[0].ID) || !slices.Contains(names, at[2].ID) {
				t.Errorf("%s %s: got %v, want them at %s and %s", network, to, names, at[0].ID, at[2].ID)
			}
		}
	}
	close(over)
	t.Logf("%d flows were opened meanwhile", <-opened)
	if got := askAll(t, before, "y"); !slices.Equal(got, first) || !slices.Contains(got, at[1].ID) {
		t.Errorf("open flows were with %v and are with %v", first, got)
	}
}

// askAll asks on all flows, several at once, and returns who answers on each.
func askAll(t *testing.T, conns []net.Conn, text string) (names []string) {
	t.Helper()
	for some := range slices.Chunk(conns, 50) {
		for _, conn := range some {
			_ = conn.SetDeadline(time.Now().Add(soon))
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		for _, conn := range some {
			names = append(names, hear(t, conn, text))
		}
	}
	return names
}

// answerStreams is serveUDP for streams.
func answerStreams(c *labtest.Container, address string) {
	serveEach(c, address, func(conn net.Conn) {
		buf := make([]byte, 100)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(conn, "%s %s %s", c.ID, conn.RemoteAddr(), buf[:n])
		}
	})
}
