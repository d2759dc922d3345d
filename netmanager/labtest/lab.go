//go:build linux

package labtest

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/netmanager"
	"skerry.internal/netmanager/ipam"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

// Port is that of every node's tunnels.
const Port = 51820

// Zone is the domain of the services.
const Zone = "skerry.internal"

// Lab is one network: what a manager would know of it.
type Lab struct {
	t        testing.TB
	plan     ipam.Plan
	nodes    []*Node
	services []*Service
	next     uint32 // the next service address
	// Relay and STUN are given to every node.
	Relay string
	STUN  []netip.AddrPort
}

// Node is a host with a Network.
type Node struct {
	lab        *Lab
	Host       *nettest.Host
	Static     netmanager.Static
	Block      ipam.Block
	Endpoint   netip.AddrPort // where others are told that it is; not valid: nobody is told
	Ports      []link.Port
	Guests     []netip.Prefix
	extra      []tunnel.Peer
	containers []*Container

	cmd *exec.Cmd
	in  *gob.Encoder
	out *gob.Decoder
}

// Container is a namespace that plays one.
type Container struct {
	*nettest.Host
	Node              *Node
	ID                string
	Address, Address6 netip.Addr
}

// Service is a job with its instances.
type Service struct {
	netmanager.Service
	at []*Container
}

// New returns a network without nodes.
func New(t testing.TB) *Lab {
	t.Helper()
	plan, err := ipam.NewPlan(netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48"))
	if err != nil {
		t.Fatal(err)
	}
	return &Lab{t: t, plan: plan}
}

// Node starts a node on a host. Others reach it at the endpoint.
func (l *Lab) Node(host *nettest.Host, endpoint string) *Node {
	l.t.Helper()
	key, err := tunnel.GenerateKey()
	if err != nil {
		l.t.Fatal(err)
	}
	i := len(l.nodes)
	first := l.plan.V4.Addr().As4()
	block, err := ipam.BlockOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{first[0], first[1], byte(i / 4), byte(i % 4 * 64)}), ipam.BlockBits))
	if err != nil {
		l.t.Fatal(err)
	}
	dir := l.t.TempDir()
	n := &Node{lab: l, Host: host, Block: block, Static: netmanager.Static{Name: fmt.Sprintf("lab%d", i), PrivateKey: key, ListenPort: Port,
		StateDir: dir, RunDir: filepath.Join(dir, "run")}}
	if endpoint != "" {
		n.Endpoint = netip.AddrPortFrom(netip.MustParseAddr(endpoint), Port)
	}
	l.nodes = append(l.nodes, n)
	n.Start()
	l.t.Cleanup(func() { n.Stop() })
	return n
}

// Start starts the node's process, which knows nothing yet.
func (n *Node) Start() {
	t := n.lab.t
	t.Helper()
	n.cmd = exec.CommandContext(context.Background(), os.Args[0]) // Stop ends it, after the test's context
	n.cmd.Env = append(os.Environ(), childEnv+"="+n.Static.Name)
	n.cmd.Stderr = os.Stderr
	in, err1 := n.cmd.StdinPipe()
	out, err2 := n.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, n.Host.Start(n.cmd)); err != nil {
		t.Fatal(err)
	}
	n.in, n.out = gob.NewEncoder(in), gob.NewDecoder(out)
	static := n.Static
	n.call(request{Start: &static})
}

// Stop ends the node's process in good order.
func (n *Node) Stop() {
	if n.cmd == nil {
		return
	}
	n.in = nil
	if c, ok := n.cmd.Stdin.(interface{ Close() error }); ok {
		_ = c.Close()
	}
	n.end(os.Interrupt)
}

// Kill ends the node's process as a crash does.
func (n *Node) Kill() { n.end(os.Kill) }

func (n *Node) end(s os.Signal) {
	_ = n.cmd.Process.Signal(s)
	_ = n.cmd.Wait()
	n.cmd = nil
}

// Signal sends a signal to the node's process, such as SIGSTOP.
func (n *Node) Signal(s os.Signal) {
	n.lab.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.lab.t.Fatal(err)
	}
}

func (n *Node) call(r request) answer {
	n.lab.t.Helper()
	a, err := n.try(r)
	if err != nil {
		n.lab.t.Fatalf("%s: %v", n.Static.Name, err)
	}
	return a
}

func (n *Node) try(r request) (answer, error) {
	var a answer
	if err := n.in.Encode(r); err != nil {
		return a, err
	}
	if err := n.out.Decode(&a); err != nil {
		return a, fmt.Errorf("the node has ended: %w", err)
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// Status asks the node.
func (n *Node) Status() (netmanager.Status, Usage) {
	n.lab.t.Helper()
	a := n.call(request{Status: true})
	return a.Status, a.Usage
}

// Missed returns the addresses that the node did not know.
func (n *Node) Missed() []netip.Addr {
	n.lab.t.Helper()
	return n.call(request{Status: true}).Missed
}

// Flows asks the node.
func (n *Node) Flows() []service.Flow {
	n.lab.t.Helper()
	return n.call(request{Flows: true}).Flows
}

// CleanUp takes away all that the node's host holds; the node has been stopped, and another process does it.
func (n *Node) CleanUp() {
	n.lab.t.Helper()
	n.Start()
	n.call(request{CleanUp: true})
	n.Stop()
}

// Peer adds a peer that is no node of the lab, such as a guest.
func (n *Node) Peer(p tunnel.Peer) { n.extra = append(n.extra, p) }

// Container makes a container on the node, which has been set.
func (n *Node) Container() *Container {
	n.lab.t.Helper()
	var last netip.Addr
	if len(n.containers) > 0 {
		last = n.containers[len(n.containers)-1].Address
	}
	address, ok := n.Block.Next(last, func(a netip.Addr) bool {
		return slices.ContainsFunc(n.containers, func(c *Container) bool { return c.Address == a })
	})
	if !ok {
		n.lab.t.Fatal("the block is full")
	}
	id := fmt.Sprintf("%s-%d", n.Static.Name, len(n.containers))
	c := &Container{Host: nettest.NewHost(n.lab.t, id), Node: n, ID: id, Address: address, Address6: n.lab.plan.Map(address)}
	n.containers = append(n.containers, c)
	c.attach()
	return c
}

func (c *Container) attach() {
	c.Node.lab.t.Helper()
	c.Node.call(request{Attach: &netmanager.Attachment{ID: c.ID, NetNS: c.Path(), Address: c.Address, Address6: c.Address6}})
}

// Service adds a service whose instances are the containers, all healthy.
func (l *Lab) Service(name string, at ...*Container) *Service {
	s := &Service{at: at}
	s.Name = name
	s.RoundRobin, s.RoundRobin6 = l.address()
	s.Closest, s.Closest6 = l.address()
	for i, c := range at {
		v4, v6 := l.address()
		s.Instances = append(s.Instances, service.Instance{Ordinal: i, Service: v4, Service6: v6, Address: c.Address, Address6: c.Address6, Healthy: true})
	}
	l.services = append(l.services, s)
	return s
}

// Move lets another container be what an instance is.
func (s *Service) Move(ordinal int, to *Container) {
	s.at[ordinal] = to
	s.Instances[ordinal].Address, s.Instances[ordinal].Address6 = to.Address, to.Address6
}

// address leases a service address.
func (l *Lab) address() (v4, v6 netip.Addr) {
	l.next++
	v4 = l.plan.Services().Addr()
	b := v4.As4()
	b[1], b[2], b[3] = b[1]|byte(l.next>>16), byte(l.next>>8), byte(l.next)
	v4 = netip.AddrFrom4(b)
	return v4, l.plan.Map(v4)
}

// Config returns what a manager would tell the node: all there is.
func (l *Lab) Config(n *Node) netmanager.Config {
	c := netmanager.Config{Network: l.plan.V4, Network6: l.plan.V6, Services: l.plan.Services(), Services6: l.plan.MapPrefix(l.plan.Services()),
		Blocks:  []netip.Prefix{n.Block.Prefix(), l.plan.MapPrefix(n.Block.Prefix())},
		Gateway: n.Block.Gateway(), Gateway6: l.plan.Map(n.Block.Gateway()), Ports: n.Ports, Zone: Zone, Relay: l.Relay, STUN: l.STUN, Guests: n.Guests}
	for _, other := range l.nodes {
		if other == n {
			continue
		}
		p := tunnel.Peer{Key: other.Static.PrivateKey.Public(), Prefixes: []netip.Prefix{other.Block.Prefix(), l.plan.MapPrefix(other.Block.Prefix())}}
		p.Prefixes = append(p.Prefixes, other.Guests...)
		if other.Endpoint.IsValid() {
			p.Endpoints = []netip.AddrPort{other.Endpoint}
		}
		c.Peers = append(c.Peers, p)
	}
	c.Peers = append(c.Peers, n.extra...)
	for _, s := range l.services {
		entry := s.Service
		entry.Instances = slices.Clone(s.Instances)
		for i, at := range s.at {
			entry.Instances[i].Local = at.Node == n
		}
		c.ServiceTable = append(c.ServiceTable, entry)
	}
	return c
}

// Set gives the node its configuration.
func (n *Node) Set() {
	n.lab.t.Helper()
	c := n.lab.Config(n)
	n.call(request{Set: &c})
}

// TrySet gives the node a configuration that it may refuse.
func (n *Node) TrySet(c netmanager.Config) error {
	n.lab.t.Helper()
	_, err := n.try(request{Set: &c})
	return err
}

// Set gives every node its configuration.
func (l *Lab) Set() {
	l.t.Helper()
	for _, n := range l.nodes {
		n.Set()
	}
}

// Eventually waits for a condition.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", within, what)
		}
	}
}

// FQDN returns a service's name in the zone.
func (s *Service) FQDN(label ...string) string { return strings.Join(append(label, s.Name, Zone), ".") }
