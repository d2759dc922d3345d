package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager/tunnel"
)

const (
	// pingWait is how long a reply may take.
	pingWait = 2 * time.Second
	// pingEvery is the pause between two pings of one question.
	pingEvery = time.Second
)

// Trace says what a name means on this node, and for all but resolve, which instance a flow to it reaches and how.
func (m *Member) Trace(ctx context.Context, req messages.TraceRequest, answer func(*messages.TraceAnswer) error) error {
	count := max(req.Count, 1)
	if req.Kind != messages.TracePing {
		count = 1
	}
	for n := range count {
		a := messages.TraceAnswer{RequestID: req.RequestID, Kind: req.Kind, N: n, Last: n == count-1}
		if err := m.trace(ctx, req, &a); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.Error, a.Last = err.Error(), a.Last || a.Service == "" // what is not there now is asked for once
		}
		a.At = messages.At(time.Now())
		if err := answer(&a); err != nil || a.Last {
			return err
		}
		select {
		case <-time.After(pingEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// trace fills in one answer.
func (m *Member) trace(ctx context.Context, req messages.TraceRequest, a *messages.TraceAnswer) error {
	if err := m.Ready(ctx); err != nil {
		return fmt.Errorf("no overlay: %w", err)
	}
	t, err := m.resolve(ctx, req.Name)
	if err != nil {
		return err
	}
	m.describe(t, a)
	if req.Kind == messages.TraceResolve {
		return nil
	}
	namespace, err := m.namespace(req.Instance)
	if err != nil {
		return err
	}
	took, err := m.ping(ctx, namespace, t.address)
	if errors.Is(err, errNoReply) && req.Kind == messages.TracePath { // the way to a new peer may not have been found yet
		a.Again = true
		took, err = m.ping(ctx, namespace, t.address)
	}
	if errors.Is(err, errNoReply) {
		a.Lost = true
	} else if err != nil {
		return err
	}
	a.RTTMS = float64(took.Microseconds()) / 1000
	m.locateInstance(t, req.Instance, a)
	return nil
}

// target is what a name means.
type target struct {
	name    string // in full; empty for an address
	service messages.ServiceEntry
	address netip.Addr
	ordinal int // of an instance's own address; -1: one stands for the other
}

// resolve looks a name or an address up, and asks the manager where it is not known.
func (m *Member) resolve(ctx context.Context, name string) (target, error) {
	deadline := time.Now().Add(m.pace.answer)
	for {
		t, err := m.lookUp(name)
		if err == nil || time.Now().After(deadline) {
			return t, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return t, ctx.Err()
		}
	}
}

func (m *Member) lookUp(name string) (target, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return m.lookUpAddress(a)
	}
	short := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), "."), "."+messages.Zone)
	kind, job, found := strings.Cut(short, ".")
	if !found {
		kind, job = "", short
	}
	if err := messages.CheckName("name", job); err != nil {
		return target{}, fmt.Errorf("%q: want JOB, closest.JOB or NUMBER.JOB, such as 0.web", name)
	}
	m.mu.Lock()
	s, known := m.table.services[messages.JobName(job)]
	m.mu.Unlock()
	if !known {
		m.want(messages.JobName(job))
		return target{}, fmt.Errorf("no job %s, or it has no service address", job)
	}
	m.used(messages.JobName(job))
	t := target{name: short + "." + messages.Zone, service: s, ordinal: -1}
	text := s.RoundRobin
	switch {
	case kind == "closest", kind == "" && s.Policy == messages.Closest:
		text = s.Closest
	case kind != "":
		ordinal, err := strconv.Atoi(kind)
		at := slices.IndexFunc(s.Instances, func(i messages.ServiceInstance) bool { return i.Ordinal == ordinal })
		if err != nil || at < 0 {
			return target{}, fmt.Errorf("job %s has no instance %s", job, kind)
		}
		text, t.ordinal = s.Instances[at].Service, ordinal
	}
	var err error
	t.address, err = netip.ParseAddr(text)
	return t, err
}

func (m *Member) lookUpAddress(a netip.Addr) (target, error) {
	m.mu.Lock()
	v4 := a
	if a.Is6() {
		v4 = m.ground.plan.Unmap(a)
	}
	s, known := m.table.bearer(v4)
	m.mu.Unlock()
	if !known {
		if v4.IsValid() && m.inServices(v4) {
			m.missed(v4)
		}
		return target{}, fmt.Errorf("%s is no service address that this node knows", a)
	}
	m.used(s.Job)
	t := target{service: s, address: a, ordinal: -1}
	for _, i := range s.Instances {
		if i.Service == v4.String() {
			t.ordinal = i.Ordinal
		}
	}
	return t, nil
}

func (m *Member) inServices(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.config != nil && m.ground.plan.Services().Contains(a)
}

// describe says what the name resolves to.
func (m *Member) describe(t target, a *messages.TraceAnswer) {
	a.Name, a.Service, a.Policy = t.name, t.service.Job, t.service.Policy
	a.Addresses = []string{t.address.String()}
	m.mu.Lock()
	if other := m.ground.plan.Map(t.address); other.IsValid() {
		a.Addresses = append(a.Addresses, other.String())
	}
	m.mu.Unlock()
	for _, i := range t.service.Instances {
		if i.Healthy && i.Address != "" && (t.ordinal < 0 || i.Ordinal == t.ordinal) {
			a.Healthy++
		}
	}
}

// namespace returns the file of the network namespace from which is asked: an instance's, or the node's own where none is named.
func (m *Member) namespace(id messages.InstanceID) (string, error) {
	if id == "" {
		return "", nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	path, ok := m.spaces[id]
	if !ok {
		return "", fmt.Errorf("instance %s is not on this node's overlay", id)
	}
	return path, nil
}

// locateInstance says which instance the flow of a ping has reached: the newest echo flow to that address knows.
func (m *Member) locateInstance(t target, from messages.InstanceID, a *messages.TraceAnswer) {
	net := m.network()
	if net == nil {
		return
	}
	m.mu.Lock()
	local := m.ground.gateway
	if l, ok := m.book.leases[from]; ok {
		local = l.Address
	}
	m.mu.Unlock()
	who := m.directory()
	var reached netip.Addr
	idle := time.Duration(-1)
	for _, f := range net.Flows(local) {
		if (f.Proto == 1 || f.Proto == 58) && who.v4(f.Dialled.Addr()) == who.v4(t.address) && (idle < 0 || f.Idle < idle) {
			reached, idle = who.v4(f.Instance.Addr()), f.Idle
		}
	}
	if !reached.IsValid() {
		return
	}
	a.Address, a.Local = reached.String(), who.ground.local(reached)
	for _, i := range t.service.Instances {
		if i.Address == a.Address {
			a.Instance, a.Node = messages.NewInstanceID(t.service.Job, i.Ordinal, i.Generation), i.Node
		}
	}
	a.MTU = net.PathMTU(reached)
	if a.Local {
		a.Path = messages.Direct
		return
	}
	for _, p := range net.Status().Tunnel.Peers {
		if who.holds(p.Key, reached) {
			a.Path = messages.PathState(p.Way)
			if p.Endpoint.IsValid() {
				a.Endpoint = p.Endpoint.String()
			}
		}
	}
}

// holds reports whether an address is one of that peer's.
func (d directory) holds(key tunnel.Key, a netip.Addr) bool {
	p := d.peers[key]
	return p != nil && slices.ContainsFunc(p.Prefixes, func(text string) bool {
		prefix, err := netip.ParsePrefix(text)
		return err == nil && prefix.Contains(a)
	})
}
