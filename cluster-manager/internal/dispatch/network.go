package dispatch

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/messages"
)

// newNetwork takes up what the state says of the network.
func (c *Core) newNetwork() {
	before := c.net
	c.net = overlay.New(c.cfg.Network, c.st, func(p *cluster.Placement) bool {
		j := c.st.Jobs[p.Job]
		return j != nil && c.isLost(j, p)
	}, c.log)
	if before != nil {
		c.net.Inherit(before)
	}
}

// flushNetwork adds what is to be said of the network. It goes before everything else: an instance is out of the tables before its node
// is told to stop it.
func (c *Core) flushNetwork(now time.Time) {
	c.netNow = false
	for _, o := range c.net.Flush(now) {
		c.netOut = append(c.netOut, Message{Topic: o.Topic, Payload: o.Payload, QoS: 1, Retain: o.Retain, EndRelay: o.EndRelay})
	}
}

// Endpoints takes what a node says of its tunnel.
func (c *Core) Endpoints(id messages.NodeID, e messages.Endpoints, now time.Time) {
	c.now = now
	if h := c.heldOf(id); h != nil && c.tooSoon(id, &h.endpointsAt, endpointsEvery, h.endpoints != nil, now) {
		h.endpoints = &e
	} else if h != nil {
		h.endpoints = nil
		c.endpoints(id, e)
	}
}

func (c *Core) endpoints(id messages.NodeID, e messages.Endpoints) {
	n := c.st.Nodes[id]
	if n == nil || n.Info.Key == "" {
		return
	}
	_, was := c.net.Up(n)
	if !c.net.Endpoints(n, e) {
		return
	}
	c.st.PutNode(n)
	c.nodeChanged(n)
	if _, up := c.net.Up(n); up != was {
		c.nodeTouched(n) // jobs that insist on the overlay
	} else {
		c.touchWaiting() // it may be for another reason
	}
}

// Interest takes what a node says over the connection link that it is interested in.
func (c *Core) Interest(id messages.NodeID, link any, i messages.Interest, now time.Time) {
	c.now = now
	h := c.heldOf(id)
	if h == nil {
		return
	}
	if old := h.interest; old != nil && old.link == link {
		i.Full = i.Full || old.said.Full
	}
	if c.tooSoon(id, &h.interestAt, interestEvery, h.interest != nil, now) {
		h.interest = &heldInterest{link: link, said: i}
		return
	}
	h.interest = nil
	c.interest(id, link, i)
}

func (c *Core) interest(id messages.NodeID, link any, i messages.Interest) {
	if n := c.st.Nodes[id]; n == nil || n.Info.Key == "" {
		return
	}
	c.net.Interest(id, link, i)
	c.netNow = true // somebody waits for the answer
}

// How often what a node says of the network is taken up: it may cost many others a new configuration. What comes sooner is held back, and
// the last of it holds, which is all that a node has to say.
const (
	interestEvery  = 50 * time.Millisecond // less than the time for which packets wait for an answer
	endpointsEvery = time.Second
)

// held is what a node has said too soon.
type held struct {
	interestAt, endpointsAt time.Time // when the last one was taken up
	interest                *heldInterest
	endpoints               *messages.Endpoints
}

type heldInterest struct {
	link any
	said messages.Interest
}

// heldOf returns what a node has said too soon, nil for one that has nothing to say.
func (c *Core) heldOf(id messages.NodeID) *held {
	if n := c.st.Nodes[id]; n == nil || n.Info.Key == "" {
		return nil
	}
	h := c.held[id]
	if h == nil {
		h = new(held)
		c.held[id] = h
	}
	return h
}

// tooSoon reports whether something comes too soon after the last time; then takeHeld is called when it is not any more. waits says
// that something was held back already.
func (c *Core) tooSoon(id messages.NodeID, last *time.Time, every time.Duration, waits bool, now time.Time) bool {
	if at := last.Add(every); !last.IsZero() && at.After(now) {
		if !waits {
			heap.Push(&c.wakes, wake{at: at, node: id, held: true})
		}
		return true
	}
	*last = now
	return false
}

// takeHeld takes up what was held back.
func (c *Core) takeHeld(id messages.NodeID, now time.Time) {
	h := c.held[id]
	if h == nil {
		return
	}
	if i := h.interest; i != nil && !h.interestAt.Add(interestEvery).After(now) {
		h.interest, h.interestAt = nil, now
		c.interest(id, i.link, i.said)
	}
	if e := h.endpoints; e != nil && !h.endpointsAt.Add(endpointsEvery).After(now) {
		h.endpoints, h.endpointsAt = nil, now
		c.endpoints(id, *e)
	}
}

// observed takes up the address that an instance has.
func (c *Core) observed(p *cluster.Placement) {
	if c.net.Observed(p) {
		c.st.PutPlacement(p)
	}
}

// grow gives a node more addresses where it needs them.
func (c *Core) grow(id messages.NodeID) {
	if n := c.st.Nodes[id]; n != nil && c.net.Grow(n) {
		c.st.PutNode(n)
		c.nodes[id] = true
	}
}

// leaseAddresses gives a job the addresses that it needs as it shall be, or says why it cannot have them.
func (c *Core) leaseAddresses(j, next *cluster.Job) *refusal {
	leased := &cluster.Job{Spec: next.Spec}
	if j != nil {
		leased.Addresses = j.Addresses
	}
	if err := c.net.LeaseJob(leased, next.Ordinals); err != nil {
		return refuse(messages.NoCapacity, "%v", err)
	}
	next.Addresses = leased.Addresses
	return nil
}

// IncomingGuest is a command about a guest as it came from a client.
type IncomingGuest struct {
	Command       messages.GuestCommand // as messages.DecodeGuestCommand returned it
	Bad           error                 // and its error
	User          string                // who made it: request ids are each user's own
	MayCommand    bool                  // the client has an operator's right
	ResponseTopic string                // MQTT 5
	Correlation   []byte
}

// op returns what is needed to answer the command.
func (in *IncomingGuest) op(now time.Time) cluster.Op {
	return cluster.Op{Command: in.Command.Command, RequestID: in.Command.RequestID, ResponseTopic: in.ResponseTopic, Correlation: in.Correlation, Since: now}
}

// GuestCommand takes one command about a guest, as NodeCommand does. It returns false where the command was refused for want of a right.
func (c *Core) GuestCommand(in IncomingGuest, now time.Time) bool {
	c.now = now
	cmd, op := in.Command, in.op(now)
	key := requestKey(in.User, cmd.RequestID)
	switch known, repeated := c.requests[key]; {
	case !in.MayCommand:
		c.answerGuest(op, cmd, refuse(messages.NotAllowed, "this client may look but not command: connect as an operator"), 0)
		return false
	case in.Bad != nil:
		c.answerGuest(op, cmd, refuse(messages.BadPayload, "%s", oneLine(in.Bad)), 0)
	case repeated && known.mistaken(cmd, now) != nil:
		c.answerGuest(op, cmd, known.mistaken(cmd, now), 0)
	case repeated:
		c.answer(op, known.Result)
		if known.Result.Guest != "" && known.Result.Phase == messages.Accepted {
			c.answerGuestDone(op, known.Result)
		}
	default:
		c.takeGuestCommand(key, cmd, op, now)
	}
	return true
}

// takeGuestCommand carries the command out, remembers its first Result and says both.
func (c *Core) takeGuestCommand(key string, cmd messages.GuestCommand, op cluster.Op, now time.Time) {
	refused := c.executeGuest(cmd, now)
	rev := uint64(0)
	if refused == nil {
		rev = c.st.NextRev()
		c.netNow = true
		c.log.Info("command accepted", "command", string(cmd.Command), "guest", cmd.Guest, "rev", rev)
	} else {
		c.logRefusal(refused, "command", string(cmd.Command), "guest", cmd.Guest)
	}
	first := c.answerGuest(op, cmd, refused, rev)
	c.remember(key, request{Result: first, At: now, Of: fingerprint(cmd)}, refused == nil)
	if refused == nil {
		c.answerGuestDone(op, first)
	}
}

// answerGuest sends the first Result.
func (c *Core) answerGuest(op cluster.Op, cmd messages.GuestCommand, refused *refusal, rev uint64) messages.Result {
	r := c.result(op, "", refused, rev)
	r.Guest = cmd.Guest
	c.answer(op, r)
	return r
}

// answerGuestDone sends the last Result of a command that was accepted with the given one.
func (c *Core) answerGuestDone(op cluster.Op, r messages.Result) {
	r.Phase, r.At = messages.Done, messages.At(c.now)
	r.Message = r.Guest + " is no guest any more"
	if g := c.st.Guests[r.Guest]; g != nil && r.Command == messages.Add {
		r.GuestConfig = c.net.GuestConfig(g)
		r.Message = fmt.Sprintf("%s may join by %s", r.Guest, g.Gateway)
	}
	c.answers = append(c.answers, replies(op, r)...)
}

// executeGuest changes the desired state.
func (c *Core) executeGuest(cmd messages.GuestCommand, now time.Time) *refusal {
	if r := c.otherCluster(cmd.Cluster); r != nil {
		return r
	}
	switch cmd.Command {
	case messages.Add:
		if _, err := c.net.AddGuest(cmd.Guest, cmd.PublicKey, cmd.Gateway, messages.At(now)); err != nil {
			return refuse(guestCode(err), "%v", err)
		}
		return nil
	case messages.Remove:
		g := c.st.Guests[cmd.Guest]
		if g == nil {
			return refuse(messages.UnknownGuest, "there is no guest %s", cmd.Guest)
		}
		c.net.RemoveGuest(g)
		return nil
	default:
		return refuse(messages.BadPayload, "verb %q is not one for guests", cmd.Command)
	}
}

// guestCode says for programs why a guest is not let in.
func guestCode(err error) messages.Code {
	switch {
	case errors.Is(err, overlay.ErrGateway):
		return messages.NoNodeMatches
	case errors.Is(err, overlay.ErrGuestKey), errors.Is(err, overlay.ErrOff):
		return messages.NotAllowed
	default:
		return messages.NoCapacity
	}
}

// GuestCommand takes a command about a guest and returns once it is durable or refused, as Command does.
func (l *Loop) GuestCommand(ctx context.Context, in IncomingGuest) (bool, error) {
	allowed := false
	if err := l.do(ctx, event{call: func(c *Core, now time.Time) { allowed = c.GuestCommand(in, now) }}); err != nil {
		return false, err
	}
	return allowed, nil
}

// UnavailableGuest returns the messages that tell a client that its command was not taken.
func UnavailableGuest(in IncomingGuest) []Message {
	op := in.op(time.Now())
	c := &Core{now: op.Since}
	c.answerGuest(op, in.Command, refuse(messages.Unavailable, "%v: try again later", ErrUnavailable), 0)
	return c.out
}

// Endpoints hands what a node says of its tunnel to the core.
func (l *Loop) Endpoints(ctx context.Context, id messages.NodeID, e messages.Endpoints) {
	l.post(ctx, func(c *Core, now time.Time) { c.Endpoints(id, e, now) })
}

// Interest hands what a node is interested in to the core.
func (l *Loop) Interest(ctx context.Context, id messages.NodeID, link any, i messages.Interest) {
	l.post(ctx, func(c *Core, now time.Time) { c.Interest(id, link, i, now) })
}

// HasTunnel reports whether a public key is that of a node that is part of the network: the relay carries nobody else's packets.
func (l *Loop) HasTunnel(ctx context.Context, key string) bool {
	ok := false
	err := l.do(ctx, event{reads: true, call: func(c *Core, _ time.Time) { ok = c.net.NodeKey(key) }})
	return (err == nil || errors.Is(err, ErrUnavailable)) && ok
}
