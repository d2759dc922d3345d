package netmanager

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"skerry.internal/netmanager/dns"
)

// namesEvery is how often it is tried again to answer names.
const namesEvery = 5 * time.Second

// names is the name server of a plane, which carries packets without it too: port 53 may be somebody else's.
type names struct {
	open func(context.Context) (*dns.Server, error)
	log  *slog.Logger

	mu     sync.Mutex  // guards what follows
	server *dns.Server // nil: none
	table  *dns.Table  // nil: none yet
	err    error       // why there is no server
}

// take binds the sockets. That they are not to be had is no error here, but kept.
func (m *names) take(ctx context.Context) error {
	server, err := m.open(ctx)
	if err != nil && !errors.As(err, new(*net.OpError)) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && m.err == nil {
		m.log.Warn("names are not answered", "err", err)
	}
	if m.server, m.err = server, err; server != nil && m.table != nil {
		server.SetTable(m.table)
	}
	return nil
}

// present returns the server, nil where there is none, and why.
func (m *names) present() (*dns.Server, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.server, m.err
}

func (m *names) setTable(t *dns.Table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.table = t; m.server != nil {
		m.server.SetTable(t)
	}
}

// run answers names until ctx ends.
func (m *names) run(ctx context.Context) {
	for ctx.Err() == nil {
		if server, _ := m.present(); server != nil {
			err := server.Run(ctx)
			if ctx.Err() != nil {
				return
			}
			m.log.Warn("names are not answered", "err", err)
			m.mu.Lock()
			m.server, m.err = nil, err
			m.mu.Unlock()
		}
		select {
		case <-time.After(namesEvery):
		case <-ctx.Done():
			return
		}
		if err := m.take(ctx); err != nil {
			m.log.Error("names are not answered", "err", err)
			return
		}
	}
	if err := m.close(); err != nil { // the end came before a server was run
		m.log.Warn("sockets of the name server not closed", "err", err)
	}
}

// close gives back the sockets of a server that is never run.
func (m *names) close() error {
	server, _ := m.present()
	if server == nil {
		return nil
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return server.Run(ended)
}
