package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"skerry.internal/messages"
)

// A node whose host uses the network's range is no part of the network and says so, with a range that is free: what insists on the overlay goes elsewhere.
// Once the range is free the node is part of it by itself.
func TestRangeOfAVPN(t *testing.T) {
	t.Parallel()
	l := newHosts(t, "a", "b")
	vpn := l.hosts["a"]
	vpn.Run("ip", "link", "add", "wg0", "type", "bridge") // whose kind nobody looks at
	vpn.Run("ip", "addr", "add", "10.161.0.1/16", "dev", "wg0")
	vpn.Run("ip", "link", "set", "wg0", "up")
	a, b := l.node("a"), l.networkNode("b")
	said := func() bool {
		s, _ := l.nodeStatus(a)
		return s.Overlay != nil && s.Overlay.State == messages.OverlayOff && strings.Contains(s.Overlay.Reason, "wg0") && strings.Contains(s.Overlay.Reason, "is free")
	}
	l.eventually("the range to be said to be in use", said)
	insists := func(name messages.JobName, replicas int) messages.Job {
		j := app(name, replicas, nil)
		j.Network.Mode = messages.Overlay
		return j
	}
	if r := l.last(l.send(deployCommand(insists("refused", 1), a))); r.Phase != messages.Refused || !strings.Contains(r.Message, "wg0") {
		t.Errorf("got %s %s %q, want it refused with the reason", r.Phase, r.Code, r.Message)
	}
	l.do(deployCommand(insists("web", 2)))
	l.waitJob("web", "healthy", func(s messages.JobStatus) bool { return s.Healthy == 2 })
	if now := l.containers(a, b); len(l.containers(a)) > 0 || len(now) != 2 {
		t.Errorf("got %v, want both on b", now)
	}
	l.kill(l.nodes[a]) // one that has the network of its disk learns it anew
	from := fileSize(l.nodes[a].log)
	l.startNode("a")
	l.logLine(l.nodes[a], from, "in session")
	l.eventually("the range to be said to be in use once more", said)
	vpn.Run("ip", "link", "del", "wg0")
	l.eventually("the node to be part of the network by itself", func() bool {
		s, _ := l.nodeStatus(a)
		return s.Overlay.State == messages.OverlayUp && s.Overlay.Reason == ""
	})
	l.do(deployCommand(insists("late", 1), a))
	l.waitJob("late", "healthy", func(s messages.JobStatus) bool { return s.Healthy == 1 })
	if got := l.ask("late", "http://web.skerry.internal:8080/", 4); got.Failed > 0 || len(got.Seen) != 2 {
		t.Errorf("by name: got %+v", got)
	}
}

// An engine that cannot have a TUN device says why, gives containers Docker's own network, and is sent nothing that insists on the overlay.
func TestNoOverlay(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for what, c := range map[string]struct {
		by  []string
		why string
	}{
		"no device": {[]string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$0" "$@"`}, "offers no TUN device"},
		"no right":  {[]string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}, "no right to a TUN device"},
	} {
		t.Run(what, func(t *testing.T) {
			l := newLab(t)
			l.by = c.by
			a := l.node("a", "--overlay", "auto")
			s, _ := l.nodeStatus(a)
			if s.Overlay == nil || s.Overlay.State != messages.OverlayOff || !strings.Contains(s.Overlay.Reason, c.why) {
				t.Errorf("got %+v, want it off since it has %s", s.Overlay, what)
			}
			insists := app("insists", 1, nil)
			insists.Network.Mode = messages.Overlay
			if r := l.last(l.send(deployCommand(insists))); r.Phase != messages.Refused || !strings.Contains(r.Message, c.why) {
				t.Errorf("got %s %s %q, want it refused with the reason", r.Phase, r.Code, r.Message)
			}
			l.do(deployCommand(app("web", 1, nil)))
			i := l.waitUp("web").Instances[0]
			if i.Network != messages.BridgeNetwork || len(i.Ports) != 1 {
				t.Fatalf("got network %q and ports %v, want Docker's own network and a published port", i.Network, i.Ports)
			}
			resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", i.Ports[0].Host))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), "web.0.0") {
				t.Errorf("by its published port: %q", body)
			}
		})
	}
}
