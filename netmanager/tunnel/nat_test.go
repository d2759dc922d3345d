package tunnel

import (
	"syscall"
	"testing"
	"time"
)

const inner = "10.160.0.2:80"

func TestThroughNATs(t *testing.T) {
	kindOf := map[natKind]NAT{noNAT: "none", fullCone: "cone", restricted: "cone", symmetric: "symmetric"}
	for _, c := range []struct {
		a, b natKind
		want Way
	}{
		{noNAT, restricted, Direct},
		{fullCone, fullCone, Direct},
		{restricted, restricted, Direct},
		{noNAT, symmetric, Direct},
		{symmetric, fullCone, Direct},
		{symmetric, restricted, Relayed},
		{symmetric, symmetric, Relayed},
	} {
		t.Run(string(c.a)+" to "+string(c.b), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, c.a, c.b)
			a, b := l.pair(kindOf[c.a], kindOf[c.b])
			echo(t, b.host, inner)
			exchange(t, a.host, inner, 1<<16, 10*time.Second)
			if c.want == Relayed {
				time.Sleep(2 * time.Second) // time enough to be direct
			}
			took := a.waitWay(b, c.want, 10*time.Second)
			b.waitWay(a, c.want, 10*time.Second)
			exchange(t, a.host, inner, 1<<20, 10*time.Second)
			t.Logf("%s after %v, %+v", c.want, took, a.to(b))
		})
	}
}

func TestUDPBlocked(t *testing.T) {
	t.Parallel()
	l := newLab(t, restricted, restricted)
	lift := block(t, l.sites[0].nat)
	a, b := l.pair("blocked", "cone")
	echo(t, b.host, inner)
	exchange(t, a.host, inner, 1<<20, 10*time.Second)
	a.waitWay(b, Relayed, 10*time.Second)
	c := dialEcho(t, a.host, inner)
	pingPong(t, c, 1000)
	lift()
	t.Logf("direct %v after the block went", a.waitWay(b, Direct, 15*time.Second))
	b.waitWay(a, Direct, 15*time.Second)
	pingPong(t, c, 1<<20)
	block(t, l.sites[0].nat)
	began := time.Now()
	pingPong(t, c, 1000)
	t.Logf("a stream went on %v after the direct way was blocked", time.Since(began))
	a.waitWay(b, Relayed, 15*time.Second)
	pingPong(t, c, 1<<20)
}

// The manager goes: direct ways feel nothing of it.
func TestManagerGone(t *testing.T) {
	t.Parallel()
	l := newLab(t, restricted, restricted)
	a, b := l.pair("cone", "cone")
	echo(t, b.host, inner)
	f := startFlow(t, a.host, inner)
	a.waitWay(b, Direct, 10*time.Second)
	b.waitWay(a, Direct, 10*time.Second)
	f.flows(t, 5*time.Second)
	f.pause()
	l.stop()
	time.Sleep(8 * time.Second) // longer than a way is trusted without an answer
	limit := time.Second
	if testing.Short() {
		limit *= 5 // under the race detector all programs of the lab are slow
	}
	if p := f.pause(); p > limit {
		t.Errorf("a pause of %v", p)
	}
	a.waitWay(b, Direct, limit)
	// A new handshake needs the manager as little: b is restarted.
	pa := a.offered()
	b.end(syscall.SIGKILL)
	b.start()
	b.set(pa)
	f.flows(t, 10*time.Second)
	t.Logf("longest pause over a restart %v", f.pause())
}
