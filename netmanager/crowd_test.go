//go:build linux

package netmanager_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"skerry.internal/netmanager/labtest"
)

// 100,000 services are set, and set again with one that has changed, while flows go on; each is found by its name and by its address.
func TestManyServices(t *testing.T) {
	const allowed = 2 * time.Second // for one answer; the most of what is seen is the lab's, which hands over the whole in one message
	crowd := 100_000
	if testing.Short() {
		crowd /= 10
	}
	w := newWorld(t, 2)
	client, server, other := w.nodes[0].Container(), w.nodes[1].Container(), w.nodes[1].Container()
	web := w.Service("web", server)
	w.Service("client", client)
	w.Set()
	for _, c := range []*labtest.Container{server, other} {
		serveTCP(c, ":80")
		serveUDP(c, ":80")
	}
	flows := controlFlows(t, client, web)
	flows.goOn(t, "their begin")
	first := w.Service("first")
	for i := range crowd / 2 {
		w.Service(fmt.Sprintf("crowd-%d", i))
	}
	among := w.Service("among", server)
	for i := range crowd / 2 {
		w.Service(fmt.Sprintf("more-%d", i))
	}
	last := w.Service("last", server)
	resolver := resolver(client, w.nodes[0].Block.Gateway())
	for _, at := range []*labtest.Container{server, other} {
		among.Move(0, at)
		flows.slowest()
		began := time.Now()
		w.nodes[0].Set()
		took := time.Since(began)
		flows.goOn(t, "many services")
		slowest := flows.slowest()
		_, usage := w.nodes[0].Status()
		t.Logf("%d services: set in %v, the slowest answer meanwhile took %v, the node had %.0f MB at most", crowd, took, slowest, usage.MaxMB)
		if slowest > allowed {
			t.Errorf("an answer took %v", slowest)
		}
		for _, s := range []*labtest.Service{first, among, last, web} {
			if got, err := resolver.LookupNetIP(t.Context(), "ip4", s.FQDN()); err != nil || len(got) != 1 || got[0].Unmap() != s.RoundRobin {
				t.Errorf("%s: got %v, %v, want %s", s.FQDN(), got, err, s.RoundRobin)
			}
		}
		for _, address := range []netip.Addr{among.RoundRobin, among.RoundRobin6, among.Instances[0].Service} {
			if got := who(t, client, address, 80); got != at.ID {
				t.Errorf("%s: got %s, want %s", address, got, at.ID)
			}
		}
		for _, address := range []netip.Addr{web.RoundRobin, last.RoundRobin6} {
			if got := who(t, client, address, 80); got != server.ID {
				t.Errorf("%s: got %s, want %s", address, got, server.ID)
			}
		}
	}
}
