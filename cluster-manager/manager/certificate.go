package manager

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is the manager's own, with its key. A pair that was renewed on disk is taken up by the next handshake, so that a renewal
// needs no restart.
type certificate struct {
	paths [2]string // of the certificate with its chain, and of the key
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	pair   *tls.Certificate
	files  [2]os.FileInfo // as they were when they were read last, also where they were of no use
	looked time.Time
}

// lookEvery bounds how often handshakes look at the files.
const lookEvery = time.Second

// openCertificate reads the pair for the first time.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{paths: [2]string{certFile, keyFile}, log: log}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.readLocked(); err != nil {
		return nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %w: want a certificate and the private key that it was made for, both in PEM form", certFile, keyFile, err)
	}
	return c, nil
}

// config returns what a listener's TLS is set up with.
func (c *certificate) config(protocols ...string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get, NextProtos: protocols}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= lookEvery && c.changedLocked() {
		if err := c.readLocked(); err != nil {
			c.log.Error("renewed certificate of no use: the one before stays", "expires", c.pair.Leaf.NotAfter, "err", err)
		} else {
			c.log.Info("renewed certificate taken up", "expires", c.pair.Leaf.NotAfter)
		}
	}
	return c.pair, nil
}

// changedLocked reports whether one of the files is another than the one that was read last.
func (c *certificate) changedLocked() bool {
	c.looked = time.Now()
	for i, now := range stat(c.paths) {
		before := c.files[i]
		switch {
		case now == nil || before == nil:
			if now != nil || before != nil {
				return true
			}
		case !os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) || now.Size() != before.Size():
			return true
		}
	}
	return false
}

// readLocked reads the pair. What changes meanwhile is seen the next time, as the files were looked at before.
func (c *certificate) readLocked() error {
	c.files, c.looked = stat(c.paths), time.Now()
	pair, err := tls.LoadX509KeyPair(c.paths[0], c.paths[1])
	if err != nil {
		return err
	}
	c.pair = &pair
	return nil
}

// stat leaves nil what cannot be looked at.
func stat(paths [2]string) (files [2]os.FileInfo) {
	for i, path := range paths {
		if info, err := os.Stat(path); err == nil {
			files[i] = info
		}
	}
	return files
}
