package view

import (
	"strings"
	"testing"

	"rsc.io/qr"

	"skerry.internal/messages"
)

func net() (*messages.NetworkStatus, []NetNode) {
	n := &messages.NetworkStatus{Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14", Blocks: 3, Free: 12285, Addresses: 8,
		Guests: []messages.Guest{{Guest: "phone", PublicKey: "x", Address: "10.160.1.2", Address6: "fd5c:ae11:9::102", Gateway: "board-1"}}}
	nodes := []NetNode{
		{Status: messages.NodeStatus{Node: "board-1", State: messages.NodeOnline, Overlay: &messages.OverlayStatus{State: messages.OverlayUp, Blocks: []string{"10.160.0.0/26"}, NAT: "cone",
			Endpoints: []string{"192.168.1.20:51820", "10.0.0.1:51820"}}},
			Measured: &messages.NetStatus{State: messages.OverlayUp, NoNames: "port 53 is taken", NoIPv6: "the kernel has none", Dropped: map[string]int64{"denied": 3, "stray": 1}, OverlayUse: messages.OverlayUse{
				Peers: []messages.PeerUse{{Node: "board-2", Path: messages.Direct, Endpoint: "192.168.1.21:51820", RTTMS: 0.751, RxBPS: 120000, TxBPS: 9e9, MTU: 1420, HandshakeS: 95},
					{Guest: "phone", Path: messages.Relayed, RTTMS: 48.2}, {Node: "board-3", Path: messages.NoPath}},
				Flows: []messages.FlowUse{{From: "shop", Service: "web", Node: "board-2", Flows: 12, RxBPS: 110000}, {Service: "web", Flows: 1}}}}},
		{Status: messages.NodeStatus{Node: "board-2", State: messages.NodeOnline, Overlay: &messages.OverlayStatus{State: messages.OverlayUp, RelayOnly: true, NAT: "blocked"}},
			Measured: &messages.NetStatus{State: messages.OverlayOff, Reason: "no /dev/net/tun"}},
		{Status: messages.NodeStatus{Node: "board-3", State: messages.NodeLost}},
		{Status: messages.NodeStatus{Node: "board-4", State: messages.NodeOnline, Overlay: &messages.OverlayStatus{State: messages.OverlayRefused, Reason: "another node has this key"}}},
		{Status: messages.NodeStatus{Node: "board-5", State: messages.NodeOnline, Overlay: &messages.OverlayStatus{State: messages.OverlayOff, Reason: "10.144.0.0/12 is free"}},
			Measured: &messages.NetStatus{State: messages.OverlayOff, Reason: "10.144.0.0/12 is free"}},
	}
	return n, nodes
}

func TestNetwork(t *testing.T) {
	s := Style{Now: now()}
	want := `network:   10.160.0.0/12
           fd5c:ae11:9::/48
services:  10.172.0.0/14, 8 addresses leased
blocks:    3 leased, 12285 free
guests:    1

NODE     NETWORK  BLOCKS         NAT                  ENDPOINT                       PEERS                                  REASON
board-1  up       10.160.0.0/26  cone                 192.168.1.20:51820 and 1 more  1 direct, 1 relayed, 1 without a path  names are not answered: port 53 is taken; no IPv6: the kernel has none
board-2  off      -              blocked, relay only  -                              -                                      no /dev/net/tun
board-3  lost     -              -                    -                              -                                      the node is not connected
board-4  refused  -              -                    -                              -                                      another node has this key
board-5  off      -              -                    -                              -                                      10.144.0.0/12 is free

NODE     PEER           PATH     ENDPOINT            ROUND TRIP  RECEIVED      SENT        MTU   HANDSHAKE
board-1  board-2        direct   192.168.1.21:51820  0.75 ms     120.0 kbit/s  9.0 Gbit/s  1420  1m35s ago
board-1  phone (guest)  relayed  -                   48 ms       0 bit/s       0 bit/s     -     -
board-1  board-3        none     -                   -           0 bit/s       0 bit/s     -     -

FROM             ON       TO   AT       FLOWS  RECEIVED      SENT
shop             board-1  web  board-2  12     110.0 kbit/s  0 bit/s
(host or guest)  board-1  web  -        1      0 bit/s       0 bit/s

board-1 dropped packets: denied 3, stray 1
`
	if got := s.Network(net()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	_, nodes := net()
	if got := s.Node(nodes[4].Status, nil); !strings.Contains(got, " off: 10.144.0.0/12 is free\n") {
		t.Errorf("a node: got %s", got)
	}
	if got := s.Network(nil, nil); !strings.HasPrefix(got, "the manager has no network") {
		t.Errorf("got %s", got)
	}
}

func service() messages.ServiceEntry {
	return messages.ServiceEntry{Job: "web", RoundRobin: "10.172.0.0", Closest: "10.172.0.1", Policy: messages.RoundRobin, Allow: []messages.JobName{"shop", "blog"},
		Ports: []messages.Port{{Name: "http", Host: 8080, Container: 80, Protocol: "tcp"}, {Container: 53, Protocol: "udp"}},
		Instances: []messages.ServiceInstance{{Ordinal: 0, Generation: 2, Service: "10.172.0.2", Address: "10.160.0.66", Node: "board-2", Healthy: true},
			{Ordinal: 1, Service: "10.172.0.3"}}}
}

func TestServices(t *testing.T) {
	s := Style{Now: now()}
	want := `JOB  POLICY       ROUND ROBIN  CLOSEST     HEALTHY  ALLOWED     PORTS
web  round-robin  10.172.0.0   10.172.0.1  1/2      shop, blog  http=80/tcp, 53/udp
`
	if got := s.Services([]messages.ServiceEntry{service()}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	open, closed := service(), service()
	open.Allow, closed.Allow = nil, []messages.JobName{}
	if got := s.Services([]messages.ServiceEntry{open, closed}); !strings.Contains(got, "  all  ") || !strings.Contains(got, "  nobody  ") {
		t.Errorf("got\n%s", got)
	}
	want = `
INSTANCE  NODE     HEALTHY  ADDRESS     CONTAINER
web.0.2   board-2  yes      10.172.0.2  10.160.0.66
web.1.0   -        no       10.172.0.3  -
`
	if got := s.Service(service()); !strings.HasSuffix(got, want) || !strings.Contains(got, "closest:      10.172.0.1\n") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r := Resolution{Name: "web.skerry.internal", Job: "web", Policy: "round-robin", Addresses: []string{"10.172.0.0", "fd5c:ae11:9::c:0"}, Instances: Standings(service())}
	want = `name:       web.skerry.internal
job:        web
policy:     round-robin
addresses:  10.172.0.0
            fd5c:ae11:9::c:0
` + want
	if got := s.Resolved(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func answer() messages.TraceAnswer {
	return messages.TraceAnswer{Kind: messages.TracePath, Name: "web.skerry.internal", Addresses: []string{"10.172.0.0"}, Service: "web", Policy: messages.Closest, Healthy: 2,
		Instance: "web.0.2", Address: "10.160.0.66", Node: "board-2", Path: messages.Direct, Endpoint: "192.168.1.21:51820", RTTMS: 0.81, MTU: 1420}
}

func TestTrace(t *testing.T) {
	s := Style{Now: now()}
	want := `from:        shop.0.0 on board-1
name:        web.skerry.internal
addresses:   10.172.0.0
service:     web closest, 2 healthy
instance:    web.0.2 on board-2 at 10.160.0.66
path:        direct to 192.168.1.21:51820, MTU 1420
round trip:  0.81 ms
`
	if got := s.Trace("shop.0.0 on board-1", answer()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	local := answer()
	local.Local, local.Path, local.Endpoint = true, "", ""
	if got := s.Trace("", local); !strings.Contains(got, "on the same node, MTU 1420") {
		t.Errorf("got\n%s", got)
	}
	if got, want := s.Trace("", messages.TraceAnswer{RTTMS: 0.81, Again: true}), "round trip:  0.81 ms, after a first packet without a reply\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := s.Trace("", messages.TraceAnswer{Lost: true, Error: "no reply within 2s"}), "round trip:  no reply\nerror:       no reply within 2s\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPings(t *testing.T) {
	s := Style{Now: now()}
	var p Pings
	if got := p.Text(); got != "nothing was sent" {
		t.Errorf("got %s", got)
	}
	for i, a := range []struct {
		ms   float64
		lost bool
		want string
	}{{2, false, "1: web.0.2 on board-2 at 10.160.0.66  2.00 ms  direct to 192.168.1.21:51820, MTU 1420"}, {0, true, "2: web.0.2 on board-2 at 10.160.0.66  no reply"}, {1, false, "3: "}, {12, false, "4: "}} {
		x := answer()
		x.N, x.RTTMS, x.Lost = i, a.ms, a.lost
		p.Add(x)
		if got := s.Ping(x); !strings.HasPrefix(got, a.want) {
			t.Errorf("got %q, want %q", got, a.want)
		}
	}
	if got, want := p.Text(), "4 sent, 3 answered, 25 % lost; round trip 1.00 ms at least, 5.00 ms on average, 12 ms at most"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGuests(t *testing.T) {
	n, _ := net()
	want := `GUEST  ADDRESS     ADDRESS6          GATEWAY  PATH    HANDSHAKE  SINCE
phone  10.160.1.2  fd5c:ae11:9::102  board-1  direct  7s ago     -
`
	if got := (Style{Now: now()}).Guests(n.Guests, map[string]messages.PeerUse{"phone": {Path: messages.Direct, HandshakeS: 7}}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestQR reads the drawing back, character by character, and holds it against the code.
func TestQR(t *testing.T) {
	const text = "[Interface]\nPrivateKey = GuestsKeyGuestsKeyGuestsKeyGuestsKeyGuestsKe=\n"
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []bool{false, true} {
		drawn, err := QR(text, terminal)
		if err != nil {
			t.Fatal(err)
		}
		drawn = strings.NewReplacer("\x1b[40;97m", "", "\x1b[0m", "").Replace(drawn)
		lines := strings.Split(strings.TrimSuffix(drawn, "\n"), "\n")
		if want := (code.Size + 2*quiet + 1) / 2; len(lines) != want {
			t.Fatalf("got %d lines, want %d", len(lines), want)
		}
		for i, l := range lines {
			cells := []rune(l)
			if len(cells) != code.Size+2*quiet {
				t.Fatalf("line %d has %d cells, want %d", i, len(cells), code.Size+2*quiet)
			}
			for x, c := range cells {
				y := 2*i - quiet
				upper, lower := c == '█' || c == '▀', c == '█' || c == '▄'
				last := y+1 >= code.Size+quiet
				if upper == code.Black(x-quiet, y) || (!last && lower == code.Black(x-quiet, y+1)) {
					t.Fatalf("module %d,%d is wrong", x-quiet, y)
				}
			}
		}
	}
	if _, err := QR(strings.Repeat("x", 3000), false); err == nil {
		t.Error("a text that fits into no code")
	}
}
