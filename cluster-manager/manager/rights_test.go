package manager

import (
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"skerry.internal/broker"
	"skerry.internal/messages"
)

// Every role, kind of topic and access. A letter says who may: n the node itself, o an operator, v a viewer. A node never may with what is
// another's, also where one name begins with the other.
func TestRightsTable(t *testing.T) {
	r := newRights(false)
	for _, c := range []struct {
		topic            string // of node a, where it is of one
		publish, deliver string
	}{
		{"control/deploy", "ov", ""}, // a viewer is told that it may not
		{"control/delete", "ov", ""},
		{"control/move", "ov", ""},
		{"control/replicate", "ov", ""},
		{"control/node/replace", "ov", ""},
		{"control/node/remove", "ov", ""},
		{"control/guest/add", "ov", ""},
		{"control/guest/remove", "ov", ""},
		{"network/status", "", "ov"},
		{"network/services/web", "", "ov"},
		{"control/results/r1", "", "ov"},
		{"jobs/web/status", "", "ov"},
		{"cluster/status", "", "ov"},
		{"events/node-lost", "", "ov"},
		{"nodes/a/status", "", "ov"},
		{"nodes/a/presence", "n", "ov"},
		{"nodes/a/job", "n", "ov"},
		{"nodes/a/information", "n", "ov"},
		{"nodes/a/net/endpoints", "n", "ov"},
		{"nodes/a/net/interest", "n", ""},
		{"nodes/a/net/status", "n", "ov"},
		{"nodes/a/net/answers/t1", "n", "ov"},
		{"nodes/a/net/services", "", "n"},
		{"nodes/a/control/trace", "o", "n"},
		{"nodes/a/logs/web.0.0", "n", "ov"},
		{"nodes/a/control/deploy", "", "n"},
		{"nodes/a/control/delete", "", "n"},
		{"nodes/a/control/sync", "", "n"},
		{"nodes/a/control/logs", "o", "n"},
		{"nodes/a/net/config", "", "n"},
		{"$SYS/broker/uptime", "", "o"},
		{"my/replies", "", "ov"},
		// Not of the contract, though they look like it.
		{"nodes/a/control/move", "", ""},
		{"nodes/a/control", "", ""},
		{"nodes/a", "", ""},
		{"nodes/a/", "", ""},
		{"nodes//job", "", ""},
		{"control", "", ""},
		{"control/", "", ""},
		{"control/results/", "", ""},
		{"jobs/web", "", ""},
		{"cluster", "", ""},
		{"network", "", ""},
		{"network/services", "", ""},
		{"nodes/a/net/answers", "", ""},
		{"events/", "", ""},
	} {
		for letter, client := range map[byte]broker.Client{
			'n': {Role: roleNode, Username: "a"}, 'o': {Role: roleOperator}, 'v': {Role: roleViewer, Username: viewerName},
			'x': {Role: roleNode, Username: "ab"}, 'y': {Role: roleNode, Username: "b"}, // others
		} {
			for access, may := range map[broker.Access]string{broker.Publish: c.publish, broker.Deliver: c.deliver} {
				want := strings.IndexByte(may, letter) >= 0
				if got := r.allow(client, access, c.topic); got != want {
					t.Errorf("%s %q %s %s: got %v, want %v", client.Role, client.Username, access, c.topic, got, want)
				}
			}
		}
	}
}

// A node subscribes under its own name only. Others may ask for anything: each delivery is looked at.
func TestSubscribeRights(t *testing.T) {
	r := newRights(false)
	a := broker.Client{Role: roleNode, Username: "a"}
	for filter, want := range map[string]bool{
		"nodes/a/#": true, "nodes/a/control/#": true, "nodes/a/control/+": true, "nodes/a/net/config": true,
		"#": false, "+/+/control/#": false, "nodes/#": false, "nodes/+/control/#": false, "nodes/+": false, "nodes/ab/#": false, "nodes/ab/control/sync": false,
		"nodes/a+/#": false, "nodes/b/#": false, "nodes/a": false, "jobs/+/status": false, "control/#": false, "$SYS/#": false, "": false,
	} {
		if got := r.allow(a, broker.Subscribe, filter); got != want {
			t.Errorf("%q: got %v, want %v", filter, got, want)
		}
	}
	if !r.allow(broker.Client{Role: roleViewer}, broker.Subscribe, "#") {
		t.Error("a viewer may not ask for everything")
	}
}

// A Result is heard by who asked, by request id and by Response Topic; who comes later takes nothing over.
func TestResultsBelongToWhoAsked(t *testing.T) {
	r := newRights(false)
	alice, bob := broker.Client{Role: roleOperator, Username: "alice"}, broker.Client{Role: roleOperator, Username: "bob"}
	if err := r.ownResults(alice, "r1", "alice/replies"); err != nil {
		t.Error(err)
	}
	for who, c := range map[string]broker.Client{"bob": bob, "a viewer": {Role: roleViewer, Username: viewerName}} {
		if r.ownResults(c, "r1", "") == nil || r.ownResults(c, "", "alice/replies") == nil || r.ownResults(c, "r1", "replies of "+who) == nil {
			t.Errorf("%s has something sent to alice", who)
		}
		if err := r.ownResults(c, "of "+who, "replies of "+who); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if err := r.ownResults(alice, "r1", "alice/replies"); err != nil {
		t.Errorf("repeated: %v", err)
	}
	for _, topic := range []string{"control/results/r1", "alice/replies"} {
		if !r.allow(alice, broker.Deliver, topic) || r.allow(bob, broker.Deliver, topic) {
			t.Errorf("%s: alice %v, bob %v; want only her", topic, r.allow(alice, broker.Deliver, topic), r.allow(bob, broker.Deliver, topic))
		}
	}
	for i := range 3 * maxOwned {
		if err := r.ownResults(bob, fmt.Sprint("x", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.owners) + len(r.older); n > 2*maxOwned {
		t.Errorf("%d topics are remembered", n)
	}
	if r.allow(alice, broker.Deliver, fmt.Sprintf("control/results/x%d", 3*maxOwned-1)) {
		t.Error("the newest is forgotten")
	}
}

// With the manager's own right a client must not have it speak where the client itself may not.
func TestResponseTopics(t *testing.T) {
	for topic, want := range map[string]bool{
		"": true, "my/replies": true, "control/results/r1": true, "node/a": true,
		"nodes/a/control/deploy": false, "nodes/a/control/sync": false, "nodes": false, "control/deploy": false, "control/results/": false,
		"control/results/a/b": false, "control": false, "jobs/web/status": false, "cluster/status": false, "events/x": false, "$SYS/broker/uptime": false,
		"$share/g/nodes/a/control/sync": false, "#": false, "a/+/b": false, "a\x00b": false,
	} {
		if err := responseTopic(broker.Message{ResponseTopic: topic}); (err == nil) != want {
			t.Errorf("%q: got %v, want allowed %v", topic, err, want)
		}
	}
	for _, msg := range []broker.Message{{ResponseTopic: strings.Repeat("a", maxName+1)}, {ResponseTopic: "a", CorrelationData: make([]byte, maxCorrelation+1)}} {
		if responseTopic(msg) == nil {
			t.Errorf("a response topic of %d bytes and %d of correlation data are taken", len(msg.ResponseTopic), len(msg.CorrelationData))
		}
	}
}

func TestSenderIsThisHost(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"192.168.1.1:1": false, "[fe80::1]:1": false, "0.0.0.0:1": false, "localhost:1": false, "": false} {
		if got := fromThisHost(addrText(addr)); got != want {
			t.Errorf("%q: got %v, want %v", addr, got, want)
		}
	}
	if fromThisHost(nil) {
		t.Error("no address counts as this host")
	}
}

type addrText string

var _ net.Addr = addrText("")

func (a addrText) Network() string { return "tcp" }
func (a addrText) String() string  { return string(a) }

// A page of another site has no right here, also where its name leads to this host.
func TestOrigins(t *testing.T) {
	for _, c := range []struct {
		origin, host string
		insecure, ok bool
	}{
		{"", "board:10100", false, true},
		{"http://127.0.0.1:10100", "127.0.0.1:10100", false, true},
		{"http://localhost:10100", "localhost:10100", false, true},
		{"http://[::1]:10100", "[::1]:10100", false, true},
		{"http://evil.example", "127.0.0.1:10100", true, false},
		{"http://localhost:8080", "localhost:10100", true, false},
		{"http://evil.example:10100", "evil.example:10100", false, false}, // its DNS says 127.0.0.1
		{"http://board:10100", "board:10100", true, true},
		{"null", "board:10100", true, false},
		{"http://%zz", "board:10100", true, false},
	} {
		m := &Manager{cfg: Config{Insecure: c.insecure}}
		q := httptest.NewRequest("GET", "http://"+c.host+"/mqtt", nil)
		if c.origin != "" {
			q.Header.Set("Origin", c.origin)
		}
		if got := m.sameOrigin(q); got != c.ok {
			t.Errorf("%+v: got %v", c, got)
		}
	}
}

// One sender fills neither log nor memory; nor do many.
func TestWarningsAreBounded(t *testing.T) {
	var w warnings
	said := 0
	for range 1000 {
		if _, say := w.count("one"); say {
			said++
		}
	}
	if n, _ := w.count("one"); said != 1 || n != 1001 {
		t.Errorf("said %d times, counted %d", said, n)
	}
	for i := range 50_000 {
		w.count(fmt.Sprint(i))
	}
	if len(w.seen) > 10_001 {
		t.Errorf("%d senders are remembered", len(w.seen))
	}
}

func TestBrokerURL(t *testing.T) {
	for addr, want := range map[string]string{"127.0.0.1:1883": "tcp://127.0.0.1:1883", "0.0.0.0:1883": "tcp://:1883", "[::]:1883": "tcp://:1883", "[::1]:1": "tcp://[::1]:1"} {
		if got, port := brokerURL("tcp", addr); got != want || port == "" {
			t.Errorf("%s: got %s port %q, want %s", addr, got, port, want)
		}
	}
}

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	err := Config{Cluster: "Not A Name", Core: []messages.NodeID{"x y"}, HTTP: "80", MQTT: "", LostAfter: 1, TelemetryInterval: 1}.Validate()
	for _, flag := range []string{"--cluster", "--core", "--http", "--mqtt", "--data", "--lost-after", "--telemetry-interval"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s is not among %v", flag, err)
		}
	}
}
