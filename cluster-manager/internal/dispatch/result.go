package dispatch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/reconcile"
	"skerry.internal/messages"
)

// superseded is the verdict on a command that a later one has overtaken.
var superseded = reconcile.Verdict{Phase: messages.Failed, Code: messages.Superseded, Message: "a later command for this job took its place"}

// result makes the first Result of a command.
func (c *Core) result(op cluster.Op, job messages.JobName, refused *refusal, rev uint64) messages.Result {
	r := messages.Result{RequestID: op.RequestID, Command: op.Command, Job: job, ID: op.ID, Phase: messages.Accepted, Rev: rev, At: messages.At(c.now)}
	if refused != nil {
		r.Phase, r.Code, r.Message, r.Nodes = messages.Refused, refused.code, refused.message, refused.nodes[:min(len(refused.nodes), maxReported)]
	}
	return r
}

// answer sends a Result to who asked.
func (c *Core) answer(op cluster.Op, r messages.Result) { c.out = append(c.out, replies(op, r)...) }

// replies addresses a Result to the request's topic and to the Response Topic of an MQTT 5 client.
func replies(op cluster.Op, r messages.Result) []Message {
	payload := messages.Encode(r)
	for len(payload) > messages.MaxFromManager && len(r.Instances) > 0 { // with long reasons
		r.Instances = r.Instances[:len(r.Instances)/2]
		payload = messages.Encode(r)
	}
	var to []Message
	if op.RequestID != "" {
		to = append(to, Message{Topic: messages.Topic{Kind: messages.ResultTopic, Request: op.RequestID}.String(), Payload: payload, QoS: 1})
	}
	if op.ResponseTopic != "" {
		to = append(to, Message{Topic: op.ResponseTopic, Payload: payload, QoS: 1, Correlation: op.Correlation})
	}
	return to
}

// finish sends the last Result of a command.
func (c *Core) finish(j *cluster.Job, op cluster.Op, v reconcile.Verdict) {
	r := messages.Result{RequestID: op.RequestID, Command: op.Command, Job: j.Spec.Name, ID: op.ID, Phase: v.Phase, Code: v.Code,
		Message: v.Message, Rev: op.Rev, At: messages.At(c.now), Instances: c.reports(j, maxReported)}
	c.answers = append(c.answers, replies(op, r)...)
	c.changed[j.Spec.Name] = true
}

// maxReported bounds the instances and the nodes in a Result, so that it stays below messages.MaxFromManager; the job's status
// names all instances.
const maxReported = 256

// finishOps sends the last Result of every command that waits on the job.
func (c *Core) finishOps(j *cluster.Job, v reconcile.Verdict) {
	for _, op := range j.Ops {
		c.finish(j, op, v)
	}
	j.Ops = nil
}

// failDeploys sends the last Result of every deploy that waits on the job. Other commands are judged by what follows.
func (c *Core) failDeploys(j *cluster.Job, v reconcile.Verdict) {
	var left []cluster.Op
	for _, op := range j.Ops {
		if op.Command == messages.Deploy {
			c.finish(j, op, v)
		} else {
			left = append(left, op)
		}
	}
	j.Ops = left
}

// supersede answers the commands that a new one overtakes.
func (c *Core) supersede(j *cluster.Job) { c.finishOps(j, superseded) }

// requestKey names a user's request, "" one without an id. Ids hold no space.
func requestKey(user, id string) string {
	if id == "" || user == "" {
		return id
	}
	return id + " " + user
}

// fingerprint tells commands with the same request id from one another.
func fingerprint(cmd any) string {
	sum := sha256.Sum256(messages.Encode(cmd))
	return hex.EncodeToString(sum[:8])
}

// mistaken refuses a command that bears the id of another one: taken for a repeat of that one, it would be answered as accepted and never carried out.
func (r request) mistaken(cmd any, now time.Time) *refusal {
	if r.Of == "" || r.Of == fingerprint(cmd) { // an older manager remembered none
		return nil
	}
	return refuse(messages.BadPayload, "request_id %s was another command's %s ago: give each command one of its own", r.Result.RequestID, now.Sub(r.At).Round(time.Second))
}

// remember keeps the first Result of a request, on disk where the command was taken.
func (c *Core) remember(key string, r request, durable bool) {
	if key == "" {
		return
	}
	r.stored = durable
	c.requests[key] = r
	c.expiry = append(c.expiry, key)
	if durable {
		c.st.PutRequest(key, messages.Encode(r))
	}
}

// maxRequests bounds the requests that are remembered; the oldest go first. At 100 commands a second it is never reached.
const maxRequests = 100_000

// expireRequests forgets requests after ten minutes, or where they are too many.
func (c *Core) expireRequests(now time.Time) {
	if c.restored {
		slices.SortStableFunc(c.expiry, func(a, b string) int { return c.requests[a].At.Compare(c.requests[b].At) })
		c.restored = false
	}
	n := 0
	for n < len(c.expiry) && (len(c.expiry)-n > maxRequests || now.Sub(c.requests[c.expiry[n]].At) >= requestMemory) {
		if c.requests[c.expiry[n]].stored {
			c.st.PutRequest(c.expiry[n], nil)
		}
		delete(c.requests, c.expiry[n])
		n++
	}
	c.expiry = c.expiry[n:]
}

// RestoreRequest takes up a request that the store holds.
func (c *Core) RestoreRequest(key string, value []byte) error {
	r := request{stored: true}
	if err := json.Unmarshal(value, &r); err != nil {
		c.st.PutRequest(key, nil)
		return err
	}
	if r.At.After(c.now) {
		r.At = c.now // the clock was set back
	}
	c.requests[key] = r
	c.expiry = append(c.expiry, key)
	c.restored = true
	return nil
}
