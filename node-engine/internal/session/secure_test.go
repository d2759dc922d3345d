package session

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skerry.internal/messages/trust"
	"skerry.internal/messages/trust/trusttest"
	"skerry.internal/node-engine/internal/session/sessiontest"
)

// A node with the authority of its manager registers and holds its session over TLS. Until the certificate is good it says why not, and
// tries again.
func TestSessionOverTLS(t *testing.T) {
	ca, dir := trusttest.New(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.Write(t, cert, key, nil)
	broker := sessiontest.NewBroker(t, "allow_anonymous true", "certfile "+cert, "keyfile "+key)
	var pair atomic.Pointer[tls.Certificate]
	show := func(change func(*x509.Certificate)) { p := ca.Pair(t, change); pair.Store(&p) }
	show(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) })
	m := sessiontest.NewSecureManager(t, func() tls.Certificate { return *pair.Load() }, sessiontest.Welcomed("tls://"+broker.Addr()))
	n := newNode(t, m.URL, func(c *Config) { c.Roots = ca.Roots(t) })
	n.start(t)
	sessiontest.Eventually(t, "it names its clock", func() bool { return n.log.has("not yet valid by the clock of this machine: set the clock") })
	show(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	sessiontest.Eventually(t, "it says what has expired", func() bool { return n.log.has("the certificate there has expired") })
	show(func(c *x509.Certificate) { c.IPAddresses = nil })
	sessiontest.Eventually(t, "it says that the name is another", func() bool {
		return n.log.has("the certificate there is for another name: use a name of the certificate in --manager")
	})
	show(nil)
	sessiontest.Eventually(t, "it is in session", func() bool { return n.log.has(`msg="in session" node_id=n1`) })
}

// Neither the manager nor the broker is trusted by an authority that nobody has named.
func TestUntrusted(t *testing.T) {
	ca, other, dir := trusttest.New(t), trusttest.New(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	other.Write(t, cert, key, nil)
	broker := sessiontest.NewBroker(t, "allow_anonymous true", "certfile "+cert, "keyfile "+key)
	good := ca.Pair(t, nil)
	m := sessiontest.NewSecureManager(t, func() tls.Certificate { return good }, sessiontest.Welcomed("tls://"+broker.Addr()))
	for _, roots := range []*x509.CertPool{nil, other.Roots(t)} {
		_, err := newNode(t, m.URL, func(c *Config) { c.Roots = roots }).register(t.Context())
		if p, ok := errors.AsType[*trust.Problem](err); !ok || !strings.Contains(p.Reason, "by --manager-ca") {
			t.Errorf("manager: got %v", err)
		}
	}
	n := newNode(t, m.URL, func(c *Config) { c.Roots = ca.Roots(t) })
	_, err := n.runSession(t.Context())
	if p, ok := errors.AsType[*trust.Problem](err); !ok || !strings.Contains(p.Reason, "by --manager-ca") {
		t.Errorf("broker: got %v", err)
	}
	plain := strings.Replace(m.URL, "https", "http", 1)
	if _, err := newNode(t, plain, nil).register(t.Context()); err == nil || !strings.Contains(err.Error(), "HTTP request to an HTTPS server") {
		t.Errorf("http to a server of https: got %v", err)
	}
}
