package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/cluster-manager/internal/register"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
	"skerry.internal/netmanager/relay"
)

// serveNetwork runs a manager that has an overlay.
func serveNetwork(t *testing.T) *served {
	t.Helper()
	cfg := testConfig(t)
	cfg.Network, cfg.Network6 = netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")
	m, err := newManager(t.Context(), cfg, new(store.Memory), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return run(t, m)
}

// joinNet registers a node with a tunnel and connects it. It returns the tunnel's private key.
func (v *served) joinNet(id messages.NodeID) (*client, relay.Key) {
	v.t.Helper()
	key, err := relay.GenerateKey()
	if err != nil {
		v.t.Fatal(err)
	}
	w, err := v.admit(v.t.Context(), messages.NodeInfo{Name: id, Key: "key of " + string(id), CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 1000,
		Technologies: []messages.TechnologyInfo{{Name: messages.Docker}},
		Overlay:      &messages.OverlayInfo{PublicKey: key.Public().String(), Endpoints: []string{"192.0.2.1:51820"}}}, register.Origin{Proved: true})
	if err != nil {
		v.t.Fatal(err)
	}
	c := v.connect("node-"+string(id), w.Username, w.Password, messages.NodeFilter(id))
	c.send(messages.Topic{Kind: messages.PresenceTopic, Node: id}.String(), messages.Presence{Online: true, Epoch: w.Epoch, Digest: messages.Digest(nil)}, true)
	c.send(messages.Topic{Kind: messages.NetInterestTopic, Node: id}.String(), messages.Interest{Full: true}, false)
	return c, key
}

// awaitAs waits for a payload on a topic that holds what ok says.
func awaitAs[T any](c *client, topic string, ok func(T) bool) T {
	c.t.Helper()
	var found T
	c.await(topic, func(m mqtt.Message) bool {
		var v T
		if m.Topic() != topic || json.Unmarshal(m.Payload(), &v) != nil || !ok(v) {
			return false
		}
		found = v
		return true
	})
	return found
}

func TestNetworkOverTheWire(t *testing.T) {
	v := serveNetwork(t)
	a, _ := v.joinNet("a")
	b, _ := v.joinNet("b")
	operator := v.connect("o", "", "", "control/results/#", "network/#", "nodes/+/net/status", "nodes/+/net/answers/+")
	config := awaitAs(b, "nodes/b/net/config", func(c messages.NetworkConfig) bool { return len(c.Blocks) == 1 })
	if !strings.HasPrefix(config.Relay.URL, "http://127.0.0.1:") || len(config.STUN) != 2 {
		t.Errorf("got %+v", config)
	}
	web := deployment("web", "r1")
	web.Worker = []messages.NodeID{"a"}
	operator.send("control/deploy", web, false)
	run := awaitAs(a, "nodes/a/control/deploy", func(x messages.Assignment) bool { return x.Run })
	block := awaitAs(a, "nodes/a/net/config", func(c messages.NetworkConfig) bool { return len(c.Blocks) == 1 }).Blocks[0]
	address := netip.MustParsePrefix(block).Addr().Next().Next().String()
	a.send("nodes/a/job", messages.InstanceStatus{Instance: run.Instance, Job: "web", Rev: run.Rev, Seq: 1, State: messages.Running, Healthy: true, Address: address}, false)
	b.send("nodes/b/net/interest", messages.Interest{Names: []messages.JobName{"web", "nobody"}}, false)
	entry := func(u messages.ServiceUpdate) bool {
		return len(u.Services) == 1 && len(u.Services[0].Instances) == 1 && u.Services[0].Instances[0].Healthy
	}
	got := awaitAs(b, "nodes/b/net/services", entry).Services[0]
	if got.Instances[0].Address != address || got.Instances[0].Node != "a" {
		t.Errorf("got %+v", got)
	}
	retained := awaitAs(operator, "network/services/web", func(s messages.ServiceEntry) bool { return len(s.Instances) == 1 && s.Instances[0].Healthy })
	if retained.RoundRobin != got.RoundRobin {
		t.Errorf("clients read %+v, nodes %+v", retained, got)
	}
	awaitAs(a, "nodes/a/net/config", func(c messages.NetworkConfig) bool { return len(c.Peers) == 1 && c.Peers[0].Node == "b" })
	awaitAs(b, "nodes/b/net/config", func(c messages.NetworkConfig) bool { return len(c.Peers) == 1 && c.Peers[0].Node == "a" })

	key, err := relay.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	operator.send("control/guest/add", messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key.Public().String(), Gateway: "a", RequestID: "g1"}, false)
	done := operator.result("g1", func(r messages.Result) bool { return r.Phase == messages.Done })
	if done.GuestConfig == nil || done.GuestConfig.Gateway != "a" || len(done.GuestConfig.DNS) != 2 {
		t.Errorf("got %+v", done)
	}
	awaitAs(operator, "network/status", func(s messages.NetworkStatus) bool { return len(s.Guests) == 1 })
	awaitAs(b, "nodes/b/net/config", func(c messages.NetworkConfig) bool { return len(c.Peers) == 1 && len(c.Peers[0].Prefixes) == 2 })

	operator.send("nodes/b/control/trace", messages.TraceRequest{RequestID: "t1", Kind: messages.TraceResolve, Name: "web"}, false)
	awaitAs(b, "nodes/b/control/trace", func(r messages.TraceRequest) bool { return r.RequestID == "t1" })
	b.send("nodes/b/net/answers/t1", messages.TraceAnswer{RequestID: "t1", Kind: messages.TraceResolve, Last: true}, false)
	awaitAs(operator, "nodes/b/net/answers/t1", func(r messages.TraceAnswer) bool { return r.Last })
	b.send("nodes/b/net/status", messages.NetStatus{State: messages.OverlayUp}, true)
	late := v.connect("late", "", "", "nodes/+/net/status")
	awaitAs(late, "nodes/b/net/status", func(s messages.NetStatus) bool { return s.State == messages.OverlayUp })
}

// TestHostileNetworkPayloads holds that what a node says wrongly of the network changes nothing, and that the node stays connected.
func TestHostileNetworkPayloads(t *testing.T) {
	v := serveNetwork(t)
	a, _ := v.joinNet("a")
	operator := v.connect("o", "", "", "nodes/+/status")
	for topic, payloads := range map[string][]string{
		"nodes/a/net/endpoints": {"", "{}x", `{"public_key":"x"}`, `{"endpoints":["nowhere"]}`, `{"endpoints":` + strings.Repeat("[", 50_000)},
		"nodes/a/net/interest":  {"", "[]", `{"names":["A"]}`, `{"names":[` + strings.Repeat(`"x",`, 5000) + `"x"]}`, `{"addresses":["::1"]}`},
		"nodes/a/net/status":    {"x", `{"peers":7}`},
	} {
		for _, p := range payloads {
			a.Publish(topic, 1, false, p).WaitTimeout(patience)
		}
	}
	a.send("nodes/a/net/endpoints", messages.Endpoints{Reason: "no tunnel any more"}, false)
	awaitAs(operator, "nodes/a/status", func(s messages.NodeStatus) bool {
		return s.Overlay != nil && s.Overlay.State == messages.OverlayOff && s.Overlay.Reason == "no tunnel any more"
	})
}

// TestReflector holds that both ports answer a binding request of STUN.
func TestReflector(t *testing.T) {
	v := serveNetwork(t)
	if len(v.stunAddrs()) != 2 {
		t.Fatalf("got %v", v.stunAddrs())
	}
	for _, addr := range v.stunAddrs() {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ask := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, bytes.Repeat([]byte{7}, 12)...)
		answer := make([]byte, 100)
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(ask); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(answer)
		if err != nil || n < 32 || answer[0] != 1 || answer[1] != 1 || !bytes.Equal(answer[4:20], ask[4:20]) {
			t.Errorf("%s: got % x, %v", addr, answer[:n], err)
		}
	}
}

// TestRelayCarriesForNodesOnly holds that two nodes reach one another through the manager's port, that nobody else does, and that a node whose
// key is not its own any more does not either.
func TestRelayCarriesForNodesOnly(t *testing.T) {
	v := serveNetwork(t)
	a, keyA := v.joinNet("a")
	_, keyB := v.joinNet("b")
	stranger, err := relay.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	dial := func(key relay.Key) *relay.Client {
		c, err := relay.NewClient(relay.ClientConfig{URL: "http://" + v.HTTPAddr() + relay.Path, PrivateKey: key}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			_ = c.Run(ctx, func(from relay.Key, packet []byte) {
				select {
				case got <- fmt.Sprintf("%s %s", from, packet):
				default:
				}
			})
		})
		return c
	}
	ca, cb, cs := dial(keyA), dial(keyB), dial(stranger)
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	until("both are connected", func() bool { return ca.Connected() && cb.Connected() })
	until("a packet arrives", func() bool { ca.Send(keyB.Public(), []byte("sealed")); return len(got) > 0 })
	if p, want := <-got, keyA.Public().String()+" sealed"; p != want {
		t.Errorf("got %s, want %s", p, want)
	}
	if cs.Connected() || v.relay.Connected(stranger.Public()) {
		t.Error("a stranger is connected")
	}
	a.send("nodes/a/net/endpoints", messages.Endpoints{Reason: "gone"}, false)
	until("the stream of a key that is nobody's ends", func() bool { return !v.relay.Connected(keyA.Public()) })
}

func TestBesides(t *testing.T) {
	for _, c := range []struct{ bound, asked, want string }{
		{"127.0.0.1:10100", "127.0.0.1:10100", "127.0.0.1:10100 127.0.0.1:10101"},
		{"[::]:10100", ":10100", "[::]:10100 [::]:10101"},
		{"127.0.0.1:40001", "127.0.0.1:0", "127.0.0.1:0 127.0.0.1:0"},
		{"127.0.0.1:65535", "127.0.0.1:65535", "127.0.0.1:0 127.0.0.1:0"},
	} {
		if got := strings.Join(besides(c.bound, c.asked), " "); got != c.want {
			t.Errorf("%s for %s: got %s, want %s", c.bound, c.asked, got, c.want)
		}
	}
	for addr, want := range map[string]string{"[::]:10100": ":10100", "0.0.0.0:1": ":1", "127.0.0.1:5": "127.0.0.1:5"} {
		if got := dialled(addr); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
}
