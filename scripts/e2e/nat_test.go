package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
)

// behindNATs puts each host behind a router of its own, all of which hang on the segment of the manager.
func behindNATs(t *testing.T, names ...string) (l *lab, routers map[string]*nettest.Host) {
	t.Helper()
	l = emptyLab(t)
	l.hosts, routers = map[string]*nettest.Host{"manager": nettest.NewHost(t, "manager")}, map[string]*nettest.Host{}
	ends := []nettest.End{{Host: l.hosts["manager"], Interface: "eth0", Addresses: []string{"198.51.100.1/24"}}}
	for i, name := range names {
		routers[name] = nettest.NewHost(t, name+"-router")
		ends = append(ends, nettest.End{Host: routers[name], Interface: "wan", Addresses: []string{fmt.Sprintf("198.51.100.%d/24", i+2)}})
	}
	nettest.Switch(t, "segment", ends...)
	for _, name := range names {
		l.hosts[name] = nettest.NewHost(t, name)
		nettest.Cable(t, nettest.End{Host: l.hosts[name], Interface: "eth0", Addresses: []string{"192.168.1.2/24"}}, // all of them the same
			nettest.End{Host: routers[name], Interface: "lan", Addresses: []string{"192.168.1.1/24"}})
		l.hosts[name].Route("default", "192.168.1.1")
		routers[name].Forward()
		routers[name].Run("iptables", "-A", "INPUT", "-i", "wan", "-p", "udp", "-j", "DROP") // before it leaves a trace, as home routers do
	}
	l.http, l.mqtt = "198.51.100.1:10100", "0.0.0.0:1883"
	l.startManager()
	l.follow()
	return l, routers
}

// Whole engines behind NATs: two ordinary ones reach one another directly, one whose NAT takes another port for each destination is relayed, and so are
// all while a router lets no datagram through; once it does, the path is direct again. What skerry says of it is what is so.
func TestEnginesBehindNATs(t *testing.T) {
	t.Parallel()
	l, routers := behindNATs(t, "a", "b", "c")
	for name, more := range map[string][]string{"a": nil, "b": nil, "c": {"--random-fully"}} { // c's is the symmetric one
		routers[name].Run("iptables", append([]string{"-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE"}, more...)...)
	}
	blocked := []string{"FORWARD", "-p", "udp", "-j", "DROP"}
	routers["b"].Run("iptables", append([]string{"-I"}, blocked...)...)
	for _, name := range []string{"a", "b", "c"} {
		l.networkNode(name)
	}
	l.serve("web", 1, l.id("b"))
	l.serve("deep", 1, l.id("c"))
	l.serve("client", 1, l.id("a"))
	command := filepath.Join(l.dir, "skerry")
	l.buildSkerry()
	skerry := func(args ...string) string {
		t.Helper()
		return l.hosts["manager"].Run(command, append([]string{"--broker", "tcp://127.0.0.1:1883"}, args...)...)
	}
	works := func(job messages.JobName) {
		t.Helper()
		l.eventually(string(job)+" answers by name", func() bool {
			got, err := l.tryAsk("client", "http://"+string(job)+".skerry.internal:8080/", 5)
			return err == nil && got.Failed == 0
		})
	}
	measured := func() (use messages.OverlayUse) { // by a
		var s struct {
			Nodes []struct {
				Measured messages.NetStatus `json:"measured"`
			} `json:"nodes"`
		}
		if err := json.Unmarshal([]byte(skerry("network", "status", string(l.id("a")), "--json")), &s); err != nil {
			t.Fatal(err)
		}
		for _, n := range s.Nodes {
			use.Peers, use.Flows = append(use.Peers, n.Measured.Peers...), append(use.Flows, n.Measured.Flows...)
		}
		return use
	}
	path := func(to string) (messages.PeerUse, bool) {
		for _, p := range measured().Peers {
			if p.Node == l.id(to) {
				return p, true
			}
		}
		return messages.PeerUse{}, false
	}
	comesTo := func(to string, state messages.PathState) messages.PeerUse {
		t.Helper()
		var p messages.PeerUse
		defer func() { t.Logf("the path to %s, to be %s: %+v", to, state, p) }()
		l.eventually(fmt.Sprintf("the path to %s to be %s", to, state), func() bool {
			works("web")
			works("deep")
			var there bool
			p, there = path(to)
			return there && p.Path == state && p.RTTMS > 0 && (state == messages.Relayed || p.MTU >= 1280) // the relay takes packets of any size
		})
		return p
	}
	traced := func(job messages.JobName, on string, state messages.PathState) {
		t.Helper()
		var a messages.TraceAnswer
		if err := json.Unmarshal([]byte(skerry("network", "trace", "client.0", string(job), "--json")), &a); err != nil {
			t.Fatal(err)
		}
		if a.Instance != messages.NewInstanceID(job, 0, 0) || a.Node != l.id(on) || a.Path != state || a.Local || a.Lost || a.RTTMS <= 0 || (state == messages.Direct && a.MTU < 1280) {
			t.Errorf("trace to %s: got %+v", job, a)
		}
		text := skerry("network", "trace", "client.0", string(job))
		if !strings.Contains(text, string(state)) || !strings.Contains(text, string(l.id(on))) {
			t.Errorf("trace to %s says %s", job, text)
		}
		if out := skerry("network", "ping", "client.0", string(job), "--count", "2"); !strings.Contains(out, "2 sent, 2 answered") || !strings.Contains(out, string(state)) {
			t.Errorf("ping to %s: %s", job, out)
		}
	}

	comesTo("b", messages.Relayed)
	comesTo("c", messages.Relayed)
	traced("web", "b", messages.Relayed)
	traced("deep", "c", messages.Relayed)
	stream := l.dialInside("client", "web.skerry.internal:8080")
	answers := bufio.NewReader(stream)
	request := func(when string) {
		t.Helper()
		_, sent := fmt.Fprintf(stream, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
		resp, err := http.ReadResponse(answers, nil)
		if sent != nil || err != nil {
			t.Fatalf("on a connection from before the change, %s: %v, %v", when, sent, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	request("relayed")
	routers["b"].Run("iptables", append([]string{"-D"}, blocked...)...)
	p := comesTo("b", messages.Direct)
	if want := "198.51.100.3:"; !strings.HasPrefix(p.Endpoint, want) {
		t.Errorf("direct to %s, want %s…", p.Endpoint, want)
	}
	traced("web", "b", messages.Direct)
	comesTo("c", messages.Relayed)
	traced("deep", "c", messages.Relayed)
	request("direct")
	l.eventually("it is told how much goes from job to job", func() bool {
		works("web")
		for _, f := range measured().Flows {
			if f.From == "client" && f.Service == "web" && f.Node == l.id("b") {
				return f.Flows > 0 && f.RxBPS > 0 && f.TxBPS > 0
			}
		}
		return false
	})
	routers["b"].Run("iptables", append([]string{"-I"}, blocked...)...)
	comesTo("b", messages.Relayed)
	request("relayed again")
	t.Log(skerry("network", "status"))
}
