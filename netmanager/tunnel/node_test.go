package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/relay"
	"skerry.internal/netmanager/tun"
)

// A node is a Device on a real TUN in a process of its own, inside the namespace of a host: this test binary again, told what to do in the
// environment and on its standard input.
type node struct {
	t       testing.TB
	host    *nettest.Host
	config  nodeConfig
	cmd     *exec.Cmd
	in      io.Writer
	out     *bufio.Scanner
	mu      sync.Mutex
	stopped bool
}

type nodeConfig struct {
	Name    string
	Key     Key
	Port    uint16
	MTU     int
	Address []netip.Prefix // of the TUN; the prefix is routed into it
	Relay   string
	STUN    []netip.AddrPort
	Bare    string // for the library alone: its configuration
}

// order is what a node is told, report what it answers.
type order struct {
	Peers []Peer
	Stats bool
}

type report struct {
	Err       string
	Stats     Stats
	Endpoints []netip.AddrPort
	MTU       map[netip.Addr]int
}

const nodeVariable = "SKERRY_TUNNEL_NODE"

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVariable); text != "" {
		if err := runNode(text); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		return
	}
	if text := os.Getenv(guestVariable); text != "" {
		if err := runGuest(text); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runNode(text string) error {
	var cfg nodeConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	level := slog.LevelInfo
	if os.Getenv("SKERRY_TUNNEL_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node_id", cfg.Name)
	dev, err := tun.Open("sk0", cfg.MTU)
	if err != nil {
		return err
	}
	if err := plug("sk0", cfg.Address); err != nil {
		return err
	}
	if cfg.Bare != "" {
		return runBare(ctx, dev, cfg.Bare)
	}
	hidden := func(a netip.Addr) bool {
		for _, p := range cfg.Address {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	c := Config{PrivateKey: cfg.Key, ListenPort: cfg.Port, TUN: dev, STUN: cfg.STUN, Hidden: hidden}
	if cfg.Relay != "" {
		if c.Relay, err = relay.NewClient(relay.ClientConfig{URL: cfg.Relay, PrivateKey: cfg.Key}, log); err != nil {
			return err
		}
	}
	d, err := New(c, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { listenToOrders(d) })
	return d.Run(ctx)
}

func listenToOrders(d *Device) {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return
		}
		var r report
		if o.Peers != nil {
			if err := d.Set(o.Peers); err != nil {
				r.Err = err.Error()
			}
		}
		if o.Stats {
			r.Stats, r.Endpoints, r.MTU = d.Stats(), d.Endpoints(), map[netip.Addr]int{}
			for prefix := range d.routes.Load().peers {
				r.MTU[prefix.Addr()] = d.MTU(prefix.Addr())
			}
		}
		if err := out.Encode(r); err != nil {
			return
		}
	}
}

// plug gives the TUN its addresses. One that has them from before is taken as it is.
func plug(name string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, p := range addresses {
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			a.Flags = syscall.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return err
		}
	}
	return nil
}

// startNode starts a node on a host; it ends with the test.
func startNode(t testing.TB, host *nettest.Host, config nodeConfig) *node {
	t.Helper()
	if config.MTU == 0 {
		config.MTU = 1420
	}
	if config.Key.IsZero() {
		config.Key = newKey(t)
	}
	n := &node{t: t, host: host, config: config}
	n.start()
	t.Cleanup(func() { n.end(syscall.SIGTERM) })
	return n
}

func (n *node) start() {
	n.t.Helper()
	text, err := json.Marshal(n.config)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
	n.cmd.Stderr = os.Stderr
	in, errIn := n.cmd.StdinPipe()
	out, errOut := n.cmd.StdoutPipe()
	if errIn != nil || errOut != nil {
		n.t.Fatal(errIn, errOut)
	}
	n.in, n.out, n.stopped = in, bufio.NewScanner(out), false
	n.out.Buffer(nil, 1<<22)
	if err := n.host.Start(n.cmd); err != nil {
		n.t.Fatal(err)
	}
	n.tell(order{}) // it is there
}

// end sends the node a signal and waits for it.
func (n *node) end(sig syscall.Signal) {
	if n.stopped {
		return
	}
	n.stopped = true
	_ = n.cmd.Process.Signal(sig)
	n.in.(io.Closer).Close()
	defer n.watch()()
	_ = n.cmd.Wait()
}

// watch makes the node show its goroutines and end if what follows takes too long, until the function that it returns is called.
func (n *node) watch() (stop func()) {
	timer := time.AfterFunc(30*time.Second, func() { _ = n.cmd.Process.Signal(syscall.SIGQUIT) })
	return func() { timer.Stop() }
}

func (n *node) tell(o order) report {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	defer n.watch()()
	if err := json.NewEncoder(n.in).Encode(o); err != nil {
		n.t.Fatalf("%s: %v", n.config.Name, err)
	}
	var r report
	if !n.out.Scan() {
		n.t.Fatalf("%s: no answer: %v", n.config.Name, n.out.Err())
	}
	if err := json.Unmarshal(n.out.Bytes(), &r); err != nil {
		n.t.Fatalf("%s: %v", n.config.Name, err)
	}
	if r.Err != "" {
		n.t.Fatalf("%s: %s", n.config.Name, r.Err)
	}
	return r
}

// peer returns the node as a peer of others.
func (n *node) peer(endpoints ...netip.AddrPort) Peer {
	p := Peer{Key: n.config.Key.Public(), Endpoints: endpoints}
	for _, a := range n.config.Address {
		p.Prefixes = append(p.Prefixes, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
	}
	return p
}

// offered is peer with the endpoints that the node knows of itself, as the control plane would tell them.
func (n *node) offered() Peer { return n.peer(n.tell(order{Stats: true}).Endpoints...) }

func (n *node) set(peers ...Peer) { n.t.Helper(); n.tell(order{Peers: peers}) }

// to returns what the node knows of its way to another.
func (n *node) to(other *node) PeerStats {
	n.t.Helper()
	for _, p := range n.tell(order{Stats: true}).Stats.Peers {
		if p.Key == other.config.Key.Public() {
			return p
		}
	}
	return PeerStats{}
}

// waitWay waits until the node reaches the other by this way and returns how long that took.
func (n *node) waitWay(other *node, way Way, limit time.Duration) time.Duration {
	n.t.Helper()
	began := time.Now()
	for {
		got := n.to(other)
		if got.Way == way {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			n.t.Fatalf("%s to %s: got %s after %v, want %s; %s", n.config.Name, other.config.Name, got.Way, limit, way, n.describe())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *node) describe() string {
	r := n.tell(order{Stats: true})
	return fmt.Sprintf("NAT %s, relay %v, endpoints %v, peers %+v", r.Stats.NAT, r.Stats.Relay, r.Endpoints, r.Stats.Peers)
}

func newKey(t testing.TB) Key {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// echo serves TCP and UDP echo at an address of a host.
func echo(t *testing.T, host *nettest.Host, addr string) {
	t.Helper()
	l := host.Listen("tcp", addr)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	u := host.ListenPacket("udp", addr)
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	})
}

// exchange sends n bytes over a fresh TCP connection and reads them back.
func exchange(t *testing.T, host *nettest.Host, addr string, n int, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := host.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatalf("%s: %v", host.Name, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	pingPong(t, c, n)
}

func pingPong(t *testing.T, c io.ReadWriter, n int) {
	t.Helper()
	sent := make([]byte, n)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		errs <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read back: %v", err)
	}
	if err := <-errs; err != nil {
		t.Fatalf("send: %v", err)
	}
	if string(got) != string(sent) {
		t.Fatal("what came back is not what was sent")
	}
}

// dialEcho opens a TCP connection that ends with the test.
func dialEcho(t testing.TB, host *nettest.Host, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := host.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatalf("%s: %v", host.Name, err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}
