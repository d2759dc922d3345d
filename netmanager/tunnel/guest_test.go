package tunnel

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	upstreamconn "golang.zx2c4.com/wireguard/conn"
	upstream "golang.zx2c4.com/wireguard/device"
	upstreamtun "golang.zx2c4.com/wireguard/tun"

	"skerry.internal/netmanager/nettest"
)

// A guest is a stock WireGuard client: the protocol's first implementation in Go, in a process of its own. It knows nothing of probes.
type guestConfig struct {
	Key      Key
	Address  []netip.Prefix
	Peer     Key
	Endpoint netip.AddrPort
	Port     uint16
}

const guestVariable = "SKERRY_TUNNEL_GUEST"

func runGuest(text string) error {
	var cfg guestConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	dev, err := upstreamtun.CreateTUN("wg0", 1420)
	if err != nil {
		return err
	}
	d := upstream.NewDevice(dev, upstreamconn.NewDefaultBind(), upstream.NewLogger(upstream.LogLevelError, "guest: "))
	defer d.Close()
	err = d.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nallowed_ip=10.160.0.0/12\nallowed_ip=fd5c:ae11:9::/48\n"+
		"persistent_keepalive_interval=25\n", hex.EncodeToString(cfg.Key[:]), cfg.Port, hex.EncodeToString(cfg.Peer[:]), cfg.Endpoint))
	if err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	if err := plug("wg0", cfg.Address); err != nil {
		return err
	}
	fmt.Println("up")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	return nil
}

// startGuest starts a stock client on a host; it ends with the test.
func startGuest(t *testing.T, host *nettest.Host, cfg guestConfig) {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), guestVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatalf("guest: %v", err)
	}
}

func TestGuest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind natKind
		port uint16
	}{{noNAT, 51820}, {symmetric, 51820}} {
		t.Run(string(c.kind), func(t *testing.T) {
			l := newLab(t, noNAT, c.kind)
			a := l.node(0)
			a.waitNAT("none")
			host := l.sites[1].host
			key := newKey(t)
			a.set(Peer{Key: key.Public(), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.160.0.9/32"), netip.MustParsePrefix("fd5c:ae11:9::9/128")}})
			startGuest(t, host, guestConfig{Key: key, Address: overlay(9), Peer: a.config.Key.Public(), Endpoint: endpoint("203.0.113.11:7000"), Port: c.port})
			echo(t, a.host, "10.160.0.1:80")
			echo(t, a.host, "[fd5c:ae11:9::1]:80")
			exchange(t, host, "10.160.0.1:80", 1<<20, 10*time.Second)
			exchange(t, host, "[fd5c:ae11:9::1]:80", 1<<20, 10*time.Second)
			echo(t, host, "10.160.0.9:80")
			exchange(t, a.host, "10.160.0.9:80", 1<<20, 10*time.Second)
			got := a.tell(order{Stats: true}).Stats.Peers
			if len(got) != 1 || got[0].Way != Direct || got[0].Handshake.IsZero() {
				t.Errorf("got %+v, want it direct", got)
			}
			// It roams as phones do.
			f := startFlow(t, host, "10.160.0.1:80")
			f.flows(t, 5*time.Second)
			f.pause()
			if s := l.sites[1]; s.nat == nil {
				readdress(host, "wan", "203.0.113.12/24", "203.0.113.112/24", "")
			} else {
				readdress(s.nat, "wan", "203.0.113.12/24", "203.0.113.112/24", "")
			}
			f.flows(t, 10*time.Second)
			t.Logf("longest pause when it moved %v", f.pause())
			// The node comes back from a restart: the guest need not notice more than a pause.
			peer := Peer{Key: key.Public(), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.160.0.9/32"), netip.MustParsePrefix("fd5c:ae11:9::9/128")}}
			peer.Endpoints = []netip.AddrPort{a.tell(order{Stats: true}).Stats.Peers[0].Endpoint} // as the caller has kept it
			a.end(syscall.SIGKILL)
			a.start()
			a.set(peer)
			f.flows(t, 30*time.Second)
			t.Logf("longest pause when the node was restarted %v", f.pause())
		})
	}
}
