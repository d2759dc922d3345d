package dispatch

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// registerNet registers a board that has a tunnel, and from an earlier manager some blocks, and does not connect.
func (w *world) registerNet(id messages.NodeID, blocks ...string) error {
	o := &messages.OverlayInfo{PublicKey: tunnelKey(string(id)), Blocks: blocks}
	_, err := w.core.Register(messages.NodeInfo{Name: id, Key: "key of " + string(id), Overlay: o}, false, w.now)
	w.settle()
	return err
}

// wantForgotten says that nothing of a node is left.
func (w *world) wantForgotten(id messages.NodeID) {
	w.t.Helper()
	if w.core.st.Nodes[id] != nil || w.core.keys["key of "+string(id)] != "" || w.nodeStatus(id) != nil {
		w.t.Errorf("%s is not forgotten", id)
	}
	w.boot()
	if w.core.st.Nodes[id] != nil {
		w.t.Errorf("%s is still on disk", id)
	}
}

// Who registers and never connects holds no block, and is forgotten; who has been connected once is not.
func TestUnmetNodesAreForgotten(t *testing.T) {
	w := newNetWorld(t, "met")
	if err := w.registerNet("unmet"); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	if s := w.nodeStatus("unmet"); s == nil || s.Overlay == nil || s.Overlay.State != messages.OverlayOff || len(s.Overlay.Blocks) != 0 {
		t.Errorf("got %+v", s)
	}
	w.disconnect("met")
	w.pass(unmetFor / 2)
	if err := w.registerNet("unmet"); err != nil { // its time begins again
		t.Fatal(err)
	}
	w.pass(unmetFor - time.Second)
	if w.nodeStatus("unmet") == nil {
		t.Fatal("forgotten too early")
	}
	w.pass(2 * time.Second)
	w.wantForgotten("unmet")
	if n := w.core.st.Nodes["met"]; n == nil || len(n.Blocks) != 1 {
		t.Errorf("the node that was met: %+v", n)
	}
	w.joinNet("unmet")
	if n := w.core.st.Nodes["unmet"]; n.Unmet || len(n.Blocks) != 1 {
		t.Errorf("once it connects: %+v", n)
	}
}

// What a board has from a manager that has lost its state is not taken from it before its first session: without a word it keeps its network.
func TestUnmetNodeKeepsItsBlocks(t *testing.T) {
	w := newNetWorld(t)
	if err := w.registerNet("n1", "10.160.3.0/26"); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	if c, told := w.net.configs["n1"]; told {
		t.Errorf("before its session it is told %+v", c)
	}
	w.nodes["n1"] = &board{id: "n1", epoch: 1}
	w.connect("n1")
	w.settle()
	if b := w.net.configs["n1"].Blocks; !slices.Equal(b, []string{"10.160.3.0/26"}) {
		t.Errorf("got %v", b)
	}
}

// A node whose record was damaged is no stranger: what is placed there waits for it.
func TestNodeWithPlacementsIsNotUnmet(t *testing.T) {
	w := newWorld(t, "n1")
	w.accepted(deploy(job("web", "good", 1)))
	if err := w.store.Commit(t.Context(), []store.Change{{Bucket: store.Nodes, Key: "n1"}}); err != nil {
		t.Fatal(err)
	}
	w.boot()
	if _, err := w.register("n1", "key of n1"); err != nil {
		t.Fatal(err)
	}
	w.pass(unmetFor + time.Second)
	if n := w.core.st.Nodes["n1"]; n == nil || len(n.Instances) != 1 {
		t.Errorf("got %+v", n)
	}
}

// A restart gives those that were not met their time anew, and no more than that.
func TestUnmetNodesSurviveARestart(t *testing.T) {
	w := newNetWorld(t)
	if err := w.registerNet("unmet"); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.pass(unmetFor - time.Second)
	if w.nodeStatus("unmet") == nil {
		t.Fatal("forgotten too early")
	}
	w.pass(2 * time.Second)
	w.wantForgotten("unmet")
}

func TestUnmetNodesHaveABound(t *testing.T) {
	w := newWorld(t, "met")
	w.cfg.Core = []messages.NodeID{"core"}
	w.boot()
	name := func(i int) messages.NodeID { return messages.NodeID(fmt.Sprintf("n%d", i)) }
	for i := range maxUnmet {
		if _, err := w.register(name(i), "key of "+string(name(i))); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			w.pass(time.Second)
		}
	}
	refused := func() bool {
		_, err := w.register("late", "key of late")
		r, ok := errors.AsType[*messages.Refusal](err)
		return ok && r.Code == messages.RefusedBusy
	}
	if !refused() {
		t.Error("one more than the bound was taken")
	}
	for _, id := range []messages.NodeID{"met", name(1), "core"} {
		if _, err := w.register(id, "key of "+string(id)); err != nil {
			t.Errorf("%s, whose name is known: %v", id, err)
		}
	}
	w.pass(unmetGrace - time.Second)
	if refused() {
		t.Error("the oldest does not make room")
	}
	w.settle()
	if n := len(w.core.unmet); n != maxUnmet+1 { // with the core node, which the configuration names
		t.Errorf("%d are remembered, want %d", n, maxUnmet+1)
	}
	w.pass(time.Second) // its status goes
	w.wantForgotten(name(0))
}
