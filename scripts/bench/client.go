package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

// client is an operator that follows the cluster and notes when it hears what.
type client struct {
	mqtt mqtt.Client

	mu      sync.Mutex // guards what follows
	results map[string][]heard
	running map[messages.InstanceID]time.Time // since when it is up, as reported by its node
	gone    map[messages.InstanceID]bool
	jobs    map[messages.JobName]messages.JobStatus
	nodes   map[messages.NodeID]messages.NodeState
	up      int // how many of them are online
	next    int
}

// heard is a Result with the time at which it came.
type heard struct {
	messages.Result
	at time.Time
}

// connect makes a client. With statuses it follows every instance's own reports too.
func (b *bench) connect(m *manager) (*client, error) {
	c := &client{results: map[string][]heard{}, running: map[messages.InstanceID]time.Time{}, gone: map[messages.InstanceID]bool{},
		jobs: map[messages.JobName]messages.JobStatus{}, nodes: map[messages.NodeID]messages.NodeState{}}
	opts := mqtt.NewClientOptions().AddBroker("tcp://" + m.mqtt).SetConnectRetry(true).SetConnectRetryInterval(5 * time.Millisecond).
		SetMaxReconnectInterval(20 * time.Millisecond).SetWriteTimeout(10 * time.Second)
	opts.SetConnectionLostHandler(func(_ mqtt.Client, err error) {
		fmt.Fprintf(b.log, "   the client has lost its connection, and Results that were sent meanwhile: %v\n", err)
	})
	opts.SetOnConnectHandler(func(mc mqtt.Client) {
		filters := map[string]byte{"control/results/+": 1, messages.AllJobsFilter: 1, messages.AllNodesFilter: 1, "nodes/+/job": 1}
		if m.bare { // there is no manager that makes a node's status of its presence
			filters["nodes/+/presence"] = 1
		}
		mc.SubscribeMultiple(filters, c.hear)
	})
	c.mqtt = mqtt.NewClient(m.streams.carry(opts, 0))
	if token := c.mqtt.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		return nil, fmt.Errorf("connect to %s: %w", m.mqtt, token.Error())
	}
	b.closers = append(b.closers, func() { c.mqtt.Disconnect(50) })
	return c, nil
}

func (c *client) hear(_ mqtt.Client, m mqtt.Message) {
	now := time.Now()
	t, err := messages.ParseTopic(m.Topic())
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch t.Kind {
	case messages.ResultTopic:
		var r messages.Result
		if json.Unmarshal(m.Payload(), &r) == nil {
			c.results[t.Request] = append(c.results[t.Request], heard{r, now})
		}
	case messages.JobStatusTopic:
		var s messages.JobStatus
		delete(c.jobs, t.Job)
		if len(m.Payload()) > 0 && json.Unmarshal(m.Payload(), &s) == nil {
			c.jobs[t.Job] = s
		}
	case messages.NodeStatusTopic:
		var s messages.NodeStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			c.node(t.Node, s.State)
		}
	case messages.PresenceTopic:
		var p messages.Presence
		if json.Unmarshal(m.Payload(), &p) == nil {
			c.node(t.Node, map[bool]messages.NodeState{true: messages.NodeOnline, false: messages.NodeAway}[p.Online])
		}
	case messages.NodeJobTopic:
		var s messages.InstanceStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			c.instance(s, now)
		}
	}
}

// node notes the state of a node; c.mu is held.
func (c *client) node(id messages.NodeID, s messages.NodeState) {
	if c.nodes[id] == messages.NodeOnline {
		c.up--
	}
	if s == messages.NodeOnline {
		c.up++
	}
	c.nodes[id] = s
}

// instance notes what a node says of an instance; c.mu is held.
func (c *client) instance(s messages.InstanceStatus, now time.Time) {
	if _, known := c.running[s.Instance]; !known && s.State == messages.Running {
		c.running[s.Instance] = now
	}
	if s.State == messages.Stopped {
		c.gone[s.Instance] = true
	}
}

func (c *client) online(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[messages.NodeID(name)] == messages.NodeOnline
}

// count returns how many nodes are online.
func (c *client) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

// forget drops what is known of nodes, so that what comes next is news.
func (c *client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.nodes)
	c.up = 0
}

// upSince returns when an instance was first said to run.
func (c *client) upSince(id messages.InstanceID) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.running[id]
	return at, ok
}

func (c *client) job(name messages.JobName) messages.JobStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jobs[name]
}

// send publishes a command, and returns its request id once it is acknowledged.
func (c *client) send(cmd messages.Command) (string, error) {
	c.mu.Lock()
	c.next++
	cmd.RequestID = fmt.Sprintf("bench-%d", c.next)
	c.mu.Unlock()
	token := c.mqtt.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(), 1, false, messages.Encode(cmd))
	if !token.WaitTimeout(patience) || token.Error() != nil {
		return "", fmt.Errorf("publish: %w", token.Error())
	}
	return cmd.RequestID, nil
}

// done waits for the last Result of a request, which must be done.
func (c *client) done(ctx context.Context, request string) (heard, error) {
	var last heard
	err := eventually(ctx, "the last Result of "+request, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		at := slices.IndexFunc(c.results[request], func(h heard) bool { return h.Last() })
		if at >= 0 {
			last = c.results[request][at]
		}
		return at >= 0
	})
	if err == nil && last.Phase != messages.Done {
		err = fmt.Errorf("%s of %s: %s %s: %s", last.Command, last.Job, last.Phase, last.Code, last.Message)
	}
	return last, err
}

// do sends a command and waits until it is done.
func (c *client) do(ctx context.Context, cmd messages.Command) error {
	request, err := c.send(cmd)
	if err != nil {
		return err
	}
	_, err = c.done(ctx, request)
	return err
}

// commandsAtOnce bounds the commands that a client has published and are not acknowledged. Each waits for a commit, so behind thousands of them
// a write would wait for longer than the client has patience with its connection; so many fit in what a stream takes ahead of its reader.
const commandsAtOnce = 200

// doAll sends commands that have their request ids, and waits until all are done.
func (c *client) doAll(ctx context.Context, cmds []messages.Command) error {
	tokens := make([]mqtt.Token, len(cmds))
	for i, cmd := range cmds {
		if i >= commandsAtOnce {
			if t := tokens[i-commandsAtOnce]; !t.WaitTimeout(patience) || t.Error() != nil {
				return fmt.Errorf("publish: %w", t.Error())
			}
		}
		tokens[i] = c.mqtt.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(), 1, false, messages.Encode(cmd))
	}
	for _, cmd := range cmds {
		if _, err := c.done(ctx, cmd.RequestID); err != nil {
			return err
		}
	}
	return nil
}

// job is the workload, as little as the engine can be asked for.
func job(name messages.JobName, replicas int) messages.Job {
	return messages.Job{Name: name, Replicas: &replicas, Spec: messages.Spec{Image: image, Stop: messages.Stop{Grace: messages.Duration(2 * time.Second)}}}
}

func deploy(j messages.Job) messages.Command {
	return messages.Command{Command: messages.Deploy, Job: j}
}

// deployOn is a deploy on the node with this suffix.
func deployOn(suffix string, j messages.Job) messages.Command {
	return messages.Command{Command: messages.Deploy, Job: j, Worker: []messages.NodeID{messages.NodeID(nodeName + suffix)}}
}

func remove(name messages.JobName) messages.Command {
	return messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}}
}
