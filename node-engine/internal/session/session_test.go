package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/session/sessiontest"
)

// cluster is a manager's registration, a broker behind a link that can be cut, a client that hears all, and a node.
type cluster struct {
	manager *sessiontest.Manager
	broker  *sessiontest.Broker
	link    *link
	client  *sessiontest.Client
	node    *node
}

func newCluster(t *testing.T, change func(*Config)) *cluster {
	t.Helper()
	c := new(cluster)
	c.broker = sessiontest.NewBroker(t)
	c.link = newLink(t, c.broker.Addr())
	c.client = sessiontest.NewClient(t, c.broker.Addr())
	c.manager = sessiontest.NewManager(t, "", sessiontest.Welcomed(c.link.url()))
	c.node = newNode(t, c.manager.URL, change)
	return c
}

const presenceTopic, jobTopic = "nodes/n1/presence", "nodes/n1/job"

// waitOnline waits for a presence with the digest of what the node holds now.
func (c *cluster) waitOnline(t *testing.T) messages.Presence {
	t.Helper()
	var p messages.Presence
	want, _, _ := c.node.instances.Digest()
	sessiontest.Eventually(t, "the node is online", func() bool {
		return sessiontest.Find(c.client, presenceTopic, &p, func(p *messages.Presence) bool { return p.Online && p.Digest == want })
	})
	return p
}

func (c *cluster) waitOffline(t *testing.T) {
	t.Helper()
	var p messages.Presence
	sessiontest.Eventually(t, "the node is offline", func() bool {
		return sessiontest.Find(c.client, presenceTopic, &p, func(*messages.Presence) bool { return true }) && !p.Online
	})
}

func (c *cluster) waitStatus(t *testing.T, id messages.InstanceID, seq uint64) {
	t.Helper()
	var s messages.InstanceStatus
	sessiontest.Eventually(t, fmt.Sprintf("status %d of %s came", seq, id), func() bool {
		return sessiontest.Find(c.client, jobTopic, &s, func(s *messages.InstanceStatus) bool { return s.Instance == id && s.Seq == seq })
	})
}

func deploy(id messages.InstanceID, rev uint64) messages.Assignment {
	spec := messages.Spec{Image: "i", Technology: messages.Docker}
	return messages.Assignment{Instance: id, Rev: rev, Epoch: 7, Run: true, Spec: &spec}
}

func TestSessionHearsOrdersAndReports(t *testing.T) {
	c := newCluster(t, nil)
	c.node.instances.current = []messages.InstanceStatus{status("old.0.1", 4, messages.Running)}
	c.node.start(t)
	if p := c.waitOnline(t); p.BootID != "boot-1" || p.Epoch != 7 {
		t.Errorf("presence: got %+v", p)
	}
	c.waitStatus(t, "old.0.1", 4)
	c.client.Say(t, "nodes/n1/control/deploy", deploy("a.0.1", 1))
	c.client.Say(t, "nodes/n1/control/delete", messages.Assignment{Instance: "a.0.1", Rev: 2, Epoch: 7})
	sessiontest.Eventually(t, "both assignments arrived", func() bool { n, _ := c.node.instances.got(); return n == 2 })
	if a := c.node.instances.assigned; a[0].Rev != 1 || a[1].Rev != 2 || a[0].Spec.Image != "i" {
		t.Errorf("assignments: got %+v", a)
	}
	c.node.outbox.Put(status("a.0.1", 1, messages.Stopped))
	c.waitStatus(t, "a.0.1", 1)
	sessiontest.Eventually(t, "the status is acknowledged", func() bool { return c.node.instances.acked("a.0.1") == 1 })
	before := c.client.Number(jobTopic)
	c.client.Say(t, "nodes/n1/control/sync", messages.Sync{Epoch: 7, Rev: 9})
	sessiontest.Eventually(t, "the sync is answered with every status", func() bool {
		_, syncs := c.node.instances.got()
		return syncs == 1 && c.client.Number(jobTopic) > before
	})
}

func TestSessionSaysWhatItHolds(t *testing.T) {
	c := newCluster(t, nil)
	large := deploy("large.0.0", 2)
	large.Spec.Environment = map[string]string{"X": strings.Repeat("x", messages.MaxPayload)}
	c.node.instances.assigned = []messages.Assignment{deploy("a.0.1", 1), large, deploy("b.0.1", 3)}
	c.node.start(t)
	c.waitOnline(t)
	c.client.Say(t, "nodes/n1/control/inventory", messages.InventoryRequest{Epoch: 8})
	var last messages.Inventory
	sessiontest.Eventually(t, "the last piece came", func() bool {
		return sessiontest.Find(c.client, "nodes/n1/inventory", &last, func(i *messages.Inventory) bool { return i.Last })
	})
	if last.N != 2 || len(last.Assignments) != 1 || last.Assignments[0].Instance != "b.0.1" || last.Assignments[0].Spec == nil {
		t.Errorf("the last of three pieces: got %+v", last)
	}
}

func TestHostileControlMessagesAreDroppedAndTheRestGoesOn(t *testing.T) {
	c := newCluster(t, nil)
	c.node.start(t)
	c.waitOnline(t)
	sent := 0
	for _, h := range hostile {
		if strings.HasPrefix(h[0], "nodes/n1/control/") {
			c.client.Say(t, h[0], []byte(h[1]))
			sent++
		}
	}
	c.client.Say(t, "nodes/n1/control/deploy", deploy("a.0.1", 1))
	sessiontest.Eventually(t, "the good one arrived", func() bool { n, _ := c.node.instances.got(); return n == 1 })
	c.node.bad.mu.Lock()
	refused := c.node.bad.total
	c.node.bad.mu.Unlock()
	if refused != uint64(sent) {
		t.Errorf("refused %d, want %d", refused, sent)
	}
	if !c.node.log.has("control message refused") {
		t.Error("nothing in the log")
	}
	if got := c.manager.Count.Load(); got != 1 {
		t.Errorf("registered %d times, want once", got)
	}
}

func TestWillAndReconnectAfterACutLink(t *testing.T) {
	c := newCluster(t, nil)
	c.node.pace.patience = time.Minute
	c.node.start(t)
	c.waitOnline(t)
	c.client.Forget()
	c.link.cut()
	sessiontest.Eventually(t, "the will was published", func() bool {
		var p messages.Presence
		return sessiontest.Find(c.client, presenceTopic, &p, func(p *messages.Presence) bool { return !p.Online && p.BootID == "boot-1" })
	})
	c.waitOnline(t)
	c.client.Say(t, "nodes/n1/control/deploy", deploy("a.0.1", 1))
	sessiontest.Eventually(t, "the subscription is back", func() bool { n, _ := c.node.instances.got(); return n == 1 })
	if got := c.manager.Count.Load(); got != 1 {
		t.Errorf("registered %d times, want once: the credentials are still good", got)
	}
}

func TestBrokerKilledAndRestarted(t *testing.T) {
	c := newCluster(t, nil)
	c.node.instances.current = []messages.InstanceStatus{status("a.0.1", 3, messages.Running)}
	c.node.pace.patience = time.Minute
	c.node.start(t)
	c.waitOnline(t)
	c.link.set(true)
	c.broker.Kill()
	sessiontest.Eventually(t, "the loss was noticed", func() bool { return c.node.log.has("connection lost") })
	c.node.outbox.Put(status("b.0.1", 1, messages.Starting))
	c.node.outbox.Put(status("b.0.1", 2, messages.ExitedState)) // while nobody listens
	c.broker.Start(t)
	c.client = sessiontest.NewClient(t, c.broker.Addr())
	c.link.set(false) // the node comes when somebody listens
	c.waitOnline(t)
	c.waitStatus(t, "a.0.1", 3)
	c.waitStatus(t, "b.0.1", 2)
	sessiontest.Eventually(t, "acknowledged", func() bool { return c.node.instances.acked("b.0.1") == 2 && c.node.instances.acked("a.0.1") == 3 })
	c.client.Say(t, "nodes/n1/control/deploy", deploy("a.0.2", 1))
	sessiontest.Eventually(t, "the subscription is back", func() bool { n, _ := c.node.instances.got(); return n == 1 })
	if got := c.manager.Count.Load(); got != 1 {
		t.Errorf("registered %d times, want once", got)
	}
}

func TestACleanEndSaysOffline(t *testing.T) {
	c := newCluster(t, nil)
	c.node.start(t)
	c.waitOnline(t)
	c.node.end()
	c.waitOffline(t)
	late := sessiontest.NewClient(t, c.broker.Addr()) // takes the first one's place: same id
	sessiontest.Eventually(t, "it is retained", func() bool {
		all := late.All()
		return len(all) == 1 && all[0].Retained && strings.Contains(string(all[0].Payload), `"online":false`)
	})
}

func TestRefusedCredentialsLeadToANewRegistration(t *testing.T) {
	passwords := filepath.Join(t.TempDir(), "passwords")
	if out, err := exec.Command(sessiontest.BrokerProgram+"_passwd", "-b", "-c", passwords, "node", "secret").CombinedOutput(); err != nil {
		t.Fatalf("make the file of passwords: %v: %s", err, out)
	}
	b := sessiontest.NewBroker(t, "allow_anonymous false", "password_file "+passwords)
	good := sessiontest.Welcomed(b.URL())
	m := sessiontest.NewManager(t, "", func(info messages.NodeInfo) (string, any) {
		event, w := good(info)
		w.(*messages.Welcome).Password = "from before the manager lost its memory"
		return event, w
	})
	n := newNode(t, m.URL, nil)
	n.start(t)
	sessiontest.Eventually(t, "it registers again", func() bool { return m.Count.Load() >= 2 })
	m.SetAnswer(good)
	sessiontest.Eventually(t, "it gets in", func() bool { return n.log.has("in session") && n.log.has("msg=\"in session\"") })
	if !n.log.has(ErrCredentials.Error()) {
		t.Error("the log does not say why")
	}
}

func TestManagerAwayThenBack(t *testing.T) {
	b := sessiontest.NewBroker(t)
	addr := fmt.Sprintf("127.0.0.1:%d", sessiontest.FreePort(t))
	n := newNode(t, "http://"+addr, nil)
	n.start(t)
	sessiontest.Eventually(t, "it has tried", func() bool { return n.log.has("not in session") })
	sessiontest.NewManager(t, addr, sessiontest.Welcomed(b.URL()))
	sessiontest.Eventually(t, "it gets in", func() bool { return n.log.has("msg=\"in session\"") })
}

func TestBrokersElsewhereAreAskedForAfterAWhile(t *testing.T) {
	c := newCluster(t, nil)
	c.node.pace.patience = 50 * time.Millisecond
	c.node.start(t)
	c.waitOnline(t)
	second := sessiontest.NewBroker(t)
	c.manager.SetAnswer(sessiontest.Welcomed("tcp://127.0.0.1:1", second.URL()))
	c.broker.Kill()
	client := sessiontest.NewClient(t, second.Addr())
	sessiontest.Eventually(t, "it is online at the other broker", func() bool {
		var p messages.Presence
		return sessiontest.Find(client, presenceTopic, &p, func(p *messages.Presence) bool { return p.Online })
	})
}

func TestARefusalIsTriedAgain(t *testing.T) {
	b := sessiontest.NewBroker(t)
	m := sessiontest.NewManager(t, "", func(messages.NodeInfo) (string, any) {
		return messages.RefusedEvent, &messages.Refusal{Code: messages.RefusedName, Message: "taken", Hint: "skerry node replace n1"}
	})
	n := newNode(t, m.URL, nil)
	n.start(t)
	sessiontest.Eventually(t, "it is refused twice", func() bool { return m.Count.Load() >= 2 })
	n.log.mu.Lock()
	if got := strings.Count(n.log.b.String(), "level=ERROR"); got != 1 {
		t.Errorf("the refusal was said %d times, want once", got)
	}
	n.log.mu.Unlock()
	m.SetAnswer(sessiontest.Welcomed(b.URL()))
	sessiontest.Eventually(t, "it gets in", func() bool { return n.log.has("msg=\"in session\"") })
}

func TestRefreshTellsNewFactsWithoutInterruption(t *testing.T) {
	c := newCluster(t, nil)
	c.node.start(t)
	c.waitOnline(t)
	<-c.manager.Infos
	c.node.Refresh()
	<-c.manager.Infos
	if got := c.client.Number(presenceTopic); got != 1 {
		t.Errorf("got %d presences, want the first one alone", got)
	}
	renamed := sessiontest.Welcomed(c.link.url())
	c.manager.SetAnswer(func(info messages.NodeInfo) (string, any) { info.Name = "n2"; return renamed(info) })
	c.node.Refresh()
	sessiontest.Eventually(t, "it is online under its new name", func() bool {
		var p messages.Presence
		return sessiontest.Find(c.client, "nodes/n2/presence", &p, func(p *messages.Presence) bool { return p.Online })
	})
}

func TestAnOrderThatCannotBeAppliedIsAskedForAgain(t *testing.T) {
	c := newCluster(t, nil)
	c.node.instances.fail = errors.New("disk full")
	c.node.start(t)
	c.waitOnline(t)
	c.client.Say(t, "nodes/n1/control/deploy", deploy("a.0.1", 1))
	sessiontest.Eventually(t, "the presence came again", func() bool { return c.client.Number(presenceTopic) >= 2 })
}

func TestTelemetryIsStretchedWhileNothingChanges(t *testing.T) {
	percent := make(chan float64, 1)
	current, taken := 0.0, 0
	c := newCluster(t, func(cfg *Config) {
		cfg.Telemetry = func(context.Context) messages.Telemetry { // every 100 ms
			select {
			case current = <-percent:
			default:
			}
			taken++
			return messages.Telemetry{UptimeS: int64(taken), CPU: messages.CPUUse{Percent: current}}
		}
	})
	c.node.start(t)
	const topic = "nodes/n1/information"
	var first, second, third messages.Telemetry
	sessiontest.Eventually(t, "the first came", func() bool {
		return sessiontest.Find(c.client, topic, &first, func(*messages.Telemetry) bool { return true })
	})
	sessiontest.Eventually(t, "the second came", func() bool { return c.client.Number(topic) >= 2 })
	sessiontest.Find(c.client, topic, &second, func(*messages.Telemetry) bool { return true })
	if got := second.UptimeS - first.UptimeS; got != maxStretch {
		t.Errorf("%d measurements between two messages, want %d", got, maxStretch)
	}
	percent <- 50
	sessiontest.Eventually(t, "the change came", func() bool {
		return sessiontest.Find(c.client, topic, &third, func(v *messages.Telemetry) bool { return v.CPU.Percent == 50 })
	})
	if got := third.UptimeS - second.UptimeS; got >= maxStretch {
		t.Errorf("a change waited for %d measurements", got)
	}
	if first.ClockSkewMS < 3_590_000 || first.ClockSkewMS > 3_610_000 {
		t.Errorf("clock_skew_ms: got %d, want about an hour", first.ClockSkewMS)
	}
}

func TestLogsAreStreamedBoundedAndRenewed(t *testing.T) {
	c := newCluster(t, func(cfg *Config) {
		cfg.Logs = func(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error {
			if err := write("stdout", strings.Repeat("ä", maxChunk)); err != nil {
				return err
			}
			if !req.Follow {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
	})
	c.node.pace.follow = 300 * time.Millisecond
	c.node.start(t)
	c.waitOnline(t)
	const topic = "nodes/n1/logs/a.0.1"
	last := func(request string) func() bool {
		return func() bool {
			var chunk messages.LogChunk
			return sessiontest.Find(c.client, topic, &chunk, func(l *messages.LogChunk) bool { return l.RequestID == request && l.Last })
		}
	}
	c.client.Say(t, "nodes/n1/control/logs", messages.LogsRequest{Instance: "a.0.1", RequestID: "once"})
	sessiontest.Eventually(t, "the output ended", last("once"))
	var text strings.Builder
	for _, m := range c.client.All() {
		var chunk messages.LogChunk
		if m.Topic == topic && json.Unmarshal(m.Payload, &chunk) == nil {
			text.WriteString(chunk.Text)
		}
	}
	if text.String() != strings.Repeat("ä", maxChunk) {
		t.Errorf("got %d bytes of output, want %d", text.Len(), 2*maxChunk)
	}
	start := time.Now()
	for range 4 { // renewed for longer than it lasts by itself
		c.client.Say(t, "nodes/n1/control/logs", messages.LogsRequest{Instance: "a.0.1", RequestID: "renewed", Follow: true})
		for i := range maxStreams + 1 {
			c.client.Say(t, "nodes/n1/control/logs", messages.LogsRequest{Instance: "a.0.1", RequestID: fmt.Sprint("many-", i), Follow: true})
		}
		<-time.After(100 * time.Millisecond)
	}
	sessiontest.Eventually(t, "the one too many was refused", last(fmt.Sprint("many-", maxStreams)))
	sessiontest.Eventually(t, "what is not renewed ends", last("renewed"))
	if d := time.Since(start); d < 600*time.Millisecond {
		t.Errorf("ended after %s although it was renewed", d)
	}
}
