package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
)

// guestConfig reads the file of wg-quick: the values of each key.
func guestConfig(text string) map[string][]string {
	values := map[string][]string{}
	for l := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), " = "); ok {
			values[k] = strings.Split(v, ", ")
		}
	}
	return values
}

// upright is a TUN device that says nothing of itself. The library closes its socket when it hears that the link is down, as it is at first, and opens
// another when it is up: on a thread of its own, which is not on the host that the device was made on.
type upright struct {
	tun.Device
	events chan tun.Event
}

func (u upright) Events() <-chan tun.Event { return u.events }

// joinAsGuest starts a stock client on a host, the protocol's first implementation in Go, with what skerry has printed.
func joinAsGuest(t *testing.T, host *nettest.Host, config map[string][]string) {
	t.Helper()
	key := func(name string) string {
		raw, err := base64.StdEncoding.DecodeString(config[name][0])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return hex.EncodeToString(raw)
	}
	var orders strings.Builder
	fmt.Fprintf(&orders, "private_key=%s\npublic_key=%s\nendpoint=%s\npersistent_keepalive_interval=%s\n", key("PrivateKey"), key("PublicKey"), config["Endpoint"][0],
		config["PersistentKeepalive"][0])
	for _, allowed := range config["AllowedIPs"] {
		fmt.Fprintf(&orders, "allowed_ip=%s\n", allowed)
	}
	host.Do(func() {
		link, err := tun.CreateTUN("wg0", 1420)
		if err != nil {
			t.Error(err)
			return
		}
		silent := make(chan tun.Event)
		t.Cleanup(func() { close(silent) })
		go func() {
			for range link.Events() { // it would wait with them
			}
		}()
		d := device.NewDevice(upright{link, silent}, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(d.Close)
		if err := d.IpcSet(orders.String()); err != nil {
			t.Error(err)
		}
		if err := d.Up(); err != nil {
			t.Error(err)
		}
	})
	host.Run("ip", "link", "set", "wg0", "up")
	host.Address("wg0", config["Address"]...)
	for _, allowed := range config["AllowedIPs"] {
		host.Run("ip", "route", "add", allowed, "dev", "wg0")
	}
}

// A stock WireGuard client joins with what skerry prints, asks the network's name server, and reaches the copies of a service on all nodes; what a
// container sends to it arrives after kill -9 of its gateway's engine too, though it says nothing itself; removed, it reaches nothing.
func TestGuest(t *testing.T) {
	t.Parallel()
	l := newHosts(t, "a", "b", "phone")
	a, b := l.networkNode("a"), l.networkNode("b")
	l.serve("web", 2, a, b)
	l.buildSkerry()
	skerry := func(args ...string) string {
		t.Helper()
		return l.hosts["manager"].Run(l.dir+"/skerry", append([]string{"--broker", "tcp://127.0.0.1:1883", "network", "guest"}, args...)...)
	}
	config := guestConfig(skerry("add", "phone", "--gateway", string(a)))
	phone := l.hosts["phone"]
	config["PersistentKeepalive"] = []string{"0"} // it has a way in from outside, and speaks only where it must
	joinAsGuest(t, phone, config)

	names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return phone.Dial(ctx, network, net.JoinHostPort(config["DNS"][0], "53"))
	}}
	var addresses []string
	var last error
	defer func() {
		if t.Failed() {
			t.Logf("the name of web: %v %v; by %v; %s", addresses, last, config["Endpoint"], skerry("list"))
		}
	}()
	l.eventually("the name of web, with an address of each family", func() bool { // its first handshake may come before the gateway knows it
		addresses, last = names.LookupHost(t.Context(), "web.skerry.internal.")
		return len(addresses) == 2
	})
	for _, address := range addresses {
		seen := map[string]int{}
		for range 10 {
			seen[fetch(t, phone, address)]++
		}
		if len(seen) != 2 {
			t.Errorf("%s: got %v, want answers of both copies", address, seen)
		}
	}
	if list := skerry("list"); !strings.Contains(list, "phone") || !slices.ContainsFunc(strings.Fields(list), func(w string) bool { return w == string(a) }) {
		t.Errorf("list: got %s", list)
	}
	l.guestListens(phone, strings.TrimSuffix(config["Address"][0], "/32"), a)
	skerry("remove", "phone")
	l.eventually("the guest is locked out", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := phone.Dial(ctx, "tcp", net.JoinHostPort(addresses[0], "8080"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// guestListens opens a stream from a container on another node to a guest, which only listens, and lets the engine of its gateway die under it. That has to
// know by itself where the guest is: the guest sees no reason to begin a session anew.
func (l *lab) guestListens(guest *nettest.Host, address string, gateway messages.NodeID) {
	l.t.Helper()
	got := make(chan string, 3)
	listener := guest.Listen("tcp", net.JoinHostPort(address, "9000"))
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetKeepAlive(false) // it says nothing by itself
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			got <- lines.Text()
		}
	}()
	s, _ := l.job("web")
	i := s.Instances[slices.IndexFunc(s.Instances, func(i messages.InstanceReport) bool { return i.Node != gateway })]
	conn, err := l.inside(i).Dial(l.t.Context(), "tcp", net.JoinHostPort(address, "9000"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	say := func(word string) {
		l.t.Helper()
		if _, err := fmt.Fprintln(conn, word); err != nil {
			l.t.Fatal(err)
		}
		select {
		case heard := <-got:
			if heard != word {
				l.t.Errorf("the guest heard %q, want %q", heard, word)
			}
		case <-time.After(soon):
			l.t.Fatalf("the guest does not hear %q", word)
		}
	}
	say("before")
	name := strings.TrimPrefix(string(gateway), l.prefix)
	l.eventually("the engine has written where the guest is", func() bool {
		text, err := os.ReadFile(filepath.Join(l.dir, name, "values", "overlay-guests"))
		return err == nil && strings.Contains(string(text), "198.51.100.")
	})
	time.Sleep(device.KeepaliveTimeout + device.RekeyTimeout) // so long after its last packet it would begin anew, if the gateway had not answered that
	from := fileSize(l.nodes[gateway].log)
	l.kill(l.nodes[gateway])
	l.startNode(name)
	l.logLine(l.nodes[gateway], from, "overlay up")
	say("after")
}

// fetch asks a service from a host, each time by a connection of its own.
func fetch(t *testing.T, host *nettest.Host, address string) string {
	t.Helper()
	client := &http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: host.Dial}}
	resp, err := client.Get("http://" + net.JoinHostPort(address, "8080") + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
