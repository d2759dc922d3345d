package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

// taken is a command that was accepted.
type taken struct {
	request string
	verb    messages.Verb
	rev     uint64
	life    int             // of the manager when it was asked for first
	on      messages.NodeID // of a move: where every copy shall be; "": anywhere
}

// command is a client that lets jobs come, change, move and go, each command a little after the one before was acknowledged, as often as not once its
// job is as commanded besides: a slow machine shall not have more and more to do.
func (c *crashes) command(client *commander, round, who int, story *rand.Rand, over <-chan struct{}) {
	for _, old := range c.left(round, who) {
		cmd := messages.Command{Command: messages.Delete, Job: messages.Job{Name: old}, RequestID: "old-" + string(old)}
		if strings.HasPrefix(string(old), fmt.Sprintf("job-%d-", round-1)) && story.IntN(2) == 0 {
			cmd.Command, cmd.Worker = messages.Move, []messages.NodeID{c.ids()[story.IntN(2)]}
		}
		c.ask(client, cmd, c.wanted(old))
	}
	for n := 0; ; n++ {
		name := messages.JobName(fmt.Sprintf("job-%d-%d-%d", round, who, n))
		var w desired // as accepted
		for i, verb := range []messages.Verb{messages.Deploy, messages.Move, messages.Replicate, messages.Deploy, messages.Move, messages.Delete} {
			next, cmd := w, messages.Command{Command: verb, Job: messages.Job{Name: name}, RequestID: fmt.Sprintf("%d-%d", n, i)}
			switch verb {
			case messages.Deploy:
				next.replicas, next.note = 1+story.IntN(2), fmt.Sprintf("%d.%d", n, i)
				cmd.Job = c.app(name, next.replicas, next.note)
			case messages.Replicate:
				next.replicas = 1 + story.IntN(2)
				cmd.Job.Replicas = &next.replicas
			case messages.Move: // of the copies that are elsewhere now; what a change is yet to replace may go anywhere after that
				cmd.Worker = []messages.NodeID{c.ids()[story.IntN(2)]}
			}
			if c.ask(client, cmd, next) {
				w = next
			}
			for patient := story.IntN(2) == 0; patient && !c.done(name); {
				select {
				case <-over:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(story.IntN(1500)) * time.Millisecond):
			}
		}
	}
}

// left are the jobs of a client's earlier rounds.
func (c *crashes) left(round, who int) (names []messages.JobName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.want {
		var r, w int
		if n, _ := fmt.Sscanf(string(name), "job-%d-%d-", &r, &w); n == 2 && r < round && w == who {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *crashes) wanted(name messages.JobName) desired {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.want[name]
}

// ask publishes a command, and notes what its job shall be from now on where it was accepted. A move of a job that was settled, with no change or move
// under way, has to bring every copy to its target.
func (c *crashes) ask(client *commander, cmd messages.Command, w desired) bool {
	settled := c.done(cmd.Job.Name)
	t, ok := c.publish(client, cmd)
	if !ok {
		return false
	}
	if cmd.Command == messages.Move && settled {
		t.on = cmd.Worker[0]
	}
	w.last = t
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[cmd.Job.Name] = append(c.asked[cmd.Job.Name], t)
	if c.want[cmd.Job.Name] = w; cmd.Command == messages.Delete {
		delete(c.want, cmd.Job.Name)
	}
	return true
}

// owed says what is wrong with the last Results of what was accepted. Each command gets one; one that says failed says why, and names a later command
// only where there is one; a move that was done has brought every copy to its target. A manager that was killed may have sent it just before, to nobody.
func (c *crashes) owed() (wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, all := range c.asked {
		for i, a := range all {
			r := c.lastResult(a.request)
			switch {
			case r == nil && a.life < c.life:
			case r == nil:
				wrong = append(wrong, fmt.Sprintf("%s %s has no last Result", a.verb, name))
			case r.Phase == messages.Failed && (r.Message == "" || strings.Contains(r.Message, " was given up") || r.Code == messages.Superseded && i == len(all)-1),
				r.Phase == messages.Done && elsewhere(r.Instances, a.on):
				wrong = append(wrong, fmt.Sprintf("%s %s to %q, %d of %d commands: %s %s %q %q", a.verb, name, a.on, i+1, len(all), r.Phase, r.Code, r.Message,
					brief(messages.JobStatus{Instances: r.Instances})))
			}
		}
	}
	return wrong
}

// lastResult returns what a command has ended with as far as anybody has heard, nil where it has not.
func (c *crashes) lastResult(request string) *messages.Result {
	for _, r := range c.resultsOf(request) {
		if r.Phase == messages.Done || r.Phase == messages.Failed {
			return &r
		}
	}
	return nil
}

// elsewhere says whether a copy is not where all shall be; "" is anywhere.
func elsewhere(all []messages.InstanceReport, on messages.NodeID) bool {
	return on != "" && slices.ContainsFunc(all, func(i messages.InstanceReport) bool { return i.Node != on })
}

// tellFailed logs what was accepted in a round and failed for another reason than a later command.
func (c *crashes) tellFailed(round int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, all := range c.asked {
		for _, a := range all {
			if r := c.lastResult(a.request); r != nil && r.Phase == messages.Failed && r.Code != messages.Superseded && strings.HasPrefix(string(name), fmt.Sprintf("job-%d-", round)) {
				c.t.Logf("%s %s to %q: %s %s", a.verb, name, a.on, r.Code, r.Message)
			}
		}
	}
}

// moves counts the moves that were accepted, and those that were held to their target.
func (c *crashes) moves() (all, held int) {
	for _, of := range c.asked {
		for _, a := range of {
			if a.verb == messages.Move {
				all++
			}
			if a.on != "" {
				held++
			}
		}
	}
	return all, held
}

// commander is a client whose acknowledgements can be trusted. Not paho's own reconnecting: when it sends a message again it calls the token of
// the first time complete, without an acknowledgement and without an error.
type commander struct {
	id, addr string
	follower *follower   // hears what it hears
	client   mqtt.Client // nil until there is a connection
	results  chan messages.Result
}

func (c *commander) close() {
	if c.client != nil {
		c.client.Disconnect(0)
		c.client = nil
	}
}

// connect makes a connection where there is none.
func (c *commander) connect() bool {
	if c.client != nil {
		return true
	}
	c.results = make(chan messages.Result, 64)
	results := c.results
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + c.addr).SetClientID(c.id).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second))
	done := func(t mqtt.Token) bool { return t.WaitTimeout(5*time.Second) && t.Error() == nil }
	if done(client.Connect()) && done(client.Subscribe("control/results/+", 1, func(client mqtt.Client, m mqtt.Message) {
		c.follower.hear(client, m)
		var r messages.Result
		if json.Unmarshal(m.Payload(), &r) == nil && strings.HasPrefix(r.RequestID, c.id) {
			select {
			case results <- r:
			default: // repeats that nobody waits for
			}
		}
	})) {
		c.client = client
		return true
	}
	client.Disconnect(0)
	return false
}

// publish sends a command and returns its first Result. It reports whether it got that far, and when the command was acknowledged, if it was.
func (c *commander) publish(cmd messages.Command) (r messages.Result, acked time.Time, answered bool) {
	if !c.connect() {
		return r, acked, false
	}
	token := c.client.Publish(messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(), 1, false, messages.Encode(cmd))
	late := time.After(5 * time.Second)
	for token.WaitTimeout(5*time.Second) && token.Error() == nil {
		if acked.IsZero() {
			acked = time.Now()
		}
		select {
		case r = <-c.results:
			if r.RequestID == cmd.RequestID {
				return r, acked, true
			}
			continue
		case <-time.After(100 * time.Millisecond):
			if c.client.IsConnectionOpen() {
				continue
			}
		case <-late:
		}
		break
	}
	c.close()
	return messages.Result{}, acked, false
}

// publish repeats a command until it is answered, and reports whether it was accepted. One that nobody has answered is repeated as it was, which
// does nothing where it had come through: the answer is then the first one, from before it was acknowledged. One that was refused because a node was just away
// is asked again as another.
func (c *crashes) publish(client *commander, cmd messages.Command) (taken, bool) {
	name, a := cmd.RequestID, taken{verb: cmd.Command}
	var acked time.Time
	for n, end := 0, time.Now().Add(soon); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cmd.RequestID = fmt.Sprintf("%s-%s.%d", client.id, name, n); a.request != cmd.RequestID {
			c.mu.Lock()
			a.request, a.life = cmd.RequestID, c.life
			c.mu.Unlock()
			acked = time.Time{}
		}
		r, now, answered := client.publish(cmd)
		if acked.IsZero() {
			acked = now
		}
		// What can be refused for want of a node may have been, to nobody: refusals are not kept.
		if sure := cmd.Command == messages.Delete || cmd.Command == messages.Replicate; sure && answered && r.Phase != messages.Refused && r.At.After(acked) {
			c.errorf("%s %s was acknowledged at %s and lost: it was accepted at %s", cmd.Command, cmd.Job.Name, acked, r.At)
		}
		switch {
		case !answered:
		case r.Phase != messages.Refused:
			a.rev = r.Rev
			return a, true
		case r.Code == messages.NoNodeMatches:
			n++
			time.Sleep(100 * time.Millisecond) // until it is back
		case r.Code == messages.Unavailable: // a move while copies are replaced
			return taken{}, false
		default:
			c.errorf("%s %s: %s %s %s", cmd.Command, cmd.Job.Name, r.Phase, r.Code, r.Message)
			return taken{}, false
		}
	}
	c.errorf("never accepted: %s %s", cmd.Command, cmd.Job.Name)
	return taken{}, false
}
