package e2e

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"skerry.internal/broker"
	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
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

// Whatever a manager, or somebody in its place, sends to an engine that is part of a network, its workload goes on, and it obeys what makes sense
// afterwards. They are alone on a machine of their own.
func TestHostileManager(t *testing.T) {
	l := emptyLab(t)
	alone := nettest.NewHost(t, "alone")
	l.hosts = map[string]*nettest.Host{"a": alone}
	m := newFakeManagerOn(t, alone)
	a := l.id("a")
	configure := func(c messages.NetworkConfig) {
		if err := m.broker.Publish(broker.Message{Topic: topicsOf(messages.NetConfigTopic, a)[0], Payload: messages.Encode(c), QoS: 1, Retain: true}); err != nil {
			t.Error(err)
		}
	}
	const stands = 2 * number // a rev that no hostile payload has
	configure(theNetwork(stands))
	p := l.engineOf(m, "a", filepath.Join(l.dir, "a"), "--overlay", "auto")
	l.logLine(p, 0, "overlay up")
	up := func(id messages.InstanceID) func() bool {
		return func() bool {
			s := m.status(id)
			return s.State == messages.Running && s.Healthy && s.Network == messages.Overlay
		}
	}
	m.assign(t, a, held("web.0.0", 10, true))
	l.eventually("web.0.0 is up", up("web.0.0"))
	before := l.lives(a)

	// What happens to be valid is not to be obeyed either: it is of epoch 0, which is older than the engine's, or of an older rev.
	sent := 0
	for kind, s := range contract() {
		for _, topic := range topicsOf(kind, a) {
			payloads := hostileOn(kind, topic)
			if s.to != theNode {
				payloads = payloads[:few]
			}
			sent += m.pour(t, topic, payloads)
		}
	}
	for _, suffix := range []string{"control/x", "control/deploy/x/y", "control", "net/x"} {
		sent += m.pour(t, "nodes/"+string(a)+"/"+suffix, hostileOn(messages.NodeControlTopic, "deploy")[:few])
	}
	heard := func(id messages.InstanceID, rev uint64) {
		l.eventually(string(id)+", a good assignment among the bad ones, is heard", func() bool {
			if m.status(id).Instance == "" { // it may have left for the frame that is larger than any: a manager repeats itself by sync
				m.assign(t, a, held(id, rev, true))
			}
			return up(id)()
		})
	}
	heard("web.1.0", 11)
	unhurt(t, p)
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] || len(after) != 2 {
		t.Errorf("before %v, after %v", before, after)
	}

	// Networks that it has to obey, each newer than the last, and services: what they take from it comes back with one that makes sense.
	var newer [][]byte
	for i, payload := range hostileOn(messages.NetConfigTopic, "config") {
		newer = append(newer, revOf.ReplaceAll(payload, fmt.Appendf(nil, `"rev":%d`, stands+1+i)))
	}
	sent += m.pour(t, topicsOf(messages.NetConfigTopic, a)[0], newer)
	sent += m.pour(t, topicsOf(messages.NetServicesTopic, a)[0], hostileOn(messages.NetServicesTopic, "services"))
	configure(theNetwork(2 * stands))
	heard("web.2.0", 12)
	unhurt(t, p)
	peak := peakKiB(t, p)
	t.Logf("%d hostile messages, memory %d MiB at most", sent, peak>>10)
	if peak > engineMemory {
		t.Errorf("the engine held %d KiB, at most %d", peak, engineMemory)
	}
	for rev, id := range []messages.InstanceID{"web.0.0", "web.1.0", "web.2.0"} {
		m.assign(t, a, held(id, uint64(20+rev), false))
		l.eventually(string(id)+" is stopped", func() bool { return m.status(id).State == messages.Stopped })
	}
}

var revOf = regexp.MustCompile(`"rev":\d+`)

// pour publishes payloads to a topic, and one that is larger than any.
func (m *fakeManager) pour(t *testing.T, topic string, payloads [][]byte) int {
	t.Helper()
	for i, payload := range append(payloads, bytes.Repeat([]byte{'{'}, 2<<20)) {
		if err := m.broker.Publish(broker.Message{Topic: topic, Payload: payload, QoS: byte(i % 2), Retain: i%100 == 99}); err != nil {
			t.Error(err)
		}
	}
	return len(payloads) + 1
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
