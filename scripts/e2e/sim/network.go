package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/engine/enginesim"
)

var (
	errRefused = errors.New("connection refused")
	errTimeout = errors.New("no answer in time")
	errReset   = errors.New("connection reset")
)

// dialTime is how long a node waits for an answer to its connection.
const dialTime = 10 * time.Second

// answer is what one side waits for.
type answer[T any] struct {
	value T
	err   error
}

// transport is how one life of an engine reaches the manager.
type transport struct{ life *life }

// Register asks the manager for admission.
func (t transport) Register(ctx context.Context, introduce func(messages.Hello) *messages.NodeInfo) (messages.Welcome, error) {
	info := *introduce(messages.Hello{Cluster: "sim", Nonce: "nonce"})
	reply := make(chan answer[messages.Welcome], 1)
	t.life.say("1 register", func() { t.register(info, reply) })
	select {
	case a := <-reply:
		return a.value, a.err
	case <-ctx.Done():
		return messages.Welcome{}, ctx.Err()
	}
}

func (t transport) register(info messages.NodeInfo, reply chan answer[messages.Welcome]) {
	s, n := t.life.node.sim, t.life.node
	respond := func(w messages.Welcome, err error) {
		s.at(time.Now().Add(s.latency()), n, func() { reply <- answer[messages.Welcome]{w, err} })
	}
	s.at(time.Now().Add(s.latency()), n, func() {
		m := s.mgr
		if m.dead.Load() {
			respond(messages.Welcome{}, errRefused)
			return
		}
		s.asks.Go(func() {
			w, err := m.m.Register(m.ctx, info)
			m.say("register "+string(n.id), func() {
				s.tell("%s registers: epoch %d %v", n.id, w.Epoch, err)
				respond(w, err)
			})
		})
	})
}

// conn is one MQTT connection between a node and the manager's broker. The mutexless fields belong to the story's goroutine.
type conn struct {
	sim     *Sim
	node    *node
	life    *life
	number  int
	receive func(string, []byte)

	once  sync.Once
	lost  chan struct{}
	cause error
	ended atomic.Bool // towards the node

	online     bool // towards the manager
	link       *int
	subscribed bool
	up, down   lane
}

// lane is one direction of a connection: what was sent first arrives first.
type lane struct {
	last time.Time
	gone bool // what is under way does not arrive
}

// Connect opens a connection.
func (t transport) Connect(ctx context.Context, _ *url.URL, login enginesim.Login, receive func(string, []byte)) (enginesim.Connection, error) {
	c := &conn{sim: t.life.node.sim, node: t.life.node, life: t.life, receive: receive, lost: make(chan struct{})}
	reply := make(chan error, 1)
	t.life.say("1 connect", func() { c.open(login, reply) })
	timer := time.NewTimer(dialTime)
	defer timer.Stop()
	var err error
	select {
	case err = <-reply:
	case <-timer.C:
		err = errTimeout
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.end(err)
		t.life.say("1 given up", func() { c.sendUp("", c.offline) })
		return nil, err
	}
	return c, nil
}

func (c *conn) open(login enginesim.Login, reply chan error) {
	s := c.sim
	s.order++
	c.number = s.order
	c.sendUp("", func() {
		m := s.mgr
		if m.dead.Load() {
			c.sendDown("", func() { reply <- errRefused })
			return
		}
		s.asks.Go(func() {
			ok := m.m.Admits(m.ctx, c.node.id, login.Password)
			m.say("admits "+string(c.node.id), func() { c.admitted(ok, reply) })
		})
	})
}

// admitted is the broker's CONNACK. An older connection of the same node ends, before the new one is heard of or after it.
func (c *conn) admitted(ok bool, reply chan error) {
	s := c.sim
	if !ok {
		c.sendDown("", func() { reply <- enginesim.ErrCredentials })
		return
	}
	c.online, c.link = true, new(int)
	if old := c.node.conn; old != nil && old.online {
		s.tell("%s takes its connection over", c.node.id)
		old.up.gone = true
		if s.chance(2) {
			old.offline()
		} else {
			s.after(s.between(0, 200*time.Millisecond), old.offline)
		}
	}
	c.node.conn = c
	s.tell("%s connects", c.node.id)
	c.sendDown("", func() { reply <- nil })
}

// send has something arrive over a lane in order.
func (c *conn) send(l *lane, what string, do func(), arrives func() bool) {
	due := time.Now().Add(c.sim.latency())
	if !due.After(l.last) {
		due = l.last.Add(time.Microsecond)
	}
	l.last = due
	c.sim.at(due, c.node, func() {
		if l.gone || !arrives() {
			return
		}
		if what != "" {
			c.sim.tell("%s", what)
		}
		do()
	})
}

// sendUp sends from the node to the manager.
func (c *conn) sendUp(what string, do func()) {
	c.send(&c.up, what, do, func() bool { return true })
}

// sendDown sends from the manager to the node.
func (c *conn) sendDown(what string, do func()) {
	c.send(&c.down, what, do, func() bool { return !c.life.dead.Load() })
}

// end tells the node's side that the connection is gone.
func (c *conn) end(err error) {
	c.once.Do(func() {
		c.cause = err
		c.ended.Store(true)
		close(c.lost)
	})
}

// offline tells the manager that the connection is gone: the last will, then the broker's own word. The node learns of it, too.
func (c *conn) offline() {
	if !c.online {
		return
	}
	c.online, c.subscribed = false, false
	c.sendDown("", func() { c.end(errReset) })
	c.sim.mgr.offline(c)
}

// shake loses what is under way in one or both directions and lets both sides notice, each in its time.
func (c *conn) shake(soon bool) {
	s := c.sim
	if c.ended.Load() && !c.online {
		return
	}
	s.tell("the connection of %s breaks", c.node.id)
	c.down.gone = true
	c.up.gone = s.chance(2)
	nodeNotices, brokerNotices := keepAlive+5*time.Second, brokerWaits
	if soon {
		nodeNotices, brokerNotices = time.Second, time.Second
	}
	s.after(s.between(0, nodeNotices), func() { c.end(errReset) })
	s.after(s.between(0, brokerNotices), func() { c.up.gone = true; c.offline() })
}

// Subscribe asks the broker for a filter.
func (c *conn) Subscribe(string) enginesim.Receipt {
	r := newReceipt()
	c.life.say("2 subscribe", func() {
		c.sendUp("", func() {
			c.subscribed = c.online
			c.sendDown("", r.finish)
		})
	})
	return r
}

// Publish sends a message to the manager.
func (c *conn) Publish(topic string, _ byte, _ bool, payload []byte) enginesim.Receipt {
	r := newReceipt()
	if c.life.dead.Load() || c.ended.Load() {
		r.err = errReset
		r.finish()
		return r
	}
	t, err := messages.ParseTopic(topic)
	if err != nil {
		r.err = err
		r.finish()
		return r
	}
	payload = c.sim.bug.spoil(c.life, t, payload)
	what := fmt.Sprintf("%s → manager  %s", c.node.id, describe(t, payload))
	c.life.say("3 "+topic+" "+about(t, payload), func() { c.publish(t, topic, payload, what, r) })
	return r
}

func (c *conn) publish(t messages.Topic, topic string, payload []byte, what string, r *receipt) {
	arrive := func(c *conn) {
		c.sim.mgr.fromNode(c, t, topic, payload)
	}
	first := func() {
		arrive(c)
		c.sendDown("", r.finish)
	}
	if !c.loses(&c.up, what, first) {
		c.sendUp(what, first)
	}
	if t.Kind == messages.NodeJobTopic {
		c.repeat(what, func(now *conn) {
			if now.online {
				arrive(now)
			}
		})
	}
}

// loses has a message lose its place in a lane, by chance and where the weather is harsh: what was sent later may arrive before it. It reports whether
// it has.
func (c *conn) loses(l *lane, what string, do func()) bool {
	s := c.sim
	if s.weather != harsh || s.healing || !s.chance(4) {
		return false
	}
	s.at(time.Now().Add(s.between(0, 10*time.Second)), c.node, func() {
		if !l.gone && !s.over {
			s.tell("%s (out of order)", what)
			do()
		}
	})
	return true
}

// repeat has a message arrive once more, at any time and over whatever connection there is then, where the weather is harsh; but not
// once the node has a new disk: it counts seq from the start then, and only the end of the old connection tells the two apart.
func (c *conn) repeat(what string, arrive func(*conn)) {
	s := c.sim
	if s.weather != harsh || s.healing || !s.chance(4) {
		return
	}
	s.at(time.Now().Add(s.between(0, 40*time.Second)), c.node, func() {
		if now := c.node.conn; now != nil && now.life.disk == c.life.disk && !s.over {
			s.tell("%s (again)", what)
			arrive(now)
		}
	})
}

// deliver sends a message of the manager to the node.
func (c *conn) deliver(t messages.Topic, topic string, payload []byte) {
	what := fmt.Sprintf("manager → %s  %s", c.node.id, describe(t, payload))
	hear := func() { c.hear(topic, payload) }
	if !c.loses(&c.down, what, hear) {
		c.sendDown(what, hear)
	}
	c.repeat(what, func(now *conn) { now.hear(topic, payload) })
}

func (c *conn) hear(topic string, payload []byte) {
	if !c.ended.Load() && !c.life.dead.Load() {
		c.receive(topic, payload)
	}
}

// Lost is closed once the connection is gone.
func (c *conn) Lost() <-chan struct{} { return c.lost }

// Cause says why.
func (c *conn) Cause() error { return c.cause }

// Disconnect ends the connection; the session has published its goodbye.
func (c *conn) Disconnect() { c.Close() }

// Close ends the connection without a word.
func (c *conn) Close() {
	c.end(errors.New("closed"))
	c.life.say("4 close", func() { c.sendUp("", c.offline) })
}

// receipt is closed by the story's goroutine.
type receipt struct {
	once sync.Once
	done chan struct{}
	err  error
}

func newReceipt() *receipt { return &receipt{done: make(chan struct{})} }

func (r *receipt) finish() { r.once.Do(func() { close(r.done) }) }

// Done is closed once the packet has been acknowledged.
func (r *receipt) Done() <-chan struct{} { return r.done }

// Error says why it could not be sent.
func (r *receipt) Error() error { return r.err }

// about is the instance that a status speaks of: of each the statuses leave in order.
func about(t messages.Topic, payload []byte) string {
	var i messages.InstanceStatus
	if t.Kind == messages.NodeJobTopic {
		_ = json.Unmarshal(payload, &i)
	}
	return string(i.Instance)
}

// describe puts a message into a few words.
func describe(t messages.Topic, payload []byte) string {
	switch t.Kind {
	case messages.PresenceTopic:
		var p messages.Presence
		_ = json.Unmarshal(payload, &p)
		return fmt.Sprintf("presence online %v epoch %d rev %d digest %s", p.Online, p.Epoch, p.Rev, p.Digest)
	case messages.NodeJobTopic:
		var i messages.InstanceStatus
		_ = json.Unmarshal(payload, &i)
		return describeStatus(&i)
	case messages.NodeControlTopic:
		var a messages.Assignment
		_ = json.Unmarshal(payload, &a)
		return describeAssignment(&a)
	case messages.SyncTopic:
		var y messages.Sync
		_ = json.Unmarshal(payload, &y)
		var each []string
		for i := range y.Assignments {
			each = append(each, describeAssignment(&y.Assignments[i]))
		}
		return fmt.Sprintf("sync epoch %d rev %d [%s]", y.Epoch, y.Rev, strings.Join(each, ", "))
	default:
		return t.String()
	}
}

func describeStatus(i *messages.InstanceStatus) string {
	text := fmt.Sprintf("%s #%d attempt %d %s", i.Instance, i.Seq, i.Attempt, i.State)
	if i.Healthy {
		text += " healthy"
	}
	return text + fmt.Sprintf(" rev %d", i.Rev)
}

func describeAssignment(a *messages.Assignment) string {
	if !a.Run {
		return fmt.Sprintf("stop %s rev %d epoch %d", a.Instance, a.Rev, a.Epoch)
	}
	return fmt.Sprintf("run %s %s rev %d epoch %d", a.Instance, a.Spec.Image, a.Rev, a.Epoch)
}
