package trust_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages/trust"
	"skerry.internal/messages/trust/trusttest"
)

// dial speaks TLS with a server that has the certificate; without one it is a server that speaks none.
func dial(t *testing.T, pair *tls.Certificate, roots *x509.CertPool, name string) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server, err := l.Accept()
		if err != nil {
			return
		}
		defer server.Close()
		if pair == nil {
			_, _ = server.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_, _ = io.Copy(io.Discard, server)
			return
		}
		_ = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{*pair}}).Handshake()
	}()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { client.Close(); l.Close(); <-ended }()
	return tls.Client(client, trust.Config(roots, name)).Handshake()
}

func TestExplain(t *testing.T) {
	right, other := trusttest.New(t), trusttest.New(t)
	plain := right.Pair(t, nil)
	future := right.Pair(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	past := right.Pair(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for _, c := range []struct {
		name string
		pair *tls.Certificate
		ca   *trusttest.Authority
		host string
		says string // "": it is trusted
	}{
		{"as it shall be", &plain, right, "127.0.0.1", ""},
		{"by name", &plain, right, "localhost", ""},
		{"another authority", &plain, other, "127.0.0.1", "of no authority that is trusted here: name the file of the right one by --manager-ca"},
		{"the system's authorities", &plain, nil, "127.0.0.1", "of no authority that is trusted here"},
		{"another name", &plain, right, "board", "for another name: use a name of the certificate in --manager, or have a certificate made for this one: tls: failed to verify certificate: x509: certificate is valid for localhost, not board"},
		{"too early", &future, right, "127.0.0.1", "not yet valid by the clock of this machine: set the clock"},
		{"too late", &past, right, "127.0.0.1", "has expired: have it renewed, or set the clock of this machine if that is ahead"},
		{"no TLS", nil, right, "127.0.0.1", "no TLS is spoken there: look at the scheme and the port of --manager"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var roots *x509.CertPool
			if c.ca != nil {
				roots = c.ca.Roots(t)
			}
			err := dial(t, c.pair, roots, c.host)
			problem, known := errors.AsType[*trust.Problem](trust.Explain(err, "--manager", "--manager-ca"))
			switch {
			case c.says == "" && err != nil:
				t.Errorf("got %v, want trust", err)
			case c.says != "" && (!known || !strings.Contains(problem.Error(), c.says) || !errors.Is(problem, problem.Err)):
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
		})
	}
	broken := errors.New("broken")
	if got := trust.Explain(broken, "", ""); got != broken { //nolint:errorlint // this very error
		t.Errorf("got %v, want it as it is", got)
	}
}

func TestRootsOfNothing(t *testing.T) {
	if _, err := trust.Roots([]byte("no PEM")); err == nil {
		t.Error("got no error")
	}
}

func TestName(t *testing.T) {
	for _, c := range [][3]string{{"192.0.2.1", "manager", "manager"}, {"fd00::1", "manager", "manager"}, {"broker", "manager", "broker"}, {"192.0.2.1", "192.0.2.9", "192.0.2.9"}} {
		if got := trust.Name(c[0], c[1]); got != c[2] {
			t.Errorf("%s of %s: got %s, want %s", c[0], c[1], got, c[2])
		}
	}
}
