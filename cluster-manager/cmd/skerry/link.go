package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/net/proxy"

	"skerry.internal/messages/guard"
)

// address is where the broker is and who we are there.
type address struct {
	broker   *url.URL
	username string
	password string
	tls      tlsFiles
	timeout  time.Duration // for the connection, and for every answer of the broker
}

// message is one that came in.
type message struct {
	topic    string
	payload  []byte
	retained bool // it was there when we subscribed
}

// maxQueued bounds what waits to be read, in bytes: a whole cluster's statuses fit, and an output that stands still does not fill
// the memory.
const maxQueued = 256 << 20

// link is one connection to the broker. It ends once and is not made again: whoever needs another calls dial, and knows by that
// that something may have been missed.
type link struct {
	client  mqtt.Client
	timeout time.Duration
	news    chan struct{} // capacity 1: "look again"
	lost    chan struct{} // closed when the connection has ended by itself

	mu     sync.Mutex // guards what follows
	queue  []message
	queued int
	cause  error // why lost is closed
}

// errLost says that an established connection has ended; a new one may do better.
var errLost = errors.New("the connection to the broker was lost")

// dial connects and returns once the broker has let us in.
func dial(ctx context.Context, a address) (*link, error) {
	l := &link{timeout: a.timeout, news: make(chan struct{}, 1), lost: make(chan struct{})}
	opts, err := l.options(a)
	if err != nil {
		return nil, err
	}
	l.client = mqtt.NewClient(opts)
	token := l.client.Connect()
	if err := l.wait(ctx, token); err != nil {
		l.close()
		var code byte
		if connect, ok := token.(*mqtt.ConnectToken); ok {
			code = connect.ReturnCode()
		}
		return nil, unreachable(a, code, err)
	}
	return l, nil
}

func (l *link) options(a address) (*mqtt.ClientOptions, error) {
	config, err := a.tls.config()
	if err != nil {
		return nil, err
	}
	o := mqtt.NewClientOptions().AddBroker(a.broker.String())
	o.SetClientID("skerry-" + rand.Text()[:12])
	o.SetProtocolVersion(4) // said, so that the library does not try 3.1 after a refusal
	o.SetConnectTimeout(a.timeout)
	o.SetCustomOpenConnectionFn(open)
	o.SetWriteTimeout(10 * time.Second)
	o.SetKeepAlive(15 * time.Second)
	o.SetPingTimeout(10 * time.Second)
	o.SetAutoReconnect(false)
	o.SetTLSConfig(config)
	if a.username != "" {
		o.SetUsername(a.username)
		o.SetPassword(a.password)
	}
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		l.receive(message{m.Topic(), m.Payload(), m.Retained()})
	})
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) { l.fail(err) })
	return o, nil
}

// open connects to a broker as the library would, by a proxy where the environment names one, and lets only what is guarded through to it.
func open(u *url.URL, o mqtt.ClientOptions) (net.Conn, error) {
	conn, err := openBare(u, o.TLSConfig, o.ConnectTimeout)
	if err != nil {
		return nil, err
	}
	return &guard.Conn{Conn: conn}, nil
}

func openBare(u *url.URL, config *tls.Config, timeout time.Duration) (net.Conn, error) {
	if u.Scheme == "ws" || u.Scheme == "wss" {
		return mqtt.NewWebsocket(u.String(), config, timeout, nil, nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := proxy.Dial(ctx, "tcp", u.Host)
	if err != nil || u.Scheme == "tcp" || u.Scheme == "mqtt" {
		return conn, err
	}
	config = config.Clone()
	config.ServerName = u.Hostname()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// receive queues a message. It is called by the library's reader and must not wait.
func (l *link) receive(m message) {
	l.mu.Lock()
	l.queue = append(l.queue, m)
	l.queued += len(m.topic) + len(m.payload)
	full := l.queued > maxQueued
	l.mu.Unlock()
	if full {
		l.fail(fmt.Errorf("more than %d MiB came in than were read", maxQueued>>20))
	}
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// fail marks the link as ended.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return
	}
	l.cause = fmt.Errorf("%w: %w", errLost, err)
	if errors.Is(err, guard.ErrFrame) { // a new connection does no better
		l.cause = err
	}
	close(l.lost)
}

// err returns why the link has ended, nil while it has not.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// take returns what has come in, oldest first. news says when to call it again.
func (l *link) take() []message {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.queue
	l.queue, l.queued = nil, 0
	return queue
}

// close ends the connection with a DISCONNECT.
func (l *link) close() { l.client.Disconnect(100) }

// subscribe returns once the broker has granted every filter. Each is asked for by itself, see guard.Conn.
func (l *link) subscribe(ctx context.Context, filters ...string) error {
	tokens := make([]mqtt.Token, len(filters))
	for i, filter := range filters {
		tokens[i] = l.client.Subscribe(filter, 1, nil)
	}
	for i, token := range tokens {
		if err := l.wait(ctx, token); err != nil {
			return fmt.Errorf("subscribe: %w", err)
		}
		if sub, ok := token.(*mqtt.SubscribeToken); ok && sub.Result()[filters[i]] > 2 {
			return fmt.Errorf("the broker does not let this user read %s", filters[i])
		}
	}
	return nil
}

// publish returns once the broker has acknowledged the message.
func (l *link) publish(ctx context.Context, topic string, payload []byte) error {
	if err := l.wait(ctx, l.client.Publish(topic, 1, false, payload)); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}

// wait waits for the broker's answer.
func (l *link) wait(ctx context.Context, t mqtt.Token) error {
	timer := time.NewTimer(l.timeout)
	defer timer.Stop()
	var err error
	for done := t.Done(); ; {
		select {
		case <-done:
			err = t.Error()
			if _, connects := t.(*mqtt.ConnectToken); connects || err == nil {
				return cmp.Or(err, l.err())
			}
			done = nil // it has most likely ended with the connection; why that has is said next
		case <-l.lost:
			return l.err()
		case <-timer.C:
			return cmp.Or(err, fmt.Errorf("%w: no answer within %s", errLost, l.timeout))
		case <-ctx.Done():
			return interrupted(ctx, "")
		}
	}
}
