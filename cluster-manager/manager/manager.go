// Package manager wires the parts of a cluster manager: the store, the loop that decides, the MQTT broker in the same process, and
// the HTTP server with /init, /mqtt, /relay and /healthz, and the UDP reflectors. It holds no logic of its own beyond who may say what (rights.go).
package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"skerry.internal/broker"
	"skerry.internal/cluster-manager/internal/dispatch"
	"skerry.internal/cluster-manager/internal/register"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
	"skerry.internal/netmanager/relay"
)

// Config is what a Manager is told.
type Config struct {
	Cluster           string            // name of the cluster, a DNS label
	HTTP              string            // address of the HTTP server; port 0 takes a free one
	MQTT              string            // address of the MQTT broker; port 0 takes a free one
	Data              string            // directory of the state
	Core              []messages.NodeID // nodes that are expected always
	LostAfter         time.Duration     // how long a node may be away until its instances are replaced
	TelemetryInterval time.Duration
	Insecure          bool         // clients from other hosts may command without a name; for a lab
	AllowLegacy       bool         // EdgeIO's engines may register
	Network           netip.Prefix // the overlay's addresses; the zero one: no overlay
	STUN              []string     // addresses of the UDP reflectors, at most two; none: the HTTP server's and the next port
	Network6          netip.Prefix // those of IPv6, beside them
	Version           string
	// TLSCert and TLSKey are files in PEM form: the HTTP server then speaks HTTPS alone, and MQTT over TLS is served at MQTTS beside MQTT
	// without. Empty: no TLS. They are read again when they have changed.
	TLSCert, TLSKey string
	MQTTS           string // address of MQTT over TLS; port 0 takes a free one
	Debug           string // address of the loopback at which the program serves Go's profiles; empty: nowhere
	// Listen binds HTTP, MQTT and MQTTS, as net.ListenConfig.Listen does, for a program that gives connections of its own kind. They and the
	// listener have the addresses of TCP: who comes from this host may command, and nodes are told where the listener is. nil: TCP.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)
}

// Validate reports all that is wrong with the configuration.
func (c Config) Validate() error {
	errs := []error{messages.CheckName("--cluster", c.Cluster)}
	for _, id := range c.Core {
		errs = append(errs, messages.CheckName("--core", string(id)))
	}
	if c.LostAfter < time.Second {
		errs = append(errs, fmt.Errorf("--lost-after %s: want at least 1s, the least that tells a link that flaps from one that is gone", c.LostAfter))
	}
	if c.TelemetryInterval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("--telemetry-interval %s: want at least 100ms", c.TelemetryInterval))
	}
	if c.Network.IsValid() {
		if _, err := ipam.NewPlan(c.Network, c.Network6); err != nil {
			errs = append(errs, fmt.Errorf("--network, --network6: %w", err))
		}
	}
	if len(c.STUN) > 2 {
		errs = append(errs, errors.New("--stun: want one or two addresses"))
	}
	for _, addr := range c.STUN {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			errs = append(errs, fmt.Errorf("--stun %q: want host:port", addr))
		}
	}
	if c.Data == "" {
		errs = append(errs, errors.New("--data: missing"))
	}
	addrs := map[string]string{"--http": c.HTTP, "--mqtt": c.MQTT}
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		errs = append(errs, errors.New("--tls-cert, --tls-key: want both, the certificate and its private key, or neither"))
	case c.TLSCert != "":
		addrs["--mqtts"] = c.MQTTS
	case c.MQTTS != "":
		errs = append(errs, errors.New("--mqtts: needs --tls-cert and --tls-key"))
	}
	for flag, addr := range addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: want host:port", flag, addr))
		}
	}
	return errors.Join(errs...)
}

// Manager is one cluster manager. It is made by New and Run once.
type Manager struct {
	cfg       Config
	log       *slog.Logger
	store     store.Store
	loop      *dispatch.Loop
	broker    *broker.Broker
	register  *register.Server
	listener  net.Listener
	cert      *certificate     // nil: no TLS
	relay     *relay.Server    // nil: no overlay
	reflector *relay.Reflector // nil: no overlay, or its ports are taken
	rights    *rights
	warned    warnings
	handling  context.Context //nolint:containedctx // ends with Run: hooks of the broker have no context of their own
	end       context.CancelFunc
}

// New checks the configuration, opens the state and binds the listeners. It starts nothing; a Manager that was made must be Run,
// also to release what it holds.
func New(ctx context.Context, cfg Config, log *slog.Logger) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := store.OpenBolt(cfg.Data, log)
	if err != nil {
		return nil, err
	}
	return newManager(ctx, cfg, s, log)
}

// newManager is New with a store that is open; it is closed in any case.
func newManager(ctx context.Context, cfg Config, s store.Store, log *slog.Logger) (*Manager, error) {
	m := &Manager{cfg: cfg, log: log, store: s, rights: newRights(cfg.Insecure)}
	m.handling, m.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, m.release())
	}
	return m, nil
}

func (m *Manager) open(ctx context.Context) error {
	listen := m.cfg.Listen
	if listen == nil {
		listen = new(net.ListenConfig).Listen
	}
	var err error
	listeners := []broker.Listener{{Addr: m.cfg.MQTT}}
	if m.cfg.TLSCert != "" {
		if m.cert, err = openCertificate(m.cfg.TLSCert, m.cfg.TLSKey, m.log); err != nil {
			return err
		}
		listeners = append(listeners, broker.Listener{Addr: m.cfg.MQTTS, TLS: m.cert.config()})
	}
	if m.listener, err = listen(ctx, "tcp", m.cfg.HTTP); err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	m.broker, err = broker.New(broker.Config{
		Listeners: listeners, Listen: listen,
		MaxPacket: messages.MaxPacket,
		// The statuses of 10,000 nodes and 50,000 instances take about 80 MiB. Clients retain nothing but nodes their presence.
		MaxRetained: 1 << 30, MaxClients: maxClients,
		Authenticate: m.authenticate, Allow: m.rights.allow, OnPublish: m.onPublish, OnDisconnect: m.onDisconnect,
	}, m.log)
	if err != nil {
		return fmt.Errorf("--mqtt, --mqtts: %w", err)
	}
	if err := m.openNetwork(); err != nil {
		return err
	}
	plain, port := brokerURL("tcp", m.MQTTAddr())
	brokers := []string{plain}
	if m.cert != nil { // a node that has registered by TLS shall not show its password without
		secured, _ := brokerURL("tls", m.MQTTSAddr())
		brokers = []string{secured}
	}
	m.loop, err = dispatch.NewLoop(ctx, dispatch.Config{Cluster: m.cfg.Cluster, Version: m.cfg.Version, Core: m.cfg.Core, LostAfter: m.cfg.LostAfter,
		TelemetryInterval: m.cfg.TelemetryInterval, Brokers: brokers, BrokerPort: port, Network: m.network()}, m.store, m.publish, m.log)
	if err != nil {
		return err
	}
	m.register, err = register.New(register.Config{Cluster: m.cfg.Cluster, AllowLegacy: m.cfg.AllowLegacy, Admit: m.admit}, m.log)
	return err
}

// brokerURL returns the URL that nodes are given. Where the broker listens on every address, the node takes the host that it dialled.
func brokerURL(scheme, addr string) (brokerURL, port string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return scheme + "://" + addr, ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = ""
	}
	return (&url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}).String(), port
}

// release gives back what New has taken, for a New that failed.
func (m *Manager) release() error {
	m.end()
	errs := []error{m.store.Close()}
	if m.listener != nil {
		errs = append(errs, m.listener.Close())
	}
	if m.broker != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		errs = append(errs, m.broker.Run(ended))
		if m.reflector != nil {
			errs = append(errs, m.reflector.Run(ended))
		}
	}
	return errors.Join(errs...)
}

// HTTPAddr returns the address of the HTTP server.
func (m *Manager) HTTPAddr() string { return m.listener.Addr().String() }

// MQTTAddr returns the address of the broker.
func (m *Manager) MQTTAddr() string { return m.broker.Addrs()[0].String() }

// MQTTSAddr returns its address for TLS, "" where there is none.
func (m *Manager) MQTTSAddr() string {
	if m.cert == nil {
		return ""
	}
	return m.broker.Addrs()[1].String()
}

// Run serves until ctx ends and returns once all it started has ended. No workload is touched by its end.
func (m *Manager) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, m.store.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer m.end()
	m.log.Info("listening", "http", m.HTTPAddr(), "mqtt", m.MQTTAddr(), "mqtts", m.MQTTSAddr(), "stun", strings.Join(m.stunAddrs(), ","), "cluster", m.cfg.Cluster, "version", m.cfg.Version)
	m.warnOpen()
	server := &http.Server{Handler: m.mux(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug)}
	var wg sync.WaitGroup
	failed := make(chan error, 6)
	run := func(part string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				failed <- fmt.Errorf("%s: %w", part, err)
				cancel()
			}
		})
	}
	// The loop outlives the broker: wills that are sent at the end still reach it.
	loopCtx, endLoop := context.WithCancel(context.WithoutCancel(ctx))
	defer endLoop()
	var loop sync.WaitGroup
	loop.Go(func() {
		if err := m.loop.Run(loopCtx); err != nil {
			failed <- err
			m.end() // a hook that waited for it would keep its connection, and that the broker, from ending
			cancel()
		}
	})
	<-m.loop.Opened() // nobody shall connect and find nothing retained
	run("broker", m.broker.Run)
	run("register", m.register.Run)
	if m.relay != nil {
		run("relay", m.relay.Run)
	}
	if m.reflector != nil {
		run("reflector", m.reflector.Run)
	}
	run("http", func(ctx context.Context) error { return serve(ctx, server, m.secured()) })
	wg.Wait()
	m.end() // hooks that still wait for the loop
	endLoop()
	loop.Wait()
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	m.log.Info("ended")
	return err
}

// maxClients is how many clients may be connected: the nodes above all.
const maxClients = 1 << 16

// shutdownTime is how long requests under way may take when the server ends.
const shutdownTime = 2 * time.Second

func serve(ctx context.Context, server *http.Server, listener net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		err = server.Close() // connections that do not end by themselves
		<-ended
		return err
	}
	<-ended
	return nil
}

// secured returns the HTTP server's listener, with TLS where there is a certificate. A handshake may take as long as a request's header; HTTP/2
// is not offered, as it has no Upgrade for /relay and the WebSockets.
func (m *Manager) secured() net.Listener {
	if m.cert == nil {
		return m.listener
	}
	return tls.NewListener(m.listener, m.cert.config("http/1.1"))
}

func (m *Manager) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", m.register)
	mux.Handle("/mqtt", m.broker.WebSocket(m.sameOrigin))
	if m.relay != nil {
		mux.Handle(relay.Path, m.relay)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// sameOrigin lets in pages that this server has served, and programs, which send no Origin. Where being on this host gives the right to
// command, a name that somebody else's DNS leads here is not enough: his page would command from this host's browser.
func (m *Manager) sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host != r.Host {
		return false
	}
	return m.cfg.Insecure || u.Hostname() == "localhost" || net.ParseIP(u.Hostname()) != nil
}

// warnOpen says on every start what is open to other hosts.
func (m *Manager) warnOpen() {
	if m.cfg.Insecure {
		m.log.Warn("insecure: any client that reaches the broker may command this cluster", "mqtt", m.MQTTAddr(), "mqtts", m.MQTTSAddr())
	}
	host, _, err := net.SplitHostPort(m.MQTTAddr())
	if ip := net.ParseIP(host); err == nil && ip != nil && !ip.IsLoopback() {
		m.log.Warn("mqtt is open to other hosts without TLS: use it inside a network that you trust, or --mqtts", "mqtt", m.MQTTAddr())
	}
}

// publish sends what the loop has decided.
func (m *Manager) publish(msg dispatch.Message) {
	if msg.EndRelay != "" {
		if key, err := relay.ParseKey(msg.EndRelay); err == nil && m.relay != nil {
			m.relay.Disconnect(key)
		}
		return
	}
	if msg.Disconnect != "" {
		m.broker.Disconnect(nodeClient + string(msg.Disconnect))
		return
	}
	err := m.broker.Publish(broker.Message{Topic: msg.Topic, Payload: msg.Payload, QoS: msg.QoS, Retain: msg.Retain, CorrelationData: msg.Correlation})
	if err != nil && !errors.Is(err, broker.ErrClosed) {
		m.log.Error("message not published", "topic", msg.Topic, "bytes", strconv.Itoa(len(msg.Payload)), "err", err)
	}
}

// admit takes a registration that came over /init.
func (m *Manager) admit(ctx context.Context, info messages.NodeInfo, o register.Origin) (messages.Welcome, error) {
	if o.Legacy {
		info.Key = "edgeio:" + string(info.Name) // it has none: its name is all there is
	}
	return m.loop.Register(ctx, info, o.Proved)
}
