package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"skerry.internal/messages"
)

// client is an operator, who commands and repeats what was not acknowledged.
type client struct {
	sim    *Sim
	orders []*order
}

// order is one command.
type order struct {
	cmd     messages.Command
	payload []byte
	at      time.Time
	acked   bool
	crashed bool              // the manager has crashed since
	first   *messages.Result  // as published
	last    []messages.Result // want one
}

func newClient(s *Sim) *client { return &client{sim: s} }

// plan spreads commands over the story.
func (c *client) plan() {
	s := c.sim
	for t := time.Second; t < chaosTime-10*time.Second; t += s.between(time.Second, 15*time.Second) {
		s.after(t, func() { c.command(c.think()) })
	}
}

func (c *client) command(cmd messages.Command) {
	cmd.RequestID = fmt.Sprintf("r%d", len(c.orders)+1)
	o := &order{cmd: cmd, payload: messages.Encode(cmd), at: time.Now()}
	c.orders = append(c.orders, o)
	c.sim.tell("client: %s %s", cmd.RequestID, describeCommand(&cmd))
	c.sim.rules.ordered(&cmd)
	c.send(o)
}

// send publishes a command and does so again until it is acknowledged, as a client of QoS 1 does.
func (c *client) send(o *order) {
	s := c.sim
	s.after(s.latency(), func() {
		if m := s.mgr; !o.acked && !m.dead.Load() {
			if s.bug == AckBeforeCommit {
				c.acknowledged(o)
			}
			s.asks.Go(func() {
				err := m.m.Command(m.ctx, o.cmd.Command, o.payload)
				m.say("3 puback "+o.cmd.RequestID, func() {
					if err == nil && !s.chance(10) {
						c.acknowledged(o)
					}
				})
			})
		}
	})
	s.after(5*time.Second, func() {
		if !o.acked && !s.over {
			s.tell("client: repeats %s", o.cmd.RequestID)
			c.send(o)
		}
	})
}

func (c *client) acknowledged(o *order) {
	if !o.acked {
		o.acked = true
		c.sim.tell("client: %s is acknowledged", o.cmd.RequestID)
	}
}

func (c *client) find(id string) *order {
	i := slices.IndexFunc(c.orders, func(o *order) bool { return o.cmd.RequestID == id })
	if i < 0 {
		return nil
	}
	return c.orders[i]
}

func describeCommand(cmd *messages.Command) string {
	text := fmt.Sprintf("%s %s", cmd.Command, cmd.Job.Name)
	if cmd.Command == messages.Deploy || cmd.Command == messages.Replicate {
		text += fmt.Sprintf(" %s ×%d", cmd.Job.Image, cmd.Job.CopyCount())
	}
	if len(cmd.Job.Ports) > 0 {
		text += " with a port"
	}
	if cmd.Job.Resources.MemoryMB > 0 {
		text += fmt.Sprintf(" %d MiB", cmd.Job.Resources.MemoryMB)
	}
	if cmd.Job.OnReturn != "" {
		text += " " + string(cmd.Job.OnReturn)
	}
	if len(cmd.From) > 0 {
		text += fmt.Sprintf(" from %v", cmd.From)
	}
	if len(cmd.Worker) > 0 {
		text += fmt.Sprintf(" on %v", cmd.Worker)
	}
	return strings.TrimSpace(text)
}

func (c *client) jobName() messages.JobName {
	return []messages.JobName{"web", "db", "cam"}[c.sim.rng.IntN(3)]
}

func (c *client) node() messages.NodeID {
	return c.sim.nodes[c.sim.rng.IntN(len(c.sim.nodes))].id
}

// think makes up a command.
func (c *client) think() messages.Command {
	s := c.sim
	name := c.jobName()
	count := s.rng.IntN(4)
	switch n := s.rng.IntN(20); {
	case n < 11:
		return messages.Command{Command: messages.Deploy, Job: c.job(name, count)}
	case n < 13:
		return messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}}
	case n < 15:
		return messages.Command{Command: messages.Move, Job: messages.Job{Name: name}, From: []messages.NodeID{c.node()}}
	case n < 16:
		return messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}, Worker: []messages.NodeID{c.node()}}
	default:
		return messages.Command{Command: messages.Replicate, Job: messages.Job{Name: name, Replicas: &count}}
	}
}

func (c *client) job(name messages.JobName, count int) messages.Job {
	s := c.sim
	images := []string{"good", "good", "good", "slow"}
	if s.weather != gentle {
		images = append(images, "sick", "missing", "crash", "batch")
	}
	image := images[s.rng.IntN(len(images))]
	j := messages.Job{Name: name, Replicas: &count, Update: messages.Update{Timeout: messages.Duration(time.Minute)},
		Spec: messages.Spec{Image: fmt.Sprintf("%s:%d", image, s.rng.IntN(3)),
			Restart: messages.Restart{MaxBackoff: messages.Duration(10 * time.Second)},
			Stop:    messages.Stop{Grace: messages.Duration(5 * time.Second)},
			Health: &messages.Health{Exec: []string{"check"}, Interval: messages.Duration(10 * time.Second),
				StartPeriod: messages.Duration(10 * time.Second)}}}
	if image == "batch" {
		j.Mode, j.Health = messages.Batch, nil
	}
	if s.weather == gentle {
		return j
	}
	switch s.rng.IntN(6) {
	case 0:
		j.Ports = []messages.Port{{Host: 8080, Container: 80}}
	case 1:
		j.Resources.MemoryMB = 100 + 300*s.rng.IntN(3)
	case 2:
		j.OnReturn = messages.KeepOriginal
	}
	return j
}
