//go:build linux

package main

import (
	"fmt"
	"net/netip"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
)

// path is one way between two containers.
type path struct {
	name           string
	note           string
	client, server *nettest.Host
	to             netip.Addr           // the server, as the client dials it
	usage          func() labtest.Usage // of the processes that carry the packets; nil: the kernel does
	samples        map[string][]float64 // by what was measured
}

func allPaths(b *tb) []*path {
	return append([]*path{rawPath(b), rawLocal(b), vxlanPath(b), barePath(b)}, overlayPaths(b)...)
}

func newPath(name, note string, client, server *nettest.Host, to netip.Addr) *path {
	return &path{name: name, note: note, client: client, server: server, to: to, samples: map[string][]float64{}}
}

// hosts makes two hosts joined by a cable.
func hosts(b *tb, name string) (one, two *nettest.Host) {
	one, two = nettest.NewHost(b, name+"1"), nettest.NewHost(b, name+"2")
	nettest.Cable(b, nettest.End{Host: one, Interface: "eth0", Addresses: []string{"198.51.100.1/24"}},
		nettest.End{Host: two, Interface: "eth0", Addresses: []string{"198.51.100.2/24"}})
	return one, two
}

// container hangs a namespace on a host by routing alone.
func container(b *tb, host *nettest.Host, name, subnet string) *nettest.Host {
	c := nettest.NewHost(b, name)
	nettest.Cable(b, nettest.End{Host: host, Interface: "c-" + name, Addresses: []string{subnet + ".1/24"}},
		nettest.End{Host: c, Interface: "eth0", Addresses: []string{subnet + ".2/24"}})
	c.Route("default", subnet+".1")
	host.Forward()
	return c
}

// rawPath is two containers on two hosts, routed over the cable.
func rawPath(b *tb) *path {
	one, two := hosts(b, "raw")
	client, server := container(b, one, "rawc", "203.0.113"), container(b, two, "raws", "192.0.2")
	one.Route("192.0.2.0/24", "198.51.100.2")
	two.Route("203.0.113.0/24", "198.51.100.1")
	return newPath("raw veth, two nodes", "nothing but the kernel's routing", client, server, netip.MustParseAddr("192.0.2.2"))
}

// rawLocal is two containers on one bridge.
func rawLocal(b *tb) *path {
	client, server := nettest.NewHost(b, "locc"), nettest.NewHost(b, "locs")
	nettest.Switch(b, "loc", nettest.End{Host: client, Interface: "eth0", Addresses: []string{"203.0.113.1/24"}},
		nettest.End{Host: server, Interface: "eth0", Addresses: []string{"203.0.113.2/24"}})
	return newPath("raw veth, one node", "nothing but a bridge", client, server, netip.MustParseAddr("203.0.113.2"))
}

// vxlanPath is the kernel's own overlay, which encrypts nothing.
func vxlanPath(b *tb) *path {
	one, two := hosts(b, "vx")
	client, server := container(b, one, "vxc", "203.0.113"), container(b, two, "vxs", "192.0.2")
	for _, end := range []struct {
		h          *nettest.Host
		own, other string
		route, via string
	}{{one, "198.51.100.1", "198.51.100.2", "192.0.2.0/24", "10.99.0.2"}, {two, "198.51.100.2", "198.51.100.1", "203.0.113.0/24", "10.99.0.1"}} {
		end.h.Run("ip", "link", "add", "vx0", "type", "vxlan", "id", "42", "local", end.own, "remote", end.other, "dstport", "4789", "dev", "eth0")
		end.h.Run("ip", "link", "set", "vx0", "mtu", "1450", "up")
		own := map[string]string{"10.99.0.2": "10.99.0.1", "10.99.0.1": "10.99.0.2"}[end.via]
		end.h.Run("ip", "addr", "add", own+"/24", "dev", "vx0")
		end.h.Route(end.route, end.via)
	}
	return newPath("kernel VXLAN", "not encrypted", client, server, netip.MustParseAddr("192.0.2.2"))
}

// overlayPaths are ours: through a service address to another node, and to a container of the same node.
func overlayPaths(b *tb) []*path {
	one, two := hosts(b, "sk")
	lab := labtest.New(b)
	a, z := lab.Node(one, "198.51.100.1"), lab.Node(two, "198.51.100.2")
	lab.Set()
	client, far, near := a.Container(), z.Container(), a.Container()
	remote, local := lab.Service("remote", far), lab.Service("local", near)
	for i := range 10_000 { // more than any board asks for
		lab.Service(fmt.Sprint("idle", i), far)
	}
	lab.Set()
	usage := func() labtest.Usage {
		_, first := a.Status()
		_, second := z.Status()
		return labtest.Usage{CPU: first.CPU + second.CPU, MaxMB: max(first.MaxMB, second.MaxMB)}
	}
	over := newPath("Skerry, two nodes", "through a service address, 10,000 services in the table", client.Host, far.Host, remote.RoundRobin)
	within := newPath("Skerry, one node", "through a service address, 10,000 services in the table", client.Host, near.Host, local.RoundRobin)
	over.usage, within.usage = usage, usage
	return []*path{over, within}
}
