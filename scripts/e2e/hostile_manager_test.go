package e2e

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"skerry.internal/broker"
	"skerry.internal/messages"
)

// engineMemory bounds what an engine under a manager gone mad ever held, in KiB; alone it holds some 25 MiB.
const engineMemory = 128 << 10

// held assigns the workload with the next rev.
func held(id messages.InstanceID, rev uint64, run bool) messages.Assignment {
	a := messages.Assignment{Instance: id, Rev: rev, Epoch: 1, Run: run}
	if run {
		spec := app("web", 1, nil).WithDefaults().Spec
		a.Spec = &spec
	}
	return a
}

// Whatever a manager, or somebody in its place, sends to an engine, its workload goes on, and it obeys what makes sense afterwards.
func TestHostileManager(t *testing.T) {
	l := emptyLab(t)
	m := newFakeManager(t)
	p := l.engineOf(m, "a", filepath.Join(l.dir, "a"))
	a := l.id("a")
	l.eventually("the engine is there", func() bool { return m.online() != nil })
	up := func(id messages.InstanceID) func() bool {
		return func() bool { s := m.status(id); return s.State == messages.Running && s.Healthy }
	}
	m.assign(t, a, held("web.0.0", 10, true))
	l.eventually("web.0.0 is up", up("web.0.0"))
	before := l.lives(a)

	// Of epoch 0, which is older than the engine's: what happens to be valid is not to be obeyed either.
	stale := held("web.0.0", 99, true)
	stale.Epoch = 0
	payloads := map[string][][]byte{
		"control/deploy": spoil(stale), "control/delete": spoil(messages.Assignment{Instance: "web.0.0", Rev: 99}),
		"control/sync": spoil(messages.Sync{Rev: 99, Assignments: []messages.Assignment{stale}}),
		"control/logs": spoil(messages.LogsRequest{Instance: "other.0.0", RequestID: "x", Tail: 3, Follow: true}),
		"control/x":    spoil(stale), "control/deploy/x/y": {nil}, "net/config": spoil(stale), "control": {nil},
	}
	sent := 0
	for suffix, all := range payloads {
		for i, payload := range append(all, bytes.Repeat([]byte{'{'}, 2<<20)) {
			err := m.broker.Publish(broker.Message{Topic: "nodes/" + string(a) + "/" + suffix, Payload: payload, QoS: byte(i % 2), Retain: i%100 == 99})
			if err != nil {
				t.Error(err)
			}
			sent++
		}
	}
	m.assign(t, a, held("web.1.0", 11, true))
	l.eventually("a good assignment among the bad ones is heard", func() bool {
		if m.status("web.1.0").Instance == "" { // it may have left for the frame that is larger than any: a manager repeats itself by sync
			m.assign(t, a, held("web.1.0", 11, true))
		}
		return up("web.1.0")()
	})
	unhurt(t, p)
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] || len(after) != 2 {
		t.Errorf("before %v, after %v", before, after)
	}
	peak := peakKiB(t, p)
	t.Logf("%d hostile messages, memory %d MiB at most", sent, peak>>10)
	if peak > engineMemory {
		t.Errorf("the engine held %d KiB, at most %d", peak, engineMemory)
	}
	for rev, id := range []messages.InstanceID{"web.0.0", "web.1.0"} {
		m.assign(t, a, held(id, uint64(20+rev), false))
		l.eventually(string(id)+" is stopped", func() bool { return m.status(id).State == messages.Stopped })
	}
}

// A registration that is answered with nonsense is tried again, and one that makes sense is taken.
func TestHostileWelcome(t *testing.T) {
	t.Parallel() // most of its time it waits for engines to try again
	l := emptyLab(t)
	nonsense := [][]byte{
		nil, []byte("4"), []byte("42/init,"), []byte(`42/init,["sc2"]`), []byte(`42/init,["sc2",` + string(bytes.Repeat([]byte("["), 20_000))), []byte(`42/init,["sc2",{"id":"x","cluster":"lab","brokers":[]}]`),
		[]byte(`42/init,["sc2",{"id":"../x","cluster":"lab","brokers":["tcp://127.0.0.1:1"]}]`), []byte(`42/init,["sc2",{"id":"x","cluster":"lab","brokers":["file:///etc/passwd","tcp://%zz","://"]}]`),
		[]byte("4599999999999-/init,[]"), []byte("451-/init,[\"sc2\",{\"_placeholder\":true,\"num\":0}]"), []byte("\xff\xfe"), []byte("1"), bytes.Repeat([]byte("4"), 1<<20), []byte(`44/init,"no"`), []byte(`42/init,["refused",7]`),
	}
	type pair struct {
		manager *fakeManager
		engine  *process
	}
	var pairs []pair
	for i, bad := range nonsense {
		m := newFakeManager(t)
		tries := 0
		m.welcome = func(info messages.NodeInfo) [][]byte { // called with the manager's mutex held
			tries++
			if tries == 2 {
				m.welcome = nil
			}
			return [][]byte{bad, []byte("41")} // 41: the connection ends
		}
		pairs = append(pairs, pair{m, l.engineOf(m, fmt.Sprintf("n%d", i), filepath.Join(l.dir, fmt.Sprintf("n%d", i)), "--docker-host", noDocker)})
	}
	start := time.Now()
	for i, p := range pairs {
		l.eventually(fmt.Sprintf("the engine registers after %.40q", nonsense[i]), func() bool { return p.manager.online() != nil })
		unhurt(t, p.engine)
	}
	t.Logf("all of %d engines have registered after %s", len(pairs), time.Since(start).Round(time.Millisecond))
}
