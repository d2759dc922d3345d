package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"skerry.internal/messages/trust"
)

// tlsFiles name what a connection with TLS is checked by.
type tlsFiles struct{ ca, cert, key string }

// config returns nil where nothing is named: then the system's authorities hold.
func (f tlsFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, usagef("--ca-file: %w", err)
		}
		if c.RootCAs, err = trust.Roots(pem); err != nil {
			return nil, usagef("--ca-file %s: %w", f.ca, err)
		}
	}
	if f.cert == "" && f.key == "" {
		return c, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, usagef("--cert-file and --key-file: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// schemes are the forms of a broker's URL, with the port that stands for each where none is given.
func schemes() map[string]string {
	return map[string]string{"tcp": "1883", "mqtt": "1883", "ssl": "8883", "tls": "8883", "mqtts": "8883", "ws": "10100", "wss": "10100"}
}

// parseBroker reads a broker's URL; host:port alone means tcp.
func parseBroker(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "tcp://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, usagef("--broker: %w", err)
	}
	port, known := schemes()[u.Scheme]
	if !known {
		return nil, usagef("--broker %s: %s is no scheme of MQTT; want tcp://, ssl://, ws:// or wss://", u.Redacted(), u.Scheme)
	}
	_, notIP := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "" || notIP != nil && strings.ContainsAny(u.Hostname(), ":[]") { // a second port, or brackets, which url.Parse lets through
		return nil, usagef("--broker %s: want a host, such as tcp://127.0.0.1:1883", u.Redacted())
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	if strings.HasPrefix(u.Scheme, "ws") && (u.Path == "" || u.Path == "/") {
		u.Path = "/mqtt"
	}
	if _, err := url.Parse(u.String()); err != nil { // a zone that is written in no form that is read
		return nil, usagef("--broker: %w", err)
	}
	return u, nil
}

// newAddress puts together what the flags say.
func newAddress(broker, username, passwordFile string, files tlsFiles, timeout time.Duration) (address, error) {
	u, err := parseBroker(broker)
	if err != nil {
		return address{}, err
	}
	if timeout <= 0 {
		return address{}, usagef("--connect-timeout %s: want more than 0", timeout)
	}
	a := address{broker: u, username: username, tls: files, timeout: timeout}
	if u.User != nil { // the library would let it override the flags
		if a.username == "" {
			a.username = u.User.Username()
			a.password, _ = u.User.Password()
		}
		u.User = nil
	}
	if passwordFile == "" {
		return a, nil
	}
	if a.username == "" {
		return address{}, usagef("--password-file needs --username")
	}
	b, err := os.ReadFile(passwordFile)
	if err != nil {
		return address{}, usagef("--password-file: %w", err)
	}
	a.password = strings.TrimRight(string(b), "\r\n")
	return a, nil
}

// unreachable says what to check when the broker cannot be reached.
func unreachable(a address, returnCode byte, err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	err = trust.Explain(err, "--broker", "--ca-file")
	if p, ok := errors.AsType[*trust.Problem](err); ok {
		return &failure{exitUnreachable, fmt.Errorf("no connection to the broker at %s: %w", a.broker.Redacted(), p)}
	}
	advice := "check --broker (or SKERRY_BROKER; ssl:// where the broker speaks TLS), and that cluster-manager runs there and is not kept off by a firewall"
	if returnCode >= 1 && returnCode <= 5 { // the codes of a CONNACK of MQTT 3.1.1; the library adds its own above them
		advice = "the broker answers but does not admit this user: check --username and --password-file; from other hosts a manager admits only clients with a right to it"
	}
	return &failure{exitUnreachable, fmt.Errorf("no connection to the broker at %s: %w\n%s", a.broker.Redacted(), plain(err), advice)}
}

// plain drops the library's own word in front of an error of the network.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	return err
}
