package service

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"skerry.internal/netmanager/tun"
)

// cluster is the Config of node 1 in a cluster with that many services of two instances each.
func cluster(services int) Config {
	// Half a million service addresses: 100,000 services with two instances need four each.
	c := Config{Blocks: bothPrefixes("10.160.1.0/26"), ServiceRange: bothPrefixes("10.168.0.0/13")}
	at := func(i int) (netip.Addr, netip.Addr) { // service addresses one after the other
		a := fmt.Sprintf("10.%d.%d.%d", 168+i>>16, i>>8&255, i&255)
		return both(a)
	}
	for i := range services {
		s := Service{Name: fmt.Sprint("s", i), Instances: make([]Instance, 2)}
		s.RoundRobin, s.RoundRobin6 = at(4 * i)
		s.Closest, s.Closest6 = at(4*i + 1)
		for j := range s.Instances {
			in := &s.Instances[j]
			in.Ordinal, in.Healthy = j, true
			in.Service, in.Service6 = at(4*i + 2 + j)
			in.Address, in.Address6 = both(fmt.Sprintf("10.%d.%d.%d", 161+2*j+i>>16, i>>8&255, i&255))
		}
		c.Services = append(c.Services, &s)
	}
	return c
}

func TestHundredThousandServices(t *testing.T) {
	c := cluster(100_000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	table := NewTable(c)
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / uint64(len(c.Services)); got > 600 {
		t.Errorf("a service takes %d bytes", got)
	}
	for i := range c.Services {
		s := c.Services[i]
		for _, a := range []netip.Addr{s.RoundRobin, s.RoundRobin6, s.Closest} {
			if got, known := table.choose(addrOf(a)); !known || got == (addr{}) {
				t.Fatalf("service %d at %v is not found", i, a)
			}
		}
	}
	if _, known := table.choose(addrOf(netip.MustParseAddr("10.175.255.254"))); known {
		t.Error("found a service that is none")
	}
}

// packetsOf returns packets of that many flows, spread over the services.
func packetsOf(c Config, flows int, flags uint8) [][]byte {
	list := make([][]byte, flows)
	for i := range list {
		s := c.Services[(i*7919)%len(c.Services)]
		list[i] = tcp(ends{fmt.Sprintf("10.160.1.%d", 2+i%60), s.RoundRobin.String(), uint16(1024 + i/60), 80}, flags, "hello")
	}
	return list
}

// size is what packets are sent through, flow by flow in turn.
type size struct{ services, flows int }

// sizes are first as many flows through tables of any size, and then as many flows as services, of which the last need more room than a node has.
var sizes = []size{{1, 1000}, {10, 1000}, {100, 1000}, {1000, 1000}, {10_000, 1000}, {100_000, 1000}, {10_000, 10_000}, {100_000, 100_000}}

func (s size) String() string { return fmt.Sprintf("services=%d,flows=%d", s.services, s.flows) }

func benchNode(b *testing.B, c Config, flows int) *node {
	n := newNode(b, 1, Options{MTU: func(netip.Addr) int { return 1400 }, Flows: max(defaultFlows, 2*flows)})
	n.SetTable(NewTable(c))
	b.ReportAllocs()
	return n
}

// usage is the process's time on a processor, which other processes on the machine do not lengthen as they do the clock's.
type usage time.Duration

func startCPU() usage {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return usage(u.Utime.Nano() + u.Stime.Nano())
}

func (u usage) report(b *testing.B, packets int) {
	b.ReportMetric(float64(startCPU()-u)/float64(b.N)/float64(packets), "cpu-ns/each")
}

// BenchmarkOut is one packet of a flow that exists, of each in turn, in batches of up to 128 as the TUN gives them; copying it in is part of the figure.
func BenchmarkOut(b *testing.B) {
	for _, s := range sizes {
		b.Run(s.String(), func(b *testing.B) {
			c := cluster(s.services)
			n := benchNode(b, c, s.flows)
			list := packetsOf(c, s.flows, tcpACK)
			q := n.queues[0].(*queue)
			slab, packets := make([]byte, 1<<16), make([]tun.ReadPacket, 128)
			at := 0
			cpu := startCPU()
			for b.Loop() {
				for j := range packets {
					offset := tun.Spacing + j*(tun.Spacing+64)
					packets[j] = tun.ReadPacket{Offset: offset, Size: copy(slab[offset:], list[at])}
					if at++; at == len(list) {
						at = 0
					}
				}
				if q.outbound(slab, packets) != len(packets) {
					b.Fatal("packets were dropped")
				}
			}
			cpu.report(b, 128)
		})
	}
}

// BenchmarkIn is the same for the answers.
func BenchmarkIn(b *testing.B) {
	for _, s := range sizes {
		b.Run(s.String(), func(b *testing.B) {
			c := cluster(s.services)
			n := benchNode(b, c, s.flows)
			n.writeTo = func(_ int, bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
			list := packetsOf(c, s.flows, tcpACK)
			for i := range list {
				list[i] = tcp(endsOf(b, n.out(b, list[i])).swapped(), tcpACK, "hello")
			}
			bufs := make([][]byte, 128)
			for i := range bufs {
				bufs[i] = make([]byte, headroom+len(list[0]))
			}
			at := 0
			cpu := startCPU()
			for b.Loop() {
				for _, buf := range bufs {
					copy(buf[headroom:], list[at])
					if at++; at == len(list) {
						at = 0
					}
				}
				if _, err := n.WriteTo(0, bufs, headroom); err != nil {
					b.Fatal(err)
				}
			}
			cpu.report(b, 128)
		})
	}
}

// BenchmarkNewFlow is the first packet of a flow, to each service in turn.
func BenchmarkNewFlow(b *testing.B) {
	for _, s := range sizes[:6] { // with others they would not be other flows
		b.Run(s.String(), func(b *testing.B) {
			c := cluster(s.services)
			n := benchNode(b, c, defaultFlows)
			q := n.queues[0].(*queue)
			list := packetsOf(c, 60_000, tcpSYN)
			slab, packets := make([]byte, 256), make([]tun.ReadPacket, 1)
			cpu := startCPU()
			for i := 0; b.Loop(); i++ {
				packets[0] = tun.ReadPacket{Offset: tun.Spacing, Size: copy(slab[tun.Spacing:], list[i%len(list)])}
				slab[tun.Spacing+20] += byte(i / len(list)) // other ports in the next round
				q.outbound(slab, packets)
			}
			cpu.report(b, 1)
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, services := range []int{10000, 100000} {
		c := cluster(services)
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			b.ReportAllocs()
			cpu := startCPU()
			for b.Loop() {
				NewTable(c)
			}
			cpu.report(b, services)
		})
	}
}
