//go:build linux

package netmanager_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/link/linktest"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tunnel"
)

// foreignRules are those of a host that others have set up: Docker's chains, and an administrator who drops what he does not know, with rules of his own.
const foreignRules = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:DOCKER - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m udp --dport 51820 -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
`

// foreign makes a host one that others have set up already: their firewall, a second uplink with a default route of its own, a routing table that is
// chosen by a mark as VPNs do it, a bridge like Docker's, and switches.
func foreign(t *testing.T, host *nettest.Host) {
	t.Helper()
	second := nettest.NewHost(t, "second")
	nettest.Cable(t, nettest.End{Host: host, Interface: "eth1", Addresses: []string{"203.0.113.2/24", "2001:db8:1::2/64"}},
		nettest.End{Host: second, Interface: "eth0", Addresses: []string{"203.0.113.1/24", "2001:db8:1::1/64"}})
	rules := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte(foreignRules), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"iptables-nft-restore", rules}, {"ip6tables-nft-restore", rules},
		{"ip", "route", "add", "default", "via", "198.51.100.254", "metric", "100"}, {"ip", "route", "add", "default", "via", "203.0.113.1", "metric", "200"},
		{"ip", "-6", "route", "add", "default", "via", "2001:db8:1::1", "metric", "1024"},
		{"ip", "link", "add", "docker0", "type", "bridge"}, {"ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"}, {"ip", "link", "set", "docker0", "up"},
		{"ip", "rule", "add", "priority", "100", "fwmark", "0x8/0x8", "table", "77"}, {"ip", "route", "add", "192.168.77.0/24", "dev", "eth1", "table", "77"},
	} {
		host.Run(command[0], command[1:]...)
	}
	host.Sysctl("net.ipv4.conf.eth0.rp_filter", "1")
	host.Sysctl("net.ipv4.conf.all.rp_filter", "2")
	host.Sysctl("net.ipv6.conf.eth1.accept_ra", "1")
}

// whole is everything of a host's network that anybody could have changed.
func whole(t *testing.T, host *nettest.Host) (text string) {
	t.Helper()
	host.Do(func() { text = linktest.Dump(t) })
	return text
}

// A host that others have set up has their things as they were, whatever happens to the node: set once and again, killed ten times, and taken away.
func TestTheHostStaysItself(t *testing.T) {
	for name, forwards := range map[string]bool{"a router": true, "a host": false} {
		t.Run(name, func(t *testing.T) {
			l := labtest.New(t)
			host, far := nettest.NewHost(t, "host0"), nettest.NewHost(t, "host1")
			nettest.Switch(t, "segment", nettest.End{Host: host, Interface: "eth0", Addresses: []string{underlay(0) + "/24"}},
				nettest.End{Host: far, Interface: "eth0", Addresses: []string{underlay(1) + "/24"}})
			if forwards {
				host.Forward()
			}
			foreign(t, host)
			n := l.Node(host, underlay(0))
			peer := l.Node(far, underlay(1))
			before := whole(t, host)
			l.Set()
			client, web, server := n.Container(), n.Container(), peer.Container()
			l.Service("client", client)
			service := l.Service("web", web, server)
			n.Ports = []link.Port{{HostPort: 8080, Protocol: link.TCP, Target: netip.AddrPortFrom(web.Address, 80)},
				{HostPort: 8080, Protocol: link.TCP, Target: netip.AddrPortFrom(web.Address6, 80)}, {HostPort: 8080, Protocol: link.UDP, Target: netip.AddrPortFrom(web.Address, 80)},
				{HostPort: 5353, Protocol: link.UDP, Target: netip.AddrPortFrom(web.Address, 53)}}
			n.Guests = []netip.Prefix{netip.MustParsePrefix("10.160.3.0/32")}
			key, err := tunnel.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			n.Peer(tunnel.Peer{Key: key.Public(), Prefixes: n.Guests})
			l.Set()
			for _, port := range []string{":80", ":8080"} {
				serveTCP(web, port)
				serveTCP(server, port)
				serveUDP(server, port)
			}
			works := func() {
				t.Helper()
				for _, port := range []uint16{80, 8080} { // the node publishes the second one, which elsewhere is nothing to it
					for _, robin := range []netip.Addr{service.RoundRobin, service.RoundRobin6} {
						seen := map[string]bool{}
						for range 4 {
							seen[who(t, client, robin, port)] = true
						}
						if !seen[web.ID] || !seen[server.ID] {
							t.Errorf("port %d of %s: got answers of %v, want both", port, robin, seen)
						}
					}
					for _, address := range []netip.Addr{service.Instances[1].Service, service.Instances[1].Service6, server.Address, server.Address6} {
						if got := who(t, client, address, port); got != server.ID {
							t.Errorf("port %d of %s: got %s, want %s", port, address, got, server.ID)
						}
						conn, err := client.Dial(t.Context(), "udp", netip.AddrPortFrom(address, port).String())
						if err != nil {
							t.Fatal(err)
						}
						if got := askUDP(t, conn, "x"); got != server.ID {
							t.Errorf("UDP port %d of %s: got %s, want %s", port, address, got, server.ID)
						}
						_ = conn.Close()
					}
				}
			}
			works()
			set := whole(t, host)
			if set == before {
				t.Fatal("nothing was set")
			}
			same := func(when, want string) {
				t.Helper()
				if diff := cmp.Diff(want, whole(t, host)); diff != "" {
					t.Errorf("%s (-before +after):\n%s", when, diff)
				}
			}
			n.Set()
			same("set again", set)
			for range 10 {
				n.Kill()
				n.Start()
				n.Set()
			}
			same("killed ten times", set)
			works()
			n.Kill()
			n.CleanUp()
			same("cleaned up", before)
			left, err := os.ReadDir(n.Static.StateDir)
			if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(n.Static.RunDir) { // flows, which are the caller's to remove
				t.Errorf("in the state directory: got %v, %v", left, err)
			}
		})
	}
}
