package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialAgain    = 200 * time.Millisecond // after the first failure
	dialAgainMax = 10 * time.Second
)

var errBroken = errors.New("stream broken")

// ClientConfig is what a client needs to know.
type ClientConfig struct {
	URL        string // http or https, with its path
	PrivateKey Key    // whose public half is this node's identity
	// TLS is for https. Its ServerName is what the relay's certificate has to be for where URL has an address in place of a name. nil: the
	// authorities of the system.
	TLS *tls.Config
}

// Client is one node's side of the relay.
type Client struct {
	cfg    ClientConfig
	url    *url.URL
	log    *slog.Logger
	held   atomic.Pointer[held] // the stream; nil: there is none
	redial chan struct{}        // capacity 1
}

// held is a stream that the client holds.
type held struct {
	*queue
	local netip.Addr // of this node
}

// NewClient checks cfg and returns a client.
func NewClient(cfg ClientConfig, log *slog.Logger) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("relay %q: want http://host or https://host", cfg.URL)
	}
	if cfg.PrivateKey.IsZero() {
		return nil, errors.New("relay: no private key")
	}
	return &Client{cfg: cfg, url: u, log: log, redial: make(chan struct{}, 1)}, nil
}

// Run keeps a stream to the relay until ctx ends and gives every packet that comes in to deliver, which must not block and must not keep
// packet.
func (c *Client) Run(ctx context.Context, deliver func(from Key, packet []byte)) error {
	wait := dialAgain
	for ctx.Err() == nil {
		began := time.Now()
		err := c.hold(ctx, deliver)
		if ctx.Err() != nil {
			return nil
		}
		c.log.Debug("relay is away", "err", err)
		if time.Since(began) > dialAgain {
			if wait = dialAgain; errors.Is(err, errBroken) {
				continue // it worked, so it may at once
			}
		}
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
		case <-timer.C:
			wait = min(wait*2, dialAgainMax)
		case <-c.redial:
			wait = dialAgain
		}
		timer.Stop()
	}
	return nil
}

// Send hands a packet to the stream, copied. It never blocks: false says that the packet was dropped, for there is no stream or it is slow.
func (c *Client) Send(to Key, packet []byte) bool {
	h := c.held.Load()
	return h != nil && h.put(to, packet)
}

// Connected says whether there is a stream.
func (c *Client) Connected() bool { return c.held.Load() != nil }

// Local returns this node's address of the stream; not valid: there is no stream.
func (c *Client) Local() netip.Addr {
	if h := c.held.Load(); h != nil {
		return h.local
	}
	return netip.Addr{}
}

// Redial gives up the stream and dials anew at once, for when this node's address has changed.
func (c *Client) Redial() {
	select {
	case c.redial <- struct{}{}:
	default:
	}
}

// hold is inside a stream.
func (c *Client) hold(ctx context.Context, deliver func(Key, []byte)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		select {
		case <-c.redial:
			c.Redial() // Run shall not wait
			cancel(errors.New("dial anew"))
		case <-ctx.Done():
		}
	})
	conn, from, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	q := newQueue()
	wg.Go(func() {
		if writeQueue(ctx, conn, q) != nil {
			_ = conn.Close()
		}
	})
	c.log.Debug("relay is there")
	c.held.Store(&held{q, conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()})
	defer q.close()
	defer c.held.Store(nil)
	r := reader{from: from, fill: alive(conn)}
	for {
		key, packet, err := r.next()
		if err != nil {
			return errors.Join(errBroken, context.Cause(ctx), err)
		}
		if !key.IsZero() {
			deliver(key, packet)
		}
	}
}

// dial opens a stream and proves who we are.
func (c *Client) dial(ctx context.Context) (_ net.Conn, _ io.Reader, err error) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url.String(), nil)
	if err != nil {
		return nil, nil, fmt.Errorf("relay: %w", err)
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", Protocol)
	if err := r.Write(conn); err != nil {
		return nil, nil, fmt.Errorf("relay: %w", err)
	}
	from := bufio.NewReaderSize(conn, readSmall)
	resp, err := http.ReadResponse(from, r)
	if err != nil {
		return nil, nil, fmt.Errorf("relay: %w", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, fmt.Errorf("relay says %s", resp.Status)
	}
	question, err := readKey(from)
	if err != nil {
		return nil, nil, fmt.Errorf("relay: %w", err)
	}
	given, err := answer(c.cfg.PrivateKey, question)
	if err != nil {
		return nil, nil, err
	}
	if _, err := conn.Write(given); err != nil {
		return nil, nil, fmt.Errorf("relay: %w", err)
	}
	if verdict, err := from.ReadByte(); err != nil || verdict != accepted {
		return nil, nil, errors.Join(errors.New("relay does not know this node"), err)
	}
	return conn, from, nil
}

func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	port := c.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[c.url.Scheme]
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(c.url.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if c.url.Scheme == "http" {
		return conn, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.cfg.TLS != nil {
		cfg = c.cfg.TLS.Clone()
	}
	if _, err := netip.ParseAddr(c.url.Hostname()); err != nil || cfg.ServerName == "" {
		cfg.ServerName = c.url.Hostname()
	}
	cfg.NextProtos = []string{"http/1.1"} // HTTP/2 has no Upgrade
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("relay: %w", err), conn.Close())
	}
	return secured, nil
}
