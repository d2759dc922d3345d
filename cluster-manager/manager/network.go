package manager

import (
	"fmt"
	"net"
	"strconv"

	"skerry.internal/cluster-manager/internal/overlay"
	"skerry.internal/netmanager/ipam"
	"skerry.internal/netmanager/relay"
)

// network says what of the overlay is this manager's to say.
func (m *Manager) network() overlay.Config {
	if !m.cfg.Network.IsValid() {
		return overlay.Config{}
	}
	scheme := "http://"
	if m.cert != nil {
		scheme = "https://"
	}
	c := overlay.Config{Plan: ipam.Plan{V4: m.cfg.Network, V6: m.cfg.Network6}, Relay: scheme + dialled(m.HTTPAddr()) + relay.Path}
	for _, addr := range m.stunAddrs() {
		c.STUN = append(c.STUN, dialled(addr))
	}
	return c
}

// openNetwork binds what nodes use of this manager to find one another. Nobody else's packets are relayed than those of nodes.
func (m *Manager) openNetwork() error {
	if !m.cfg.Network.IsValid() {
		return nil
	}
	m.relay = relay.NewServer(relay.ServerConfig{Allow: func(key relay.Key) bool { return m.loop.HasTunnel(m.handling, key.String()) }}, m.log)
	addrs := m.cfg.STUN
	if len(addrs) == 0 {
		addrs = besides(m.HTTPAddr(), m.cfg.HTTP)
	}
	var err error
	m.reflector, err = relay.NewReflector(relay.ReflectorConfig{Addrs: addrs}, m.log)
	if err == nil {
		return nil
	}
	m.reflector = nil
	if len(m.cfg.STUN) > 0 {
		return fmt.Errorf("--stun: %w", err)
	}
	m.log.Warn("no reflector: nodes behind NAT reach one another by the relay; give it free ports with --stun", "err", err)
	return nil
}

// besides returns the UDP addresses beside an HTTP server's: its port and the next one. Where any port was asked for, any will do.
func besides(bound, asked string) []string {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return nil
	}
	n, err := strconv.Atoi(port)
	if _, want, _ := net.SplitHostPort(asked); err != nil || want == "0" || n == 65535 {
		return []string{net.JoinHostPort(host, "0"), net.JoinHostPort(host, "0")}
	}
	return []string{bound, net.JoinHostPort(host, strconv.Itoa(n+1))}
}

// dialled leaves out the host of an address where the server listens on all of them: a node takes the one that it has dialled.
func dialled(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("", port)
	}
	return addr
}

func (m *Manager) stunAddrs() []string {
	var addrs []string
	if m.reflector != nil {
		for _, a := range m.reflector.Addrs() {
			addrs = append(addrs, a.String())
		}
	}
	return addrs
}
