package netmanager

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"skerry.internal/netmanager/dns"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/relay"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tun"
	"skerry.internal/netmanager/tunnel"
)

// plane is the running half of a Network: the packets' way between the TUN device and the tunnels, and the name server. What it was opened with
// does not change; another Config that needs it otherwise gets another plane.
type plane struct {
	relay    string
	stun     []netip.AddrPort
	zone     string
	networks []netip.Prefix
	gateways []netip.Addr

	packets  *service.Device
	tunnel   *tunnel.Device
	names    *names
	mtu      int           // of the containers' interfaces
	replaced chan struct{} // closed when another takes its place
	done     chan struct{} // closed when it has run
}

// serves says whether the plane can go on under this configuration.
func (p *plane) serves(c Config) bool {
	return p.relay == c.Relay && slices.Equal(p.stun, c.STUN) && p.zone == c.Zone && slices.Equal(p.networks, c.networks()) && slices.Equal(p.gateways, c.gateways())
}

// sameLinks says whether the kernel's side is the same for both.
func (p *plane) sameLinks(other *plane) bool {
	return slices.Equal(p.networks, other.networks) && slices.Equal(p.gateways, other.gateways)
}

// open takes up the TUN device and binds what the plane needs.
func (n *Network) open(ctx context.Context, c Config) (*plane, error) {
	p := &plane{mtu: containerMTU(), relay: c.Relay, stun: slices.Clone(c.STUN), zone: c.Zone, networks: c.networks(), gateways: c.gateways(),
		replaced: make(chan struct{}), done: make(chan struct{})}
	dev, err := tun.Open(link.TUN(n.static.Name), p.mtu)
	if err != nil {
		return nil, err
	}
	flows := n.flowMemoryLocked()
	p.packets = service.Wrap(dev, service.Options{OnMiss: n.static.OnMiss, MTU: p.pathMTU, Memory: flows.mapped, Back: flows.back})
	if err := p.bind(ctx, n, c); err != nil {
		return nil, errors.Join(err, p.packets.Close())
	}
	return p, nil
}

// pathMTU is asked for packets, which flow only once the tunnel is there.
func (p *plane) pathMTU(dst netip.Addr) int { return p.tunnel.MTU(dst) }

func (p *plane) bind(ctx context.Context, n *Network, c Config) error {
	cfg := tunnel.Config{PrivateKey: n.static.PrivateKey, ListenPort: n.static.ListenPort, TUN: p.packets, STUN: c.STUN,
		Hidden: func(a netip.Addr) bool {
			return c.Network.Contains(a) || c.Network6.IsValid() && c.Network6.Contains(a)
		}}
	var err error
	if c.Relay != "" {
		rc := relay.ClientConfig{URL: c.Relay, PrivateKey: n.static.PrivateKey}
		if n.static.RelayTLS != nil {
			rc.TLS = n.static.RelayTLS()
		}
		if cfg.Relay, err = relay.NewClient(rc, n.log); err != nil {
			return fmt.Errorf("relay: %w", err)
		}
	}
	var listen []netip.AddrPort
	for _, gateway := range p.gateways {
		listen = append(listen, netip.AddrPortFrom(gateway, 53))
	}
	zone := dns.Config{Listen: listen, Zone: c.Zone, Networks: p.networks, Upstreams: n.host.Upstreams, OnMiss: n.static.OnNameMiss, OnHit: n.static.OnNameHit}
	p.names = &names{open: func(ctx context.Context) (*dns.Server, error) { return dns.New(ctx, zone, n.log) }, log: n.log}
	if err := p.names.take(ctx); err != nil {
		return err
	}
	if p.tunnel, err = tunnel.New(cfg, n.log); err != nil {
		return errors.Join(err, p.names.close())
	}
	return nil
}

// close gives back what a plane holds that is never run.
func (p *plane) close() error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return errors.Join(p.tunnel.Run(ended), p.names.close())
}

// run carries packets until ctx ends or another plane takes this one's place. An error says that it has ended by itself.
func (p *plane) run(ctx context.Context, n *Network) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		if err = p.tunnel.Run(ctx); err != nil {
			err = fmt.Errorf("tunnel: %w", err)
		}
		cancel()
	})
	wg.Go(func() { p.names.run(ctx) })
	wg.Go(func() { n.measure(ctx, p) })
	select {
	case <-p.replaced:
		cancel()
	case <-ctx.Done():
	}
	wg.Wait()
	return err
}
