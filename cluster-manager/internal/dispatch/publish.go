package dispatch

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// event says that something happened.
func (c *Core) event(e messages.Event) {
	e.At = messages.At(c.now)
	c.send(Message{Topic: messages.Topic{Kind: messages.EventTopic, Event: e.Kind}.String(), Payload: messages.Encode(e)})
}

// Publish adds the retained statuses of everything that has changed since the last call.
func (c *Core) Publish(now time.Time) {
	c.now = now
	for name := range c.changed {
		c.net.Touch(name)
	}
	c.flushNetwork(now)
	for _, name := range slices.Sorted(maps.Keys(c.changed)) {
		m := Message{Topic: messages.Topic{Kind: messages.JobStatusTopic, Job: name}.String(), QoS: 1, Retain: true}
		if j := c.st.Jobs[name]; j != nil {
			m.Payload = c.encodeJob(j, now)
		}
		c.send(m) // an empty payload clears the topic of a job that is gone
	}
	clear(c.changed)
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.st.Nodes[id]
		if n == nil { // removed
			c.send(Message{Topic: messages.Topic{Kind: messages.NodeStatusTopic, Node: id}.String(), QoS: 1, Retain: true})
			continue
		}
		c.send(Message{Topic: messages.Topic{Kind: messages.NodeStatusTopic, Node: id}.String(), QoS: 1, Retain: true, Payload: messages.Encode(c.nodeStatus(n, now))})
	}
	clear(c.nodes)
	c.published = now
	if c.summary && now.Sub(c.summarized) >= summaryEvery {
		c.summary, c.summarized = false, now
		c.send(Message{Topic: messages.Topic{Kind: messages.ClusterTopic}.String(), QoS: 1, Retain: true, Payload: messages.Encode(c.clusterStatus(now))})
	}
}

// PublishAt returns when Publish shall be called next, zero while it has nothing to add. It is at once where a last Result waits: that leaves
// after the status that it speaks of.
func (c *Core) PublishAt() time.Time {
	switch {
	case len(c.answers) > 0:
		return c.now
	case len(c.changed) > 0 || len(c.nodes) > 0 || c.net.Owed():
		return c.published.Add(statusEvery)
	case c.summary:
		return c.summarized.Add(summaryEvery)
	default:
		return time.Time{}
	}
}

// encodeJob renders a job's status. One that would be too large for a message leaves out the spec, then the later instances.
func (c *Core) encodeJob(j *cluster.Job, now time.Time) []byte {
	s := c.jobStatus(j, now)
	payload := messages.Encode(s)
	if len(payload) > messages.MaxFromManager {
		s.Spec = nil
		payload = messages.Encode(s)
	}
	for len(payload) > messages.MaxFromManager && len(s.Instances) > 0 {
		s.Instances = s.Instances[:len(s.Instances)/2]
		payload = messages.Encode(s)
	}
	return payload
}

// maxWaiting bounds the copies that a status says are waiting, and the nodes named for each: the reasons are mostly the same.
const maxWaiting = 32

func (c *Core) jobStatus(j *cluster.Job, now time.Time) messages.JobStatus {
	s := messages.JobStatus{Job: j.Spec.Name, ID: j.Spec.ID, Image: j.Spec.Image, Replicas: len(j.Ordinals), Reason: j.Reverted,
		Instances: c.reports(j, messages.MaxReplicas), Spec: &j.Spec, Worker: j.Worker, Rev: j.Rev, At: messages.At(now)}
	for _, r := range s.Instances {
		if r.State == messages.Running {
			s.Running++
			if r.Healthy {
				s.Healthy++
			}
		}
	}
	waiting := slices.Sorted(maps.Keys(j.Waiting))
	for _, o := range waiting[:min(len(waiting), maxWaiting)] {
		w := j.Waiting[o]
		wc := messages.WaitingCopy{Ordinal: o, Code: w.Code, Nodes: w.Nodes[:min(len(w.Nodes), maxWaiting)]}
		if len(w.Nodes) > 0 {
			wc.Reason = fmt.Sprintf("no node can take it now: %s %s", w.Nodes[0].Node, w.Nodes[0].Reason)
		} else {
			wc.Reason = "no node has registered yet"
		}
		s.Waiting = append(s.Waiting, wc)
	}
	s.State = c.jobState(j)
	if j.Held != 0 {
		s.Reason = heldReason
	}
	return s
}

// jobState says in one word how the job stands.
func (c *Core) jobState(j *cluster.Job) messages.JobState {
	switch {
	case j.Deleting:
		return messages.JobDeleting
	case j.Held != 0:
		return messages.JobHeld
	}
	up, finished, failed, pending := map[int]bool{}, map[int]bool{}, false, false
	for _, p := range j.Placements {
		if !p.Run || (c.isLost(j, p) && !p.Finished) {
			continue
		}
		switch {
		case p.Finished:
			finished[p.Ordinal] = true
		case p.Up():
			up[p.Ordinal] = true
		case p.Ended():
			failed = true
		case p.Observed == nil || p.Observed.State != messages.Running:
			pending = pending || p.Cause != cluster.ByLoss && (p.Observed == nil || p.Observed.Attempt == 0)
		}
	}
	switch n := len(j.Ordinals); {
	case j.Previous != nil:
		return messages.JobRolling
	case failed:
		return messages.JobFailed
	case n > 0 && len(finished) == n:
		return messages.JobDone
	case len(up)+len(finished) >= n:
		return messages.JobRunning
	case pending && len(j.Waiting) == 0:
		return messages.JobPending
	default:
		return messages.JobDegraded
	}
}

func (c *Core) isLost(j *cluster.Job, p *cluster.Placement) bool {
	return p.Abandoned || c.leases.Away(p.Node, c.now) >= c.lostAfter(j)
}

// reports returns the status of the job's instances, at most the given number.
func (c *Core) reports(j *cluster.Job, most int) []messages.InstanceReport {
	reports := []messages.InstanceReport{}
	for _, p := range j.Sorted() {
		if len(reports) == most {
			break
		}
		reports = append(reports, p.Report(c.isLost(j, p)))
	}
	return reports
}

func (c *Core) nodeStatus(n *cluster.Node, now time.Time) messages.NodeStatus {
	s := messages.NodeStatus{Node: n.ID, Kind: n.Kind, State: c.nodeState(n, now), Key: n.Info.Key, Version: n.Info.Version, Arch: n.Info.Arch,
		OS: n.Info.OS, Kernel: n.Info.Kernel, Addresses: n.Info.Addresses, Labels: n.Info.Labels, Technologies: n.Info.Technologies, CPU: n.Info.CPU,
		MemoryMB: n.Info.MemoryMB, DiskMB: n.Info.DiskMB, GPUs: n.Info.GPUs, Sensors: n.Info.Sensors, Reserved: c.table.Reserved(n.ID),
		Instances: slices.Sorted(maps.Keys(n.Instances)), ClockSkewMS: n.ClockSkewMS, Epoch: n.Epoch, Overlay: c.net.NodeStatus(n), At: messages.At(now)}
	if s.State != messages.NodeExpected {
		s.Since = messages.At(n.Since)
	}
	return s
}

func (c *Core) nodeState(n *cluster.Node, now time.Time) messages.NodeState {
	switch away := c.leases.Away(n.ID, now); {
	case n.Info.Key == "":
		return messages.NodeExpected
	case n.Online:
		return messages.NodeOnline
	case away >= c.cfg.LostAfter:
		return messages.NodeLost
	default:
		return messages.NodeAway
	}
}

func (c *Core) clusterStatus(now time.Time) messages.ClusterStatus {
	s := messages.ClusterStatus{Cluster: c.cfg.Cluster, Version: c.cfg.Version, Protocol: messages.Protocol, StartedAt: messages.At(c.started),
		Nodes: map[string]int{}, Jobs: map[string]int{}, Instances: map[string]int{}, Rev: c.st.Rev, At: messages.At(now)}
	for _, n := range c.st.Nodes {
		s.Nodes[n.Kind]++
		s.Nodes[string(c.nodeState(n, now))]++
	}
	for _, j := range c.st.Jobs {
		s.Jobs[string(c.jobState(j))]++
		for _, p := range j.Placements {
			s.Instances[string(p.State(c.isLost(j, p)))]++
		}
	}
	return s
}
