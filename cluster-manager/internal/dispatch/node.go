package dispatch

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

// Register admits a node, or returns a *messages.Refusal. proved says that it has shown that its key is its own. A node is known by its
// key: it keeps the name that it came with first, wherever it comes from.
func (c *Core) Register(info messages.NodeInfo, proved bool, now time.Time) (messages.Welcome, error) {
	c.now = now
	n, refusal := c.admit(info, proved)
	if refusal == nil && n != nil {
		refusal = c.twin(n, info.BootID)
	}
	if refusal == nil && n == nil {
		refusal = c.makeRoom(now)
	}
	if refusal != nil {
		c.log.Warn("registration refused", "node_id", info.Name, "code", string(refusal.Code))
		return messages.Welcome{}, refusal
	}
	if n == nil || n.Info.Key == "" {
		n = c.join(n, info.Name, now)
	}
	if n.Unmet {
		c.awaitSession(n, now)
	}
	password := newPassword()
	c.boots[n.ID] = noteBoot(c.boots[n.ID], info.BootID)
	c.keys[info.Key] = n.ID
	info.Name = n.ID
	info.Proof, info.Token = "", ""
	n.Info, n.Verified, n.Password = info, n.Verified || proved, hashPassword(password)
	c.net.Admit(n)
	if outrank(n, info.Epoch) {
		n.Agreed = false
	}
	n.Epoch = max(n.Epoch, 1)
	if !info.Clock.IsZero() {
		n.ClockSkewMS = info.Clock.Sub(now).Milliseconds()
	}
	c.st.PutNode(n)
	c.nodeChanged(n)
	c.nodeTouched(n)
	return messages.Welcome{ID: n.ID, Cluster: c.cfg.Cluster, Kind: n.Kind, Brokers: c.cfg.Brokers, BrokerPort: c.cfg.BrokerPort,
		Username: string(n.ID), Password: password, Lease: messages.Duration(c.cfg.LostAfter),
		TelemetryInterval: messages.Duration(c.cfg.TelemetryInterval), Clock: messages.At(now), Epoch: n.Epoch}, nil
}

// outrank raises the node's epoch above one that it has heard of from another manager, or from this one before it lost its memory: it would
// not listen to us otherwise. It reports whether it did.
func outrank(n *cluster.Node, epoch uint64) bool {
	if epoch <= n.Epoch || epoch == math.MaxUint64 { // nothing is above the last
		return false
	}
	n.Epoch = epoch + 1
	return true
}

// join makes a node of one that is seen for the first time; expected is the core node that was waited for, nil for none.
func (c *Core) join(expected *cluster.Node, id messages.NodeID, now time.Time) *cluster.Node {
	n := expected
	if n == nil {
		n = &cluster.Node{ID: id, Kind: c.kind(id)}
	}
	n.Unmet = n.Joined.IsZero() && len(n.Instances) == 0 // else its name has waited for this board, or its record was damaged
	n.Joined, n.Since = messages.At(now), now
	c.down(id, now)
	c.st.PutNode(n)
	c.log.Info("node joined", "node_id", id, "kind", n.Kind, "participants", c.participants(id))
	c.event(messages.Event{Kind: messages.NodeJoined, Node: id, Message: fmt.Sprintf("%s joined as a %s node", id, n.Kind)})
	return n
}

// admit finds the node that bears the key, nil for one that is new.
func (c *Core) admit(info messages.NodeInfo, proved bool) (*cluster.Node, *messages.Refusal) {
	n := c.byKey(info.Key)
	if n == nil {
		n = c.st.Nodes[info.Name]
		switch {
		case n == nil:
			return nil, nil
		case n.Info.Key == "":
			return n, nil // an expected core node, seen for the first time, or a name that waits for its board
		default:
			return nil, &messages.Refusal{Code: messages.RefusedName, Message: fmt.Sprintf("the name %s belongs to a node with another key", info.Name),
				Hint: fmt.Sprintf("if this board replaces it, run `skerry node replace %s`; else start this node with another --name", info.Name)}
		}
	}
	if n.Verified && !proved {
		return nil, &messages.Refusal{Code: messages.RefusedProof, Message: fmt.Sprintf("%s did not show that its key is its own", n.ID),
			Hint: "sign the nonce of sc1 with the node's private key (proof)"}
	}
	return n, nil
}

// byKey returns the node that bears the key, nil where none does.
func (c *Core) byKey(key string) *cluster.Node { return c.st.Nodes[c.keys[key]] }

// maxBoots is how many boots of a node are remembered.
const maxBoots = 4

// noteBoot adds the newest boot of a node to those before.
func noteBoot(boots []string, boot string) []string {
	if boot == "" || slices.Contains(boots, boot) {
		return boots
	}
	boots = append(boots, boot)
	return boots[max(len(boots)-maxBoots, 0):]
}

// twin refuses a board that comes with the key of one that is there: a boot that is over does not come back, so an earlier one beside the
// present one is another board, started from a copy of the same disk. Each would end the other's session for ever.
func (c *Core) twin(n *cluster.Node, boot string) *messages.Refusal {
	if !n.Online || boot == "" || boot == n.BootID || !slices.Contains(c.boots[n.ID], boot) {
		return nil
	}
	return &messages.Refusal{Code: messages.RefusedName, Message: fmt.Sprintf("another board with the same key is connected as %s", n.ID),
		Hint: "two boards run from copies of one disk: remove the engine's data directory on one of them, so that it makes a key of its own"}
}

func (c *Core) kind(id messages.NodeID) string {
	if slices.Contains(c.cfg.Core, id) {
		return messages.Core
	}
	return messages.Spare
}

// maxParticipants bounds the names in the log line of a change of membership: in a cluster of thousands it would be all of the log.
const maxParticipants = 64

// participants lists the nodes that are online and id, for the log line of a change of membership.
func (c *Core) participants(id messages.NodeID) string {
	if len(c.links) > maxParticipants {
		return fmt.Sprintf("%d nodes", len(c.links))
	}
	ids := slices.Collect(maps.Keys(c.links)) // not of all nodes: most may be away
	if c.st.Nodes[id] != nil && c.links[id] == nil {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	names := make([]string, 0, len(ids))
	for _, other := range ids {
		if n := c.st.Nodes[other]; n != nil {
			names = append(names, n.Kind+":"+string(other))
		}
	}
	return strings.Join(names, " ")
}

func newPassword() string {
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		panic("dispatch: no randomness: " + err.Error()) // crypto/rand.Read never returns an error, by its contract
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func hashPassword(password string) string {
	sum := sha256.Sum256([]byte(password)) // no slow hash: the passwords are 192 random bits
	return hex.EncodeToString(sum[:])
}

// Admits reports whether the password is the one that the node was given last.
func (c *Core) Admits(id messages.NodeID, password []byte) bool {
	n := c.st.Nodes[id]
	return n != nil && n.Password != "" && subtle.ConstantTimeCompare([]byte(n.Password), []byte(hashPassword(string(password)))) == 1
}

// Presence takes what a node says of its own presence over the connection link, any comparable value.
func (c *Core) Presence(id messages.NodeID, link any, p messages.Presence, now time.Time) {
	c.now = now
	n := c.st.Nodes[id]
	if n == nil || n.Info.Key == "" { // removed, or its name waits for another board
		return
	}
	if !p.Online {
		c.Disconnected(id, link, now)
		return
	}
	if n.Unmet {
		c.meet(n)
	}
	c.links[id] = link
	c.net.Connected(id, link)
	n.BootID = p.BootID
	if p.Epoch == n.Epoch && p.Rev > c.st.Rev && n.Epoch < math.MaxUint64 { // our disk is older than what the node has heard from us
		n.Epoch++
		n.Agreed = false
		c.st.PutNode(n)
	} else if outrank(n, p.Epoch) {
		n.Agreed = false
		c.st.PutNode(n)
	}
	c.online(n, now)
	if c.agree(n, p) {
		c.sync(n, p)
	}
}

// online marks a node as connected.
func (c *Core) online(n *cluster.Node, now time.Time) {
	away := c.leases.Away(n.ID, now)
	c.leases.Up(n.ID)
	if n.Online {
		return
	}
	n.Online, n.Since = true, now
	for _, p := range c.st.PlacedOn(n.ID) {
		if j := c.st.Jobs[p.Job]; away >= c.lostAfter(j) {
			attempt := 0
			if p.Observed != nil {
				attempt = p.Observed.Attempt
			}
			p.Unheard(now) // what it said before it was lost is no news
			p.Forgiven = attempt
			c.st.PutPlacement(p)
		}
	}
	c.nodeChanged(n)
	c.nodeTouched(n)
	c.log.Info("node online", "node_id", n.ID, "participants", c.participants(n.ID))
	c.event(messages.Event{Kind: messages.NodeOnlineEv, Node: n.ID, Message: fmt.Sprintf("%s is online", n.ID)})
}

// nodeTouched plans every job that the node may matter to.
func (c *Core) nodeTouched(n *cluster.Node) {
	for id := range n.Instances {
		if p := c.st.Placement(id); p != nil {
			c.touch(p.Job)
		}
	}
	c.touchWaiting()
}

// sync sends the node its whole set where the digest says that it holds another, or where something is still to be stopped there.
func (c *Core) sync(n *cluster.Node, p messages.Presence) {
	wanted := c.st.Assignments(n.ID)
	same := p.Digest == messages.Digest(wanted)
	for _, a := range wanted {
		same = same && a.Run
	}
	if same {
		return
	}
	c.sendSet(n, wanted)
}

// sendSet tells a node all that it shall hold.
func (c *Core) sendSet(n *cluster.Node, wanted []messages.Assignment) {
	for _, placed := range c.st.PlacedOn(n.ID) {
		placed.Asked = true
	}
	payload := messages.Encode(messages.Sync{Epoch: n.Epoch, Rev: c.st.Rev, Assignments: wanted})
	if len(payload) > messages.MaxFromManager { // one by one; what is too much there is stopped when it reports
		for _, placed := range c.st.PlacedOn(n.ID) {
			c.assign(placed)
		}
	} else {
		c.send(Message{Topic: messages.Topic{Kind: messages.SyncTopic, Node: n.ID}.String(), QoS: 1, Payload: payload})
	}
	if unsaid, ok := c.syncs.due(c.now); ok {
		c.log.Info("node synced", "node_id", n.ID, "rev", c.st.Rev, "instances", len(wanted), "unsaid", unsaid)
	}
}

// Disconnected says that the connection link has ended. Where the node is online by another one, that changes nothing.
func (c *Core) Disconnected(id messages.NodeID, link any, now time.Time) {
	c.now = now
	n := c.st.Nodes[id]
	if n == nil || !n.Online || c.links[id] != link {
		return
	}
	delete(c.links, id)
	c.net.Disconnected(id)
	if h := c.held[id]; h != nil {
		h.interest = nil
	}
	n.Online, n.Since = false, now
	c.down(id, now)
	c.nodeChanged(n)
	c.nodeTouched(n)
	c.log.Info("node away", "node_id", id, "participants", c.participants(""))
	c.event(messages.Event{Kind: messages.NodeAwayEv, Node: id, Message: fmt.Sprintf("%s is not connected any more", id)})
}

// Status takes what a node reports of one instance.
func (c *Core) Status(id messages.NodeID, s messages.InstanceStatus, now time.Time) {
	c.now = now
	p := c.st.Placement(s.Instance)
	if n := c.st.Nodes[id]; n == nil || n.Info.Key == "" {
		return // what a board says whose name waits for another one
	}
	if p == nil || p.Node != id || p.Abandoned {
		c.stray(id, s)
		return
	}
	if p.Run && s.Rev < p.Rev {
		return // of an earlier job's instance of this name
	}
	asked := p.Asked
	p.Asked = false
	if p.Observed != nil && s.Seq <= p.Observed.Seq && !asked && (p.Run || s.State != messages.Stopped) {
		return // late or repeated; that a stopped instance is gone holds from whatever time
	}
	was, wasAttempt := messages.State(""), -1
	if p.Observed != nil {
		was, wasAttempt = p.Observed.State, p.Observed.Attempt
	}
	up := p.Up()
	p.Observed = &s
	if s.Reason != "" || p.Up() {
		p.Complaint = s.Reason
	}
	c.observed(p)
	c.noteFinished(p)
	if !up || !p.Up() || wasAttempt != s.Attempt || p.HealthySince.IsZero() {
		c.healthChanged(p, wasAttempt)
	}
	c.touch(p.Job)
	if was != s.State || wasAttempt != s.Attempt {
		c.stateChanged(p)
	}
}

// healthChanged notes since when an instance is healthy. What had been good for long enough is waited for anew: neither the time that it once
// took to come up nor the restarts before are held against it then.
func (c *Core) healthChanged(p *cluster.Placement, wasAttempt int) {
	stable := c.st.Jobs[p.Job].Spec.Update.Stable.Std()
	if !p.HealthySince.IsZero() && c.now.Sub(p.HealthySince) >= stable {
		p.AwaitedSince = c.now
		if p.Forgiven != wasAttempt {
			p.Forgiven = wasAttempt
			c.st.PutPlacement(p)
		}
	}
	p.HealthySince = time.Time{}
	if p.Up() {
		p.HealthySince = c.now
	}
}

// noteFinished makes it durable that an instance has done what it was to do, and gives back what it had reserved.
func (c *Core) noteFinished(p *cluster.Placement) {
	s := p.Observed
	if p.Finished || !p.Run || s == nil || s.State != messages.ExitedState || s.ExitCode == nil || *s.ExitCode != 0 {
		return
	}
	p.Finished = true
	c.st.PutPlacement(p)
	c.table.Release(p.Node, p.Instance)
	c.nodes[p.Node] = true
	c.touchWaiting()
}

func (c *Core) stateChanged(p *cluster.Placement) {
	s := p.Observed
	c.summary = true
	c.log.Info("instance state", "instance_id", p.Instance, "node_id", p.Node, "state", string(s.State), "rev", s.Rev)
	text := fmt.Sprintf("%s is %s on %s", p.Instance, s.State, p.Node)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	c.event(messages.Event{Kind: messages.InstanceState, Job: p.Job, Node: p.Node, Instance: p.Instance, State: s.State, Message: text})
}

// warnEvery is how often one node's stray instances are said in the log.
const warnEvery = time.Minute

// stray tells a node to stop an instance that it is not to hold.
func (c *Core) stray(id messages.NodeID, s messages.InstanceStatus) {
	n := c.st.Nodes[id]
	if n == nil || !n.Online || !n.Agreed || s.State == messages.Stopped {
		return // not agreed: its inventory is to say first what it is
	}
	if c.now.Sub(c.strays[id]) >= warnEvery {
		c.strays[id] = c.now
		c.log.Warn("instance is not to be there", "instance_id", s.Instance, "node_id", id, "state", string(s.State))
	}
	rev := c.st.Rev // Presence has seen to it that the node holds nothing later
	if s.Rev == rev {
		rev = c.st.NextRev()
	}
	a := messages.Assignment{Instance: s.Instance, Rev: rev, Epoch: n.Epoch}
	c.send(Message{Topic: messages.Topic{Kind: messages.NodeControlTopic, Node: id, Verb: messages.Delete}.String(), Payload: messages.Encode(a), QoS: 1})
}
