// Package trust is how a client of a cluster manager, a node or the operator's command, knows by TLS that it speaks with the right one:
// which authorities it trusts, and in which words it says why it does not. It opens no connection.
package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Roots reads authorities in PEM form.
func Roots(pem []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("holds no certificate in PEM form")
	}
	return roots, nil
}

// Config returns what a client's TLS is set up with. Where roots is nil the authorities of the system are trusted. The name is what the certificate has to be for, see Name.
func Config(roots *x509.CertPool, name string) *tls.Config {
	return &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12}
}

// Name returns what the certificate of a host that the manager has named has to be for: that host, but where it is an address the name
// by which the manager was dialled. A manager knows the addresses that it listens at, not the names that its certificate holds.
func Name(host, manager string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return manager
	}
	return host
}

// Problem is why the other end is not trusted.
type Problem struct {
	Reason string // with what to do; the same from one try to the next
	Err    error  // crypto/tls's
}

// Error says all that is known.
func (p *Problem) Error() string { return p.Reason + ": " + p.Err.Error() }

// Unwrap returns crypto/tls's error.
func (p *Problem) Unwrap() error { return p.Err }

// Explain makes a Problem of what crypto/tls says of a certificate, and returns every other error as it is. The flags, for the advice, are
// the program's own for where the manager is and for the file of the authorities.
func Explain(err error, address, ca string) error {
	var reason string
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired {
		reason = "the certificate there has expired: have it renewed, or set the clock of this machine if that is ahead"
		if time.Now().Before(bad.Cert.NotBefore) {
			reason = "the certificate there is not yet valid by the clock of this machine: set the clock"
		}
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		reason = fmt.Sprintf("the certificate there is of no authority that is trusted here: name the file of the right one by %s", ca)
	} else if _, ok := errors.AsType[x509.HostnameError](err); ok {
		reason = fmt.Sprintf("the certificate there is for another name: use a name of the certificate in %s, or have a certificate made for this one", address)
	} else if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		reason = fmt.Sprintf("no TLS is spoken there: look at the scheme and the port of %s", address)
	}
	if reason == "" {
		return err
	}
	return &Problem{Reason: reason, Err: err}
}
