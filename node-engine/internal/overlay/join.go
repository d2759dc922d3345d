package overlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager"
	"skerry.internal/node-engine/internal/driver"
)

// Ready returns nil where the network is up, and ErrNetworkDown where it can still come up. After a start, and after the first configuration, it
// waits until that is known.
func (m *Member) Ready(ctx context.Context) error {
	for {
		settled, patience := m.patience()
		if patience <= 0 {
			break
		}
		select {
		case <-settled:
		case <-time.After(patience):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == messages.OverlayUp:
		return nil
	case m.can && (m.config == nil || len(m.config.Blocks) > 0):
		return fmt.Errorf("%w: %s", driver.ErrNetworkDown, m.reason)
	default:
		return errors.New(m.reason)
	}
}

// patience returns how long it is still to be waited for it to be known whether there is a network, and what ends that early.
func (m *Member) patience() (settled <-chan struct{}, rest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known {
		return nil, 0
	}
	return m.settled, time.Until(m.since.Add(m.pace.first))
}

// Attach gives the namespace of an instance its interface and publishes its ports.
func (m *Member) Attach(ctx context.Context, a driver.Attachment) (driver.Attached, error) {
	if err := m.Ready(ctx); err != nil {
		return driver.Attached{}, err
	}
	l, fresh, err := m.lease(a)
	if err != nil {
		return driver.Attached{}, err
	}
	if fresh {
		m.noteLeases()
	}
	if err := m.connect(ctx, a, l, fresh); err != nil {
		if fresh {
			m.drop(a.Instance)
		}
		return driver.Attached{}, err
	}
	return m.attached(l), nil
}

// lease returns what the instance holds; fresh says that there is something new in it.
func (m *Member) lease(a driver.Attachment) (l lease, fresh bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, fresh, err = m.book.take(a.Instance)
	if err != nil || (!fresh && covers(l.Ports, a.Ports)) {
		return l, fresh, err
	}
	m.ports.give(l.Ports)
	l.Ports, err = m.ports.take(a.Ports, l.Ports)
	if err != nil {
		m.book.drop(a.Instance)
		return lease{}, false, err
	}
	m.book.leases[a.Instance] = l
	return l, true, nil
}

// covers reports whether the ports that are held are those that are wanted.
func covers(held, want []messages.Port) bool {
	if len(held) != len(want) {
		return false
	}
	for i, p := range want {
		h := held[i]
		if h.Container != p.Container || (p.Protocol != "" && h.Protocol != p.Protocol) || (p.Host != 0 && h.Host != p.Host) {
			return false
		}
	}
	return true
}

// connect makes true what a lease says.
func (m *Member) connect(ctx context.Context, a driver.Attachment, l lease, fresh bool) error {
	net := m.network()
	if net == nil {
		return noNetwork(netmanager.ErrNoNetwork)
	}
	m.mu.Lock()
	address6 := m.ground.plan.Map(l.Address)
	m.mu.Unlock()
	at := netmanager.Attachment{ID: string(a.Instance), NetNS: a.Namespace, Address: l.Address, Address6: address6}
	if err := net.Attach(ctx, at); err != nil {
		return noNetwork(err)
	}
	m.mu.Lock()
	m.spaces[a.Instance] = a.Namespace
	m.mu.Unlock()
	if !fresh {
		return nil
	}
	if len(l.Ports) == 0 {
		m.news.give() // its address is in the table of services
		return nil
	}
	m.setting.Lock()
	defer m.setting.Unlock()
	if err := m.setHeld(ctx); err != nil {
		return fmt.Errorf("publish the ports of %s: %w", a.Instance, err)
	}
	return nil
}

// noNetwork is err as a driver knows it: that the network went meanwhile is no fault of the workload.
func noNetwork(err error) error {
	if errors.Is(err, netmanager.ErrNoNetwork) {
		return fmt.Errorf("%w: %w", driver.ErrNetworkDown, err)
	}
	return err
}

// attached says what a lease means to its workload.
func (m *Member) attached(l lease) driver.Attached {
	m.mu.Lock()
	defer m.mu.Unlock()
	got := driver.Attached{Address: l.Address, Address6: m.ground.plan.Map(l.Address), Ports: l.Ports, DNS: m.ground.gateway, Search: messages.Zone}
	if job, ordinal, _, err := l.Instance.Split(); err == nil {
		got.Names = []string{fmt.Sprintf("%d.%s.%s", ordinal, job, messages.Zone), string(job) + "." + messages.Zone}
	}
	return got
}

// Detach takes the interface of an instance away and gives back what it holds.
func (m *Member) Detach(ctx context.Context, id messages.InstanceID) error {
	net := m.network()
	if net != nil {
		if err := net.Detach(string(id)); err != nil {
			return err
		}
	}
	l, held := m.drop(id)
	if !held || net == nil || len(l.Ports) == 0 {
		return nil
	}
	if !m.set(ctx) {
		m.news.give()
	}
	return nil
}

// drop gives a lease back.
func (m *Member) drop(id messages.InstanceID) (lease, bool) {
	m.mu.Lock()
	l, held := m.book.drop(id)
	m.ports.give(l.Ports)
	delete(m.spaces, id)
	m.mu.Unlock()
	if held {
		m.noteLeases()
	}
	return l, held
}

// Attached returns the instances that hold an address.
func (m *Member) Attached() []messages.InstanceID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []messages.InstanceID
	for _, l := range m.book.list() {
		ids = append(ids, l.Instance)
	}
	return ids
}
