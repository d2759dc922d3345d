package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"skerry.internal/broker"
	"skerry.internal/messages/trust/trusttest"
)

// bareBroker starts a broker that nothing speaks on, and lets in who calls itself anything but "stranger".
func bareBroker(t *testing.T) string { return bareBrokerWith(t, nil) }

func bareBrokerWith(t *testing.T, secured *tls.Config) string {
	t.Helper()
	b, err := broker.New(broker.Config{Listeners: []broker.Listener{{Addr: "127.0.0.1:0", TLS: secured}},
		Authenticate: func(l broker.Login) (broker.Client, error) {
			if l.Username == "stranger" && string(l.Password) != "sesame" {
				return broker.Client{}, errors.New("not this one")
			}
			return broker.Client{Role: "any"}, nil
		},
		Allow: func(_ broker.Client, a broker.Access, topic string) bool {
			return a != broker.Subscribe || topic != "events/+"
		}},
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return b.Addrs()[0].String()
}

func TestRefusedByTheBroker(t *testing.T) {
	addr := bareBroker(t)
	c := newCluster(t)
	c.skerry(t, "node", "list", "--broker", addr, "--username", "stranger").want(t, exitUnreachable, "", "does not admit this user: check --username")
	c.skerry(t, "node", "list", "--broker", "tcp://stranger:sesame@"+addr).want(t, 1, "", "no cluster manager")
	c.skerry(t, "events", "--broker", addr).want(t, 1, "", "does not let this user read events/+")
}

func TestTLS(t *testing.T) {
	ca, other := trusttest.New(t), trusttest.New(t)
	addr := bareBrokerWith(t, &tls.Config{Certificates: []tls.Certificate{ca.Pair(t, nil)}})
	c := newCluster(t)
	for _, scheme := range []string{"ssl", "mqtts", "tls"} {
		c.skerry(t, "node", "list", "--broker", scheme+"://"+addr, "--ca-file", ca.File).want(t, 1, "", "no cluster manager")
	}
	c.skerry(t, "node", "list", "--broker", "ssl://"+addr, "--ca-file", other.File).want(t, exitUnreachable, "", "of no authority that is trusted here: name the file of the right one by --ca-file")
	c.skerry(t, "node", "list", "--broker", "tcp://"+addr).want(t, exitUnreachable, "", "ssl:// where the broker speaks TLS")
}

// TestSilentServer connects to something that accepts and never answers.
func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newCluster(t)
	c.skerry(t, "node", "list", "--broker", l.Addr().String(), "--connect-timeout", "300ms").want(t, exitUnreachable, "", "check --broker")
}

func TestWebSocket(t *testing.T) {
	c := newCluster(t)
	r := c.skerry(t, "node", "list", "--broker", "ws://"+c.m.HTTPAddr())
	r.want(t, 0, "core-1", "")
	r = c.skerry(t, "node", "list", "--broker", "ws://"+c.m.HTTPAddr()+"/mqtt")
	r.want(t, 0, "core-1", "")
}

func TestBrokerURLs(t *testing.T) {
	for s, want := range map[string]string{
		"tcp://a:1":    "tcp://a:1",
		"a":            "tcp://a:1883",
		"a:5":          "tcp://a:5",
		"ssl://a":      "ssl://a:8883",
		"ws://a":       "ws://a:10100/mqtt",
		"wss://a/x":    "wss://a:10100/x",
		"mqtt://[::1]": "mqtt://[::1]:1883",
		"http://a":     "", "tcp://": "", "": "", "tcp://a b": "", "://": "",
	} {
		u, err := parseBroker(s)
		if got := ""; err == nil {
			got = u.String()
			if got != want {
				t.Errorf("%q: got %s, want %s", s, got, want)
			}
		} else if want != "" || !strings.Contains(err.Error(), "--broker") {
			t.Errorf("%q: got %v, want %s", s, err, want)
		}
	}
}
