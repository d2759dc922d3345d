package service

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
)

// host plays all containers of a node: it answers what is for a server's port, and counts the answers that its clients get.
func host(n *node, done <-chan struct{}, answered map[ends]int, served map[string]int, mu *sync.Mutex) {
	for {
		select {
		case b := <-n.tun.In:
			var p packet
			if !p.parse(b) || !valid(b) {
				panic(fmt.Sprintf("the kernel got %x", b))
			}
			e := ends{p.src.netip().String(), p.dst.netip().String(), p.sport, p.dport}
			mu.Lock()
			if p.dport == 80 {
				served[e.dst]++
				n.tun.Out <- tcp(e.swapped(), tcpSYN|tcpACK, "")
			} else {
				answered[e.swapped()]++
			}
			mu.Unlock()
		case <-done:
			return
		}
	}
}

// Three nodes, 10,000 flows at once from containers of two of them to one service with instances everywhere; every client gets its answer, and tables
// change all the while.
func TestManyFlowsOverNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, three := newNode(t, 1, Options{}), newNode(t, 2, Options{}), newNode(t, 3, Options{})
		nodes := []*node{one, two, three}
		far := service("far", "10.172.3.1", "10.172.3.2", container(0, "10.172.3.10", "10.160.2.20"), container(1, "10.172.3.11", "10.160.2.21"))
		for _, n := range nodes {
			n.set("", web(), client(), far)
		}
		var wg sync.WaitGroup
		join(&wg, nodes...)
		var mu sync.Mutex
		answered, served := map[ends]int{}, map[string]int{}
		done := make(chan struct{})
		var hosts sync.WaitGroup
		for _, n := range nodes {
			hosts.Go(func() { host(n, done, answered, served, &mu) })
		}
		const each = 2500
		want := map[ends]int{}
		for i := range each {
			for _, src := range []string{"10.160.1.20", "10.160.1.21", "10.160.2.20", "10.160.2.21"} {
				e := ends{src, "10.172.0.1", uint16(10000 + i), 80}
				want[e] = 1
				n := one
				if src[7] == '2' {
					n = two
				}
				n.tun.Out <- tcp(e, tcpSYN, "")
			}
			if i%100 == 0 {
				one.set("", web(), client(), far)
			}
		}
		synctest.Wait()
		close(done)
		hosts.Wait()
		for _, n := range nodes {
			n.Close()
		}
		wg.Wait()
		if !maps.Equal(answered, want) {
			t.Errorf("%d of %d flows were answered; node 1 %+v", len(answered), len(want), one.Stats())
		}
		if len(served) != 3 {
			t.Errorf("served by %v, want all three", served)
		}
		var flows int
		for _, n := range nodes {
			flows += n.Stats().Flows
		}
		if flows != 2*4*each {
			t.Errorf("%d flows are remembered, want two for each of %d", flows, 4*each)
		}
	})
}
