package overlay

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"time"

	"skerry.internal/messages"
)

// Begin makes the next configuration hold, whatever its rev, and has all services asked for anew: updates may have been missed.
func (m *Member) Begin() {
	m.measuring.Lock()
	m.at = time.Time{} // the flows are looked at before the first word
	m.measuring.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.first, m.asked.full, m.asked.strange = true, true, nil
}

// Configure takes the manager's word on the node's network.
func (m *Member) Configure(c messages.NetworkConfig) {
	g, err := ground{}, error(nil)
	if len(c.Blocks) > 0 {
		if g, err = readGround(&c); err != nil {
			m.log.Error("the manager's network cannot be used", "rev", c.Rev, "err", err)
			return
		}
	}
	m.mu.Lock()
	if m.config != nil && c.Rev <= m.config.Rev && !m.first {
		m.mu.Unlock()
		return
	}
	urgent := m.config == nil || !slices.Equal(m.config.Blocks, c.Blocks) || m.config.Network != c.Network
	fresh := m.config == nil || len(m.config.Blocks) == 0
	m.config, m.first = &c, false
	var dropped []lease
	if len(c.Blocks) > 0 {
		if fresh && m.can && m.state != messages.OverlayUp {
			m.awaitLocked()
		}
		m.ground = g
		dropped = m.book.setBlocks(g.blocks)
		for _, l := range dropped {
			m.ports.give(l.Ports)
		}
	} else if m.can {
		reason := c.Reason
		if reason == "" {
			reason = "the manager gives this node no network"
		}
		m.stateLocked(messages.OverlayOff, reason)
	}
	m.mu.Unlock()
	for _, l := range dropped {
		m.log.Warn("an instance has an address that is not this node's any more; it gets another with its next start", "instance_id", l.Instance, "addr", l.Address)
	}
	if urgent { // from now on the kernel holds something, and a reboot without a link needs it
		if err := m.cfg.Store.Put(configValue, c); err != nil {
			m.log.Warn("network not kept", "err", err)
		}
	}
	m.save.give()
	m.news.give()
}

// awaitLocked has workloads wait for a network that has just got its configuration.
func (m *Member) awaitLocked() {
	m.reason, m.since = comingUp, time.Now()
	if m.known {
		m.known, m.settled = false, make(chan struct{})
	}
}

// Update takes what has changed of the services.
func (m *Member) Update(u messages.ServiceUpdate) {
	m.mu.Lock()
	if m.table.update(u) {
		m.asked.answered(m.table, u)
	} else {
		m.asked.full = true
	}
	net := m.net
	m.mu.Unlock()
	var unknown []string
	for _, name := range u.Unknown {
		if _, err := netip.ParseAddr(name); err != nil {
			unknown = append(unknown, name)
		}
	}
	if net != nil && len(unknown) > 0 {
		net.Unknown(unknown...)
	}
	m.save.give()
	m.says.give()
	m.news.give()
}

// want asks for a job that somebody on this node looks for.
func (m *Member) want(job messages.JobName) {
	if messages.CheckName("job", string(job)) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.asked.name(job) { // asked already, and still nobody has answered: once more
		if _, known := m.table.services[job]; known {
			return
		}
		m.asked.again = true
	}
	m.says.give()
}

// used says that somebody on this node uses a job that the node knows. Where that is news, it is asked for: the manager may have told of it only for its
// instances here, without the nodes of the others as peers.
func (m *Member) used(job messages.JobName) {
	if m.asked.uses.note(job) {
		m.want(job)
	}
}

// missed asks whose a service address is that somebody on this node sends to.
func (m *Member) missed(a netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Is6() {
		a = m.ground.plan.Unmap(a)
	}
	if !a.IsValid() {
		return
	}
	if !m.asked.address(a) {
		m.asked.again = true
	}
	m.says.give()
}

// wonder asks whose the service addresses of flows are that the node knows nothing of, each once in a session. The flows have outlived a process that was
// killed before it had written what it was told: they have the place of their instance, but without an interest its node is no peer.
func (m *Member) wonder(strange map[netip.Addr]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a := range strange {
		if _, known := m.table.bearer(a); known { // since the flows were looked at
			delete(strange, a)
		} else if !m.asked.strange[a] && m.asked.address(a) {
			m.says.give()
		}
	}
	for a := range m.asked.strange {
		if !strange[a] { // its last flow has ended
			m.asked.forget(a)
		}
	}
	m.asked.strange = strange
}

// Talk says what a manager is to hear: the endpoints, the interest, and the status, each when it changes.
func (m *Member) Talk(ctx context.Context, say func(kind messages.Kind, payload any) error) error {
	tick := time.NewTicker(m.pace.look)
	defer tick.Stop()
	var said speech
	for {
		if err := m.speak(&said, say); err != nil {
			return err
		}
		select {
		case <-m.says:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// speech is what has been said in a session.
type speech struct {
	endpoints, interest []byte
	status              messages.NetStatus
	at                  time.Time // of the status
}

func (m *Member) speak(said *speech, say func(kind messages.Kind, payload any) error) error {
	early := m.comesUp() // before anything else: once it is up, the look at the flows is one at what has outlived the process
	s := m.netStatus()   // it looks which services are in use
	e := m.endpoints()
	if text := messages.Encode(&e); !bytes.Equal(text, said.endpoints) {
		if err := say(messages.NetEndpointsTopic, &e); err != nil {
			return err
		}
		said.endpoints = text
	}
	if !early {
		if err := m.ask(said, say); err != nil {
			return err
		}
	}
	quiet := time.Since(said.at)
	if said.at.IsZero() || s.State != said.status.State || s.Reason != said.status.Reason || s.NoNames != said.status.NoNames || s.NoIPv6 != said.status.NoIPv6 || s.NAT != said.status.NAT ||
		(!samePaths(said.status.Peers, s.Peers) && quiet >= m.pace.look) || (!sameFigures(&said.status, &s) && quiet >= m.pace.figure) {
		if err := say(messages.NetStatusTopic, &s); err != nil {
			return err
		}
		said.status, said.at = s, time.Now()
	}
	return nil
}

// comesUp reports whether the network of before is still coming up. Nothing is asked for until then: its flows say what is in use.
func (m *Member) comesUp() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.can && !m.known && m.config != nil && len(m.config.Blocks) > 0
}

// ask sends the interest where it is another, or has to be answered once more.
func (m *Member) ask(said *speech, say func(kind messages.Kind, payload any) error) error {
	m.mu.Lock()
	m.asked.expire(m.pace.forget)
	i, again := m.asked.message(m.table, m.book.jobs()), m.asked.again
	m.mu.Unlock()
	text := messages.Encode(&i)
	if bytes.Equal(text, said.interest) && !again && !i.Full {
		return nil
	}
	if err := say(messages.NetInterestTopic, &i); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked.again = false
	if i.Full {
		m.asked.full = false
		i.Full = false
		text = messages.Encode(&i)
	}
	said.interest = text
	return nil
}

// endpoints says where the tunnel of this node is reached, or why it cannot be used. A node that may still have one keeps its key, and with it
// the configuration that it tries to put in force.
func (m *Member) endpoints() messages.Endpoints {
	e := messages.Endpoints{}
	m.mu.Lock()
	net := m.net
	if m.can {
		e.PublicKey = m.public
	}
	if !m.can || m.failedLocked() {
		e.Reason = sentence(m.reason)
	}
	m.mu.Unlock()
	if !m.can || net == nil {
		return e
	}
	s := net.Status()
	for _, at := range s.Endpoints[:min(len(s.Endpoints), messages.MaxEndpoints)] {
		e.Endpoints = append(e.Endpoints, at.String())
	}
	if e.NAT = string(s.Tunnel.NAT); e.NAT == "unknown" {
		e.NAT = ""
	}
	e.RelayOnly = e.NAT == "blocked"
	return e
}

// failedLocked reports whether the network is not there though the manager has given the node one.
func (m *Member) failedLocked() bool {
	return m.known && m.state != messages.OverlayUp && m.config != nil && len(m.config.Blocks) > 0
}

// Info introduces the node's part when it registers.
func (m *Member) Info() *messages.OverlayInfo {
	e := m.endpoints()
	i := &messages.OverlayInfo{PublicKey: e.PublicKey, Endpoints: e.Endpoints, Reason: e.Reason}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config != nil && m.can {
		i.Blocks = m.config.Blocks[:min(len(m.config.Blocks), messages.MaxOwnBlocks)] // for a manager that has lost its state
	}
	return i
}
