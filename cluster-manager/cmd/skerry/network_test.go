package main

import (
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// trace answers as a node does: three times to a ping of three, the second in vain.
func (b *board) trace(r messages.TraceRequest) {
	count := max(r.Count, 1)
	for n := range count {
		a := messages.TraceAnswer{RequestID: r.RequestID, Kind: r.Kind, N: n, Last: n == count-1, Name: r.Name, Service: "web", Policy: messages.RoundRobin, Healthy: 1,
			Addresses: []string{"10.172.0.0"}, Instance: "web.0.0", Address: "10.160.0.77", Node: "board-2", Path: messages.Direct, Endpoint: "192.0.2.1:51820", RTTMS: 0.5, MTU: 1420,
			At: messages.At(time.Now())}
		if n == 1 || r.Name == "nowhere" {
			a = messages.TraceAnswer{RequestID: r.RequestID, Kind: r.Kind, N: n, Last: a.Last, Lost: true, Error: "no reply within 2s", At: a.At}
		}
		b.client.Publish(messages.Topic{Kind: messages.TraceAnswerTopic, Node: b.name, Request: r.RequestID}.String(), 0, false, messages.Encode(a)).WaitTimeout(10 * time.Second)
	}
}

// measure says what the node measures of the network.
func (b *board) measure(s messages.NetStatus) {
	b.t.Helper()
	s.At = messages.At(time.Now())
	b.done(b.client.Publish(messages.Topic{Kind: messages.NetStatusTopic, Node: b.name}.String(), 0, true, messages.Encode(s)))
}

// newNetwork starts a cluster of two nodes in the network, with a job on the second.
func newNetwork(t *testing.T) (*testCluster, *board) {
	t.Helper()
	c := newCluster(t)
	_, one, err := keyPair()
	if err != nil {
		t.Fatal(err)
	}
	_, two, err := keyPair()
	if err != nil {
		t.Fatal(err)
	}
	b := newTunnelBoard(t, c, "board-1", one)
	newTunnelBoard(t, c, "board-2", two)
	c.skerry(t, "job", "deploy", "web", "--image", "x", "--port", "8080:80", "--worker", "board-2").want(t, 0, "done", "")
	until(t, "web to be a healthy service", func() bool { return strings.Contains(c.skerry(t, "network", "services").out, " 1/1 ") })
	return c, b
}

func TestNetworkStatus(t *testing.T) {
	c, b := newNetwork(t)
	b.measure(messages.NetStatus{State: messages.OverlayUp, NoIPv6: "no firewall for it", OverlayUse: messages.OverlayUse{
		Peers: []messages.PeerUse{{Node: "board-2", Path: messages.Relayed, RTTMS: 12.3, RxBPS: 1e6, MTU: 1280, HandshakeS: 5}},
		Flows: []messages.FlowUse{{From: "shop", Service: "web", Node: "board-2", Flows: 7}}}})
	var r result
	until(t, "what board-1 measures", func() bool { r = c.skerry(t, "network", "status"); return strings.Contains(r.out, "relayed") })
	for _, want := range []string{"network:   10.160.0.0/12\n", "blocks:    2 leased", "core-1   expected", "board-1  up ", " 1 relayed  no IPv6: no firewall for it\n", "board-1  board-2  relayed  -         12 ms       1.0 Mbit/s",
		"shop  board-1  web  board-2  7"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("want %q in\n%s", want, r.out)
		}
	}
	var all struct {
		Network messages.NetworkStatus
		Nodes   []struct {
			Node     messages.NodeID
			Overlay  *messages.OverlayStatus
			Measured *messages.NetStatus
		}
	}
	r = c.skerry(t, "network", "status", "board-1", "--json")
	if err := json.Unmarshal([]byte(r.out), &all); err != nil || all.Network.Network != "10.160.0.0/12" || len(all.Nodes) != 1 || all.Nodes[0].Measured.Peers[0].RTTMS != 12.3 ||
		all.Nodes[0].Overlay.State != messages.OverlayUp {
		t.Errorf("got %v, %s", err, r.out)
	}
	c.skerry(t, "network", "status", "board-9").want(t, 1, "", "there is no node board-9")
	c.skerry(t, "network", "status", "-").want(t, 2, "", "")
}

func TestNetworkNames(t *testing.T) {
	c, _ := newNetwork(t)
	r := c.skerry(t, "network", "services", "web", "--json")
	var e messages.ServiceEntry
	if err := messages.DecodeFromManager([]byte(r.out), &e); err != nil {
		t.Fatal(err)
	}
	plan := ipam.Plan{V4: netip.MustParsePrefix("10.160.0.0/12"), V6: netip.MustParsePrefix("fd5c:ae11:9::/48")}
	closest6 := plan.Map(netip.MustParseAddr(e.Closest)).String()
	for name, want := range map[string][2]string{
		"web":                         {"web.skerry.internal", e.RoundRobin},
		"WEB.skerry.internal.":        {"web.skerry.internal", e.RoundRobin},
		"closest.web":                 {"closest.web.skerry.internal", e.Closest},
		"0.web.skerry.internal":       {"0.web.skerry.internal", e.Instances[0].Service},
		e.RoundRobin:                  {"web.skerry.internal", e.RoundRobin},
		closest6:                      {"closest.web.skerry.internal", closest6},
		e.Instances[0].Service:        {"0.web.skerry.internal", e.Instances[0].Service},
		e.Instances[0].Address:        {"0.web.skerry.internal", e.Instances[0].Service},
		"::ffff:" + e.RoundRobin:      {"web.skerry.internal", e.RoundRobin},
		"closest.web.skerry.internal": {"closest.web.skerry.internal", closest6},
	} {
		r := c.skerry(t, "network", "resolve", name)
		r.want(t, 0, "name:       "+want[0]+"\n", "")
		r.want(t, 0, want[1]+"\n", "")
		r.want(t, 0, "web.0.0   board-2  yes", "")
	}
	for name, want := range map[string]string{"nix": "nix is no service", "1.web": "web has no copy 1", "10.160.0.99": "the address of no service", "closest.nix": "nix is no service"} {
		c.skerry(t, "network", "resolve", name).want(t, 1, "", want)
	}
	for _, name := range []string{"a.0.web", "", "example.com.", "w_b"} {
		if r := c.skerry(t, "network", "resolve", name); r.code == 0 {
			t.Errorf("%q: got %s", name, r.out)
		}
	}
	c.skerry(t, "network", "services").want(t, 0, "web  round-robin  "+e.RoundRobin, "")
	c.skerry(t, "network", "services", "web").want(t, 0, "web.0.0   board-2  yes", "")
	c.skerry(t, "network", "services", "nix").want(t, 1, "", "nix is no service of the network")
	c.skerry(t, "network", "resolve", "web", "--from", "board-1").want(t, 0, "from:        board-1\nname:        web\n", "")
	r = c.skerry(t, "network", "resolve", "web", "--json")
	var got struct {
		Name      string
		Addresses []string
		Instances []struct {
			Instance messages.InstanceID
			Node     messages.NodeID
			Healthy  bool
		}
	}
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || got.Instances[0].Instance != "web.0.0" || got.Instances[0].Node != "board-2" || !got.Instances[0].Healthy || len(got.Addresses) != 2 {
		t.Errorf("got %v, %s", err, r.out)
	}
}

func TestTraceAndPing(t *testing.T) {
	c, _ := newNetwork(t)
	c.skerry(t, "network", "trace", "web.0", "web").want(t, 0, "from:        web.0.0 on board-2\n", "")
	c.skerry(t, "network", "trace", "board-1", "closest.web").want(t, 0, "path:        direct to 192.0.2.1:51820, MTU 1420\nround trip:  0.50 ms\n", "")
	c.skerry(t, "network", "trace", "board-1", "nowhere").want(t, 1, "round trip:  no reply", "no way there: no reply within 2s")
	r := c.skerry(t, "network", "ping", "board-1", "web", "--count", "3")
	r.want(t, 0, "1: web.0.0 on board-2 at 10.160.0.77  0.50 ms", "")
	r.want(t, 0, "2:   no reply within 2s\n", "")
	r.want(t, 0, "3 sent, 2 answered, 33 % lost; round trip 0.50 ms at least", "")
	c.skerry(t, "network", "ping", "board-1", "nowhere", "--count", "1").want(t, 1, "1 sent, 0 answered", "nothing was answered")

	var n messages.NodeStatus
	if err := json.Unmarshal([]byte(c.skerry(t, "node", "status", "board-2", "--json").out), &n); err != nil || n.Overlay == nil || len(n.Overlay.Blocks) != 1 {
		t.Fatalf("board-2 has no block: %v", err)
	}
	b, err := ipam.BlockOf(netip.MustParsePrefix(n.Overlay.Blocks[0]))
	if err != nil {
		t.Fatal(err)
	}
	c.skerry(t, "network", "trace", "board-1", "board-2").want(t, 0, "name:        "+b.Gateway().String()+"\n", "")

	r = c.skerry(t, "network", "ping", "board-1", "web", "--count", "3", "--json")
	if lines := strings.Split(strings.TrimSpace(r.out), "\n"); len(lines) != 3 || !json.Valid([]byte(lines[2])) || !strings.Contains(lines[2], `"last":true`) {
		t.Errorf("got %s", r.out)
	}
	c.skerry(t, "network", "trace", "nix", "web").want(t, 1, "", "there is no instance and no node nix")
	c.skerry(t, "network", "trace", "core-1", "web").want(t, 1, "", "core-1, which would have to answer, is expected")
	c.skerry(t, "network", "trace", "board-1", "core-1").want(t, 1, "", "core-1 is not part of the network")
	c.skerry(t, "network", "ping", "board-1", "web", "--count", "0").want(t, 2, "", "--count 0: want 1 or more")
	c.skerry(t, "network", "trace", "board-1").want(t, 2, "", "")
}

// section reads one key of a configuration of wg-quick.
func section(config, key string) string {
	for l := range strings.Lines(config) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), " = "); ok && k == key {
			return v
		}
	}
	return ""
}

func TestGuest(t *testing.T) {
	c, b := newNetwork(t)
	r := c.skerry(t, "network", "guest", "add", "phone", "--gateway", "board-1", "--qr")
	r.want(t, 0, "[Interface]\nPrivateKey = ", "skerry: add of phone done")
	r.want(t, 0, "▀", "") // the code
	raw, err := base64.StdEncoding.DecodeString(section(r.out, "PrivateKey"))
	if err != nil || len(raw) != 32 {
		t.Fatalf("got %v, %s", err, r.out)
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	var guests []messages.Guest
	if err := json.Unmarshal([]byte(c.skerry(t, "network", "guest", "list", "--json").out), &guests); err != nil || len(guests) != 1 {
		t.Fatalf("got %v, %v", guests, err)
	}
	g := guests[0]
	if want := base64.StdEncoding.EncodeToString(private.PublicKey().Bytes()); g.PublicKey != want || g.Guest != "phone" || g.Gateway != "board-1" {
		t.Errorf("got %+v, want key %s", g, want)
	}
	for key, want := range map[string]string{"Address": g.Address + "/32, " + g.Address6 + "/128", "PublicKey": b.tunnel, "AllowedIPs": "10.160.0.0/12, fd5c:ae11:9::/48",
		"Endpoint": "192.0.2.1:51820", "PersistentKeepalive": "25"} {
		if got := section(r.out, key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if dns := section(r.out, "DNS"); !strings.HasSuffix(dns, ", skerry.internal") {
		t.Errorf("DNS: got %q", dns)
	}
	b.measure(messages.NetStatus{State: messages.OverlayUp, OverlayUse: messages.OverlayUse{Peers: []messages.PeerUse{{Guest: "phone", Path: messages.Direct, HandshakeS: 3}}}})
	until(t, "what board-1 sees of the guest", func() bool {
		return strings.Contains(c.skerry(t, "network", "guest", "list").out, "board-1  direct  3s ago")
	})

	c.skerry(t, "network", "guest", "remove", "phone", "--username", "viewer").want(t, 1, "", "not_allowed")
	c.skerry(t, "network", "guest", "remove", "phone").want(t, 0, "remove of phone done", "")
	c.skerry(t, "network", "guest", "remove", "phone").want(t, 1, "", "remove of phone refused")
	c.skerry(t, "network", "guest", "list").want(t, 0, "", "no guests; let one in")
}

func TestGuestToFile(t *testing.T) {
	c, _ := newNetwork(t)
	file := filepath.Join(t.TempDir(), "skerry.conf")
	r := c.skerry(t, "network", "guest", "add", "laptop", "--output", file, "--endpoint", "vpn.example.org:51820", "--no-dns")
	r.want(t, 0, "", "the configuration is in "+file)
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 || r.out != "" {
		t.Fatalf("got %v, %v, %q", info, err, r.out)
	}
	text, err := os.ReadFile(file)
	if err != nil || section(string(text), "Endpoint") != "vpn.example.org:51820" || section(string(text), "DNS") != "" || len(section(string(text), "PrivateKey")) != 44 {
		t.Errorf("got %v, %s", err, text)
	}
	c.skerry(t, "network", "guest", "add", "other", "--output", file).want(t, 2, "", "nothing was sent")
	other := filepath.Join(t.TempDir(), "other.conf")
	c.skerry(t, "network", "guest", "add", "other", "--output", other, "--gateway", "board-9").want(t, 1, "", "refused")
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a file is left of a guest that was refused: %v", err)
	}

	_, public, err := keyPair()
	if err != nil {
		t.Fatal(err)
	}
	r = c.skerry(t, "network", "guest", "add", "office", "--public-key", public, "--json")
	var got struct {
		GuestConfig messages.GuestConfig `json:"guest_config"`
		PrivateKey  string               `json:"private_key"`
		Config      string
	}
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || got.GuestConfig.PublicKey != public || got.PrivateKey != "" || !strings.Contains(got.Config, "PrivateKey = (") {
		t.Errorf("got %v, %s", err, r.out)
	}
	for _, bad := range [][]string{{"Phone"}, {"phone", "--public-key", "x"}, {"phone", "--gateway", "-"}, {"phone", "--endpoint", "nowhere"}, {"phone", "--endpoint", "a\nb:1"}} {
		c.skerry(t, append([]string{"network", "guest", "add"}, bad...)...).want(t, 2, "", "")
	}
}

// What the manager says cannot add lines to the configuration, which may name commands to run.
func TestGuestConfigIsItsLines(t *testing.T) {
	g := guest{private: "k"}
	for _, c := range []messages.GuestConfig{{GatewayKey: "a\nPostUp = rm"}, {Endpoints: []string{"a\rb"}}, {DNS: []string{"1.1.1.1\nPostUp = x"}}, {Allowed: []string{"\x1b[2J"}}, {Guest: messages.Guest{Address: "\u2028"}}} {
		if text, err := g.config(c); err == nil {
			t.Errorf("got %q", text)
		}
	}
}

func TestNetworkCompletion(t *testing.T) {
	c, _ := newNetwork(t)
	c.skerry(t, "network", "guest", "add", "phone").want(t, 0, "", "done")
	for words, want := range map[string]string{"services w": "web", "resolve w": "web", "trace b": "board-1", "trace web": "web.0.0", "trace board-1 w": "web", "trace board-1 b": "board-2",
		"ping board-1 w": "web", "guest remove p": "phone", "status b": "board-2", "resolve web --from w": "web.0.0", "guest add x --gateway b": "board-1"} {
		args := append([]string{"__complete", "network"}, strings.Split(words, " ")...)
		if r := c.skerry(t, args...); !strings.Contains("\n"+r.out, "\n"+want+"\n") {
			t.Errorf("%s: got %s, want %s", words, r.out, want)
		}
	}
}

// A node that takes the request and never answers is given up.
func TestTraceIsGivenUp(t *testing.T) {
	c, b := newNetwork(t)
	b.vanish()
	c.waitNode(t, "board-1", messages.NodeAway)
	c.skerry(t, "network", "trace", "board-1", "web").want(t, 1, "", "board-1, which would have to answer, is away")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("now"))
	if r := c.skerryWith(ctx, "", "network", "ping", "board-2", "web"); r.code == 0 {
		t.Errorf("got %+v", r)
	}
}
