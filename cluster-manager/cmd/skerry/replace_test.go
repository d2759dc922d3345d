package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"skerry.internal/messages"
)

func TestNodeReplace(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	c.skerry(t, "job", "deploy", "web", "--image", "x").want(t, 0, "done", "")
	c.skerry(t, "node", "replace", "board-9").want(t, 1, "", "replace of board-9 refused (unknown_node)")
	c.skerry(t, "node", "replace", "board-1", "--username", "viewer").want(t, 1, "", "not_allowed")
	r := c.skerry(t, "node", "replace", "board-1")
	r.want(t, 0, "replace of board-1 accepted (rev ", "")
	r.want(t, 0, "replace of board-1 done: board-1 waits for the board that registers next with this name", "")
	c.waitNode(t, "board-1", messages.NodeExpected)
	until(t, "the end of the old board's session", func() bool { return !b.client.IsConnected() })

	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.key, b.held, b.seq = key, map[messages.InstanceID]messages.Assignment{}, map[messages.InstanceID]uint64{}
	b.mu.Unlock()
	b.register(c.m.HTTPAddr())
	b.connect(c.m.MQTTAddr())
	c.waitNode(t, "board-1", messages.NodeOnline)
	until(t, "web on the new board", func() bool {
		var j messages.JobStatus
		r := c.skerry(t, "job", "status", "web", "--json")
		return json.Unmarshal([]byte(r.out), &j) == nil && j.State == messages.JobRunning && j.Instances[0].Instance == "web.0.0"
	})
}

func TestNodeRemove(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	for _, name := range []messages.NodeID{"board-2", "board-3"} {
		newBoard(t, c, name).vanish()
		c.waitNode(t, name, messages.NodeAway)
	}
	r := c.skerry(t, "node", "remove", "board-2", "board-1", "board-9", "board-3", "core-1")
	r.want(t, 1, "remove of board-2 done", "remove of board-1 refused (not_allowed): board-1 is online: end its engine first")
	r.want(t, 1, "remove of board-3 done", "remove of board-9 refused (unknown_node)")
	r.want(t, 1, "remove of core-1 done: core-1 is forgotten; it stays listed as expected", "")
	list := c.skerry(t, "node", "list")
	if strings.Contains(list.out, "board-2") || strings.Contains(list.out, "board-3") || !strings.Contains(list.out, "board-1") || !strings.Contains(list.out, "core-1") {
		t.Errorf("got %s", list.out)
	}
	c.skerry(t, "node", "status", "board-2").want(t, 1, "", "there is no node board-2")

	r = c.skerry(t, "node", "remove", "core-1", "--json", "--request-id", "r1")
	again := c.skerry(t, "node", "remove", "core-1", "--json", "--request-id", "r1")
	for _, text := range []string{r.out, again.out} { // the manager repeats both
		var said []string
		for l := range strings.Lines(text) {
			var res messages.Result
			if err := json.Unmarshal([]byte(l), &res); err != nil {
				t.Fatal(err)
			}
			said = append(said, fmt.Sprint(res.Command, res.Node, res.Phase))
		}
		if fmt.Sprint(said) != "[removecore-1accepted removecore-1done]" || r.code != 0 {
			t.Errorf("got %v %d %q", said, r.code, r.err)
		}
	}
}
