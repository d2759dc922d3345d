//go:build linux

package netmanager_test

import (
	"strings"
	"testing"
)

// Somebody who comes to use the range of a network that is there does not end it, not even when its process begins anew, and is told of; a node
// without that network refuses it.
func TestRangeTakenLater(t *testing.T) {
	l := newWorld(t, 2)
	nodes := l.nodes
	client, web := nodes[0].Container(), nodes[1].Container()
	service := l.Service("web", web)
	l.Service("client", client)
	l.Set()
	serveTCP(web, ":80")
	shared := func() string {
		s, _ := nodes[0].Status()
		return s.Shared
	}
	if got := shared(); got != "" {
		t.Errorf("before: %q", got)
	}
	vpn := nodes[0].Host
	vpn.Run("ip", "link", "add", "wg0", "type", "bridge")
	vpn.Run("ip", "addr", "add", "10.161.0.1/16", "dev", "wg0")
	vpn.Run("ip", "link", "set", "wg0", "up")
	told := func(when string) {
		t.Helper()
		if got := shared(); !strings.Contains(got, "wg0") || !strings.Contains(got, "is free") {
			t.Errorf("%s: %q, want who it is and what is free", when, got)
		}
		if got := who(t, client, service.RoundRobin, 80); got != web.ID {
			t.Errorf("%s: %s answers", when, got)
		}
	}
	nodes[0].Set()
	told("in the running network")
	nodes[0].Kill()
	nodes[0].Start()
	if err := nodes[0].TrySet(l.Config(nodes[0])); err != nil {
		t.Fatalf("a network of before is refused: %v", err)
	}
	told("after a restart")
	nodes[0].Stop()
	nodes[0].CleanUp()
	nodes[0].Start()
	if err := nodes[0].TrySet(l.Config(nodes[0])); err == nil || !strings.Contains(err.Error(), "wg0") {
		t.Errorf("a new network: got %v, want it refused", err)
	}
	vpn.Run("ip", "link", "del", "wg0")
	nodes[0].Set()
	if got := shared(); got != "" {
		t.Errorf("when it has gone: %q", got)
	}
}
