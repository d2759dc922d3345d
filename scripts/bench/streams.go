package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // on the default mux, which serves at --debug only
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/hashicorp/yamux"

	clustermanager "skerry.internal/cluster-manager/manager"
)

// carriers is how many TCP connections carry the streams to one address.
const carriers = 4

// carrierConfig is for two ends on loopback, where a process that ends says so: what takes long is a busy machine, and no reason to give up.
func carrierConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout, c.StreamOpenTimeout = patience, patience
	return c
}

// streams are the TCP connections, by the address they lead to, that carry all others; nil: there are none, each connection is one of TCP.
type streams map[string][]*yamux.Session

// open opens the connection of the i-th node to an address.
func (s streams) open(addr string, i int) (net.Conn, error) {
	sessions := s[addr]
	if len(sessions) == 0 {
		return nil, fmt.Errorf("no connection carries streams to %s", addr)
	}
	return sessions[i%len(sessions)].Open()
}

// carry has an MQTT client open its connections as streams, where there are any.
func (s streams) carry(opts *mqtt.ClientOptions, i int) *mqtt.ClientOptions {
	if s == nil {
		return opts
	}
	return opts.SetCustomOpenConnectionFn(func(broker *url.URL, _ mqtt.ClientOptions) (net.Conn, error) { return s.open(broker.Host, i) })
}

// streamManager starts a manager to which all connections are streams: this program itself, see serveManager.
func (b *bench) streamManager(ctx context.Context) (*manager, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := b.newManager(self)
	m.mode = []string{serveMode}
	if err := b.restart(ctx, m); err != nil {
		return nil, err
	}
	return m, b.openStreams(ctx, m, m.http, m.mqtt)
}

// openStreams opens the connections that carry the streams to the addresses of a manager.
func (b *bench) openStreams(ctx context.Context, m *manager, addrs ...string) error {
	m.streams = streams{}
	for _, addr := range addrs {
		for range carriers {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			session, err := yamux.Client(conn, carrierConfig())
			if err != nil {
				return err
			}
			b.closers = append(b.closers, func() { _ = session.Close() })
			m.streams[addr] = append(m.streams[addr], session)
		}
	}
	return nil
}

// serveMode is the first argument by which bench starts itself as a manager.
const serveMode = "serve-manager"

// serveManager runs the cluster manager's own package with connections that are streams. It takes those flags of the real program that bench
// gives; what they do not say is as there.
func serveManager(ctx context.Context, args []string, stderr io.Writer) error {
	cfg := clustermanager.Config{LostAfter: 30 * time.Second, TelemetryInterval: fleetTelemetry, Version: "bench", Listen: listenStreams,
		Network: netip.MustParsePrefix("10.160.0.0/12"), Network6: netip.MustParsePrefix("fd5c:ae11:9::/48")}
	fs := flag.NewFlagSet("bench "+serveMode, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&cfg.Cluster, "cluster", "", "name of the cluster")
	fs.StringVar(&cfg.HTTP, "http", "", "address of the HTTP server")
	fs.StringVar(&cfg.MQTT, "mqtt", "", "address of the MQTT broker")
	fs.StringVar(&cfg.Data, "data", "", "directory of the manager's state")
	debug := fs.String("debug", "", "address at which Go's profiles are served; empty: nowhere")
	if err := fs.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	if *debug != "" {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", *debug)
		if err != nil {
			return err
		}
		server := &http.Server{ReadHeaderTimeout: 5 * time.Second}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer func() { _ = server.Close() }()
		wg.Go(func() { _ = server.Serve(l) })
		log.Info("profiles are served", "addr", l.Addr().String())
	}
	m, err := clustermanager.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	return m.Run(ctx)
}

// streamListener accepts the streams of the TCP connections that the listener in it accepts.
type streamListener struct {
	net.Listener
	accepted chan net.Conn
	ended    chan struct{} // closed once nothing is accepted any more
}

// listenStreams makes a streamListener; it is a clustermanager.Config's Listen.
func listenStreams(ctx context.Context, network, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	inner, err := lc.Listen(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l := &streamListener{Listener: inner, accepted: make(chan net.Conn), ended: make(chan struct{})}
	go l.serve()
	return l, nil
}

// Accept waits for the next stream.
func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Close ends the TCP connections too, and with them their streams.
func (l *streamListener) Close() error {
	err := l.Listener.Close()
	<-l.ended
	return err
}

// serve takes TCP connections until the listener is closed.
func (l *streamListener) serve() {
	defer close(l.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return
		}
		session, err := yamux.Server(conn, carrierConfig())
		if err != nil {
			_ = conn.Close()
			return
		}
		defer func() { _ = session.Close() }() // they are few, and end with the listener
		wg.Go(func() { l.take(session) })
	}
}

// take hands on the streams of one TCP connection until that ends.
func (l *streamListener) take(session *yamux.Session) {
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		select {
		case l.accepted <- stream:
		case <-session.CloseChan():
			return
		}
	}
}
