package dispatch

import (
	"context"
	"fmt"
	"math"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// IncomingNode is a command about a node as it came from a client.
type IncomingNode struct {
	Command       messages.NodeCommand // as messages.DecodeNodeCommand returned it
	Bad           error                // and its error
	User          string               // who made it: request ids are each user's own
	MayCommand    bool                 // the client has an operator's right
	ResponseTopic string               // MQTT 5
	Correlation   []byte
}

// op returns what is needed to answer the command.
func (in *IncomingNode) op(now time.Time) cluster.Op {
	return cluster.Op{Command: in.Command.Command, RequestID: in.Command.RequestID, ResponseTopic: in.ResponseTopic, Correlation: in.Correlation, Since: now}
}

// NodeCommand takes one command about a node. Nothing is waited for, so that its first and its last Result leave together, once the
// changes are durable. It returns false where the command was refused for want of a right.
func (c *Core) NodeCommand(in IncomingNode, now time.Time) bool {
	c.now = now
	cmd, op := in.Command, in.op(now)
	key := requestKey(in.User, cmd.RequestID)
	switch known, repeated := c.requests[key]; {
	case !in.MayCommand:
		c.answerNode(op, cmd, refuse(messages.NotAllowed, "this client may look but not command: connect as an operator"), 0)
		return false
	case in.Bad != nil:
		c.answerNode(op, cmd, refuse(messages.BadPayload, "%s", oneLine(in.Bad)), 0)
	case repeated && known.mistaken(cmd, now) != nil:
		c.answerNode(op, cmd, known.mistaken(cmd, now), 0)
	case repeated:
		c.answer(op, known.Result)
		if known.Result.Node != "" && known.Result.Phase == messages.Accepted {
			c.answerDone(op, known.Result)
		}
	default:
		c.takeNodeCommand(key, cmd, op, now)
	}
	return true
}

// takeNodeCommand carries the command out, remembers its first Result and says both.
func (c *Core) takeNodeCommand(key string, cmd messages.NodeCommand, op cluster.Op, now time.Time) {
	refused := c.executeNode(cmd, now)
	rev := c.st.Rev
	if refused != nil {
		rev = 0
		c.logRefusal(refused, "command", string(cmd.Command), "node_id", cmd.Node)
	} else {
		c.log.Info("command accepted", "command", string(cmd.Command), "node_id", cmd.Node, "rev", rev, "participants", c.participants(""))
	}
	first := c.answerNode(op, cmd, refused, rev)
	c.remember(key, request{Result: first, At: now, Of: fingerprint(cmd)}, refused == nil)
	if refused == nil {
		c.answerDone(op, first)
	}
}

// answerNode sends the first Result.
func (c *Core) answerNode(op cluster.Op, cmd messages.NodeCommand, refused *refusal, rev uint64) messages.Result {
	r := c.result(op, "", refused, rev)
	r.Node = cmd.Node
	c.answer(op, r)
	return r
}

// answerDone sends the last Result of a command that was accepted with the given one.
func (c *Core) answerDone(op cluster.Op, r messages.Result) {
	r.Phase, r.At = messages.Done, messages.At(c.now)
	switch {
	case r.Command == messages.Replace:
		r.Message = fmt.Sprintf("%s waits for the board that registers next with this name", r.Node)
	case c.kind(r.Node) == messages.Core:
		r.Message = fmt.Sprintf("%s is forgotten; it stays listed as expected, since the manager's configuration names it", r.Node)
	default:
		r.Message = fmt.Sprintf("%s is removed", r.Node)
	}
	c.answers = append(c.answers, replies(op, r)...)
}

// executeNode changes the desired state.
func (c *Core) executeNode(cmd messages.NodeCommand, now time.Time) *refusal {
	if r := c.otherCluster(cmd.Cluster); r != nil {
		return r
	}
	n := c.st.Nodes[cmd.Node]
	if n == nil {
		return refuse(messages.UnknownNode, "there is no node %s", cmd.Node)
	}
	switch cmd.Command {
	case messages.Replace:
		c.replaceNode(n)
		return nil
	case messages.Remove:
		return c.removeNode(n, now)
	default:
		return refuse(messages.BadPayload, "verb %q is not one for nodes", cmd.Command)
	}
}

// replaceNode gives the node's name to whoever registers with it next, whatever its key. What is to run there stays placed; what has
// been there and needs nothing any more is left behind, for the new board must not run it. The old board's session is ended, and its end
// makes the node away; until then nothing that it says is heard, because a node without a key has nothing to say.
func (c *Core) replaceNode(n *cluster.Node) {
	if n.Info.Key == "" {
		return // it is waited for already
	}
	delete(c.keys, n.Info.Key)
	delete(c.boots, n.ID)
	delete(c.unmet, n.ID)
	n.Unmet = false // its name waits as long as it takes
	n.Info.Key, n.Verified, n.Agreed, n.Password, n.BootID = "", false, false, "", ""
	c.net.Vacate(n)
	if n.Epoch < math.MaxUint64 {
		n.Epoch++
	}
	for _, p := range c.st.PlacedOn(n.ID) {
		if p.Finished || !p.Run {
			c.abandon(p)
		} else {
			p.Unheard(c.now) // the new board counts seq from the start
			c.st.PutPlacement(p)
		}
	}
	c.st.NextRev()
	c.st.PutNode(n)
	c.nodeChanged(n)
	c.nodeTouched(n)
	c.send(Message{Disconnect: n.ID})
}

// removeNode forgets a node that is not connected.
func (c *Core) removeNode(n *cluster.Node, now time.Time) *refusal {
	if n.Online {
		return refuse(messages.NotAllowed, "%s is online: end its engine first", n.ID)
	}
	c.forgetNode(n, now, "")
	return nil
}

// forgetNode drops all that is known of a node. What was placed there is lost at once. A core node stays expected. why ends the sentence
// that says so.
func (c *Core) forgetNode(n *cluster.Node, now time.Time, why string) {
	for _, p := range c.st.PlacedOn(n.ID) {
		c.abandon(p)
	}
	delete(c.keys, n.Info.Key)
	delete(c.boots, n.ID)
	delete(c.unmet, n.ID)
	delete(c.strays, n.ID)
	delete(c.inventories, n.ID)
	delete(c.held, n.ID)
	c.net.Remove(n)
	c.leases.Forget(n.ID)
	c.table.Forget(n.ID)
	c.st.NextRev()
	c.st.DropNode(n)
	c.nodes[n.ID], c.summary = true, true
	if kind := c.kind(n.ID); kind == messages.Core {
		c.st.ExpectNode(n.ID, kind)
		expected := c.st.Nodes[n.ID]
		expected.Since = now
		c.down(n.ID, now)
		c.nodeChanged(expected)
	}
	c.touchWaiting()
	c.log.Info("node removed", "node_id", n.ID, "participants", c.participants(""))
	c.send(Message{Disconnect: n.ID}) // one that has not said yet that it is there
	c.send(Message{Topic: messages.Topic{Kind: messages.PresenceTopic, Node: n.ID}.String(), QoS: 1, Retain: true})
	c.event(messages.Event{Kind: messages.NodeRemovedEv, Node: n.ID, Message: fmt.Sprintf("%s is removed%s", n.ID, why)})
}

// abandon notes that the board of a placement is not to come back: nothing of it is there, however long it is waited.
func (c *Core) abandon(p *cluster.Placement) {
	p.Abandoned, p.Address = true, ""
	if !p.Finished {
		p.Observed, p.HealthySince = nil, time.Time{}
	}
	c.table.Release(p.Node, p.Instance)
	c.st.PutPlacement(p)
	c.touch(p.Job)
}

// NodeCommand takes a command about a node and returns once it is durable or refused, as Command does.
func (l *Loop) NodeCommand(ctx context.Context, in IncomingNode) (bool, error) {
	allowed := false
	if err := l.do(ctx, event{call: func(c *Core, now time.Time) { allowed = c.NodeCommand(in, now) }}); err != nil {
		return false, err
	}
	return allowed, nil
}

// UnavailableNode returns the messages that tell a client that its command was not taken.
func UnavailableNode(in IncomingNode) []Message {
	op := in.op(time.Now())
	c := &Core{now: op.Since}
	c.answerNode(op, in.Command, refuse(messages.Unavailable, "%v: try again later", ErrUnavailable), 0)
	return c.out
}
