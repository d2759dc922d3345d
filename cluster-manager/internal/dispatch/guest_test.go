package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"skerry.internal/messages"
)

// guest gives a command about a guest and returns its Results.
func (w *world) guest(cmd messages.GuestCommand) []messages.Result {
	w.t.Helper()
	w.next++
	if cmd.RequestID == "" {
		cmd.RequestID = fmt.Sprintf("g%d", w.next)
	}
	before := len(w.results)
	in := IncomingGuest{MayCommand: true}
	in.Command, in.Bad = messages.DecodeGuestCommand(messages.Encode(cmd), cmd.Command)
	w.core.GuestCommand(in, w.now)
	w.settle()
	return w.results[before:]
}

func TestGuest(t *testing.T) {
	w := newNetWorld(t, "n1", "n2", "n3")
	w.accepted(deploy(job("web", "good", 1), "n1"))
	w.pass(2 * time.Second)
	add := messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: tunnelKey("phone"), Gateway: "n2", RequestID: "g"}
	r := w.guest(add)
	if len(r) != 2 || r[0].Phase != messages.Accepted || r[1].Phase != messages.Done || r[1].GuestConfig == nil {
		t.Fatalf("got %+v", r)
	}
	c := r[1].GuestConfig
	if c.Gateway != "n2" || c.GatewayKey != tunnelKey("n2") || len(c.Endpoints) != 1 || !slices.Equal(c.DNS, []string{"10.160.0.65", "fd5c:ae11:9::41"}) ||
		len(c.Allowed) != 2 || c.Address == "" || c.Address6 == "" {
		t.Errorf("got %+v", c)
	}
	if p := w.net.configs["n2"].Peers; len(p) != 1 || p[0].Guest != "phone" || !slices.Equal(p[0].Prefixes, []string{c.Address + "/32"}) {
		t.Errorf("the gateway: got %+v", p)
	}
	w.wants("n2", "web")
	if p := w.net.configs["n1"].Peers; len(p) != 1 || p[0].Node != "n2" || !slices.Contains(p[0].Prefixes, c.Address+"/32") {
		t.Errorf("who runs web: got %+v", p)
	}
	if again := w.guest(add); len(again) != 2 || again[1].GuestConfig == nil || again[1].GuestConfig.Address != c.Address {
		t.Errorf("repeated: got %+v", again)
	}
	moved := w.guest(messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: tunnelKey("phone 2"), Gateway: "n3"})
	if g := moved[1].GuestConfig; g.Address != c.Address || g.Gateway != "n3" || len(w.net.configs["n3"].Peers) != 1 {
		t.Errorf("moved: got %+v", g)
	}
	if p := w.net.configs["n1"].Peers; slices.Contains(p[0].Prefixes, c.Address+"/32") {
		t.Errorf("the old gateway still leads to it: %+v", p)
	}
	w.disconnect("n3")
	w.core.NodeCommand(IncomingNode{Command: messages.NodeCommand{Command: messages.Remove, Node: "n3"}, MayCommand: true}, w.now)
	w.settle()
	if g := w.net.status.Guests; len(g) != 1 || g[0].Gateway != "n1" {
		t.Errorf("its gateway is removed: got %+v", g)
	}
	blocks := w.net.status.Blocks
	if r := w.guest(messages.GuestCommand{Command: messages.Remove, Guest: "phone"}); len(r) != 2 || r[1].Phase != messages.Done {
		t.Errorf("got %+v", r)
	}
	if len(w.net.status.Guests) != 0 || w.net.status.Blocks != blocks-1 {
		t.Errorf("got %+v", w.net.status)
	}
	w.checkNet()
}

// TestGuestOfRemovedGateway holds that a guest whose gateway was removed while no other node could take it is added again without naming one.
func TestGuestOfRemovedGateway(t *testing.T) {
	w := newNetWorld(t, "n1", "n2")
	add := messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: tunnelKey("phone")}
	w.guest(add)
	w.disconnect("n2")
	w.disconnect("n1")
	w.done(w.sendNode(messages.Remove, "n1"))
	w.connect("n2")
	w.settle()
	if r := w.guest(add); len(r) != 2 || r[1].GuestConfig == nil || r[1].GuestConfig.Gateway != "n2" {
		t.Errorf("got %+v", r)
	}
	w.checkNet()
}

func TestGuestRefused(t *testing.T) {
	w := newNetWorld(t, "n1")
	w.join("n2", nil)
	key := tunnelKey("phone")
	for _, c := range []struct {
		cmd  messages.GuestCommand
		code messages.Code
	}{
		{messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: tunnelKey("n1")}, messages.NotAllowed},
		{messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key, Gateway: "n9"}, messages.NoNodeMatches},
		{messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key, Gateway: "n2"}, messages.NoNodeMatches},
		{messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key, Cluster: []string{"other"}}, messages.WrongCluster},
		{messages.GuestCommand{Command: messages.Add, Guest: "phone"}, messages.BadPayload},
		{messages.GuestCommand{Command: messages.Remove, Guest: "phone"}, messages.UnknownGuest},
	} {
		if r := w.guest(c.cmd); len(r) != 1 || r[0].Phase != messages.Refused || r[0].Code != c.code || r[0].Guest != "phone" {
			t.Errorf("%+v: got %+v", c.cmd, r)
		}
	}
	w.disconnect("n1")
	if r := w.guest(messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key}); r[0].Code != messages.NoNodeMatches {
		t.Errorf("nobody is online: got %+v", r)
	}
	off := newWorld(t, "n1")
	if r := off.guest(messages.GuestCommand{Command: messages.Add, Guest: "phone", PublicKey: key}); r[0].Code != messages.NotAllowed {
		t.Errorf("no overlay: got %+v", r)
	}
}
