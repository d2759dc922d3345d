package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"skerry.internal/messages"
	"skerry.internal/messages/guard"
	"skerry.internal/messages/trust"
)

// connectTime bounds a connection to one broker, CONNACK included.
const connectTime = 10 * time.Second

// network is the Transport of a running node: Socket.IO at /init, MQTT over TCP or TLS.
type network struct {
	manager *url.URL
	roots   *x509.CertPool // nil: those of the system
}

var _ Transport = network{}

// Register goes through the four steps of a registration: connect, Hello, NodeInfo, Welcome.
func (n network) Register(ctx context.Context, introduce func(messages.Hello) *messages.NodeInfo) (messages.Welcome, error) {
	var hello messages.Hello
	var welcome messages.Welcome
	conn, err := n.dialInit(ctx)
	if err != nil {
		return welcome, err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost with it
	if err := expect(conn, messages.HelloEvent, &hello); err != nil {
		return welcome, err
	}
	if err := conn.emit(messages.NodeInfoEvent, introduce(hello)); err != nil {
		return welcome, fmt.Errorf("send node info: %w", err)
	}
	return welcome, expect(conn, messages.WelcomeEvent, &welcome)
}

// pahoConn is a Connection of paho's. Its own reconnecting is off: after a loss its tokens do not say whether a message arrived, and
// its back-off knows neither registrations nor the end of the program.
type pahoConn struct {
	client mqtt.Client
	conn   net.Conn
	lost   chan struct{} // closed when the connection is gone; cause is set before
	cause  error
}

// Connect opens one connection.
func (n network) Connect(ctx context.Context, broker *url.URL, login Login, receive func(topic string, payload []byte)) (Connection, error) {
	c := &pahoConn{lost: make(chan struct{})}
	opts := options(login, c).AddBroker(broker.String())
	opts.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { receive(m.Topic(), m.Payload()) })
	unwatch := func() bool { return true }
	opts.SetCustomOpenConnectionFn(func(u *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
		conn, err := n.dialBroker(ctx, u, login.CA)
		if err != nil {
			return nil, err
		}
		unwatch = context.AfterFunc(ctx, func() { conn.Close() })
		c.conn = &guard.Conn{Conn: conn}
		return c.conn, nil
	})
	c.client = mqtt.NewClient(opts)
	token := c.client.Connect()
	<-token.Done() // bounded by ctx and paho's deadline on the connection
	unwatch()
	if err := explainConnect(token.Error()); err != nil {
		return nil, err
	}
	return c, nil
}

// options are the same for every broker: a clean session, the last will, and none of paho's own loops.
func options(l Login, c *pahoConn) *mqtt.ClientOptions {
	opts := mqtt.NewClientOptions().
		SetClientID("node-"+string(l.ID)).
		SetUsername(l.Username).SetPassword(l.Password).
		SetProtocolVersion(4).SetCleanSession(true).SetOrderMatters(true).
		SetBinaryWill(topic(l.ID, messages.PresenceTopic), l.Will, 1, true).
		SetKeepAlive(l.KeepAlive).SetPingTimeout(min(connectTime, l.KeepAlive)).
		SetConnectTimeout(connectTime).SetWriteTimeout(writeTime).
		SetAutoReconnect(false).SetConnectRetry(false)
	return opts.SetConnectionLostHandler(func(_ mqtt.Client, err error) {
		c.cause = err
		close(c.lost)
	})
}

// dialBroker connects to a broker. The Welcome's own authorities go before those that the operator has named.
func (n network) dialBroker(ctx context.Context, broker *url.URL, ca string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if ca != "" {
		var err error
		if n.roots, err = trust.Roots([]byte(ca)); err != nil {
			return nil, fmt.Errorf("the ca of the registration: %w", err)
		}
	}
	return n.dial(ctx, broker)
}

// dial connects to where the manager or its broker is, with TLS where the URL says so.
func (n network) dial(ctx context.Context, to *url.URL) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.Host)
	if err != nil || (to.Scheme != "https" && to.Scheme != "tls") {
		return conn, err
	}
	secured := tls.Client(conn, trust.Config(n.roots, trust.Name(to.Hostname(), n.manager.Hostname())))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, trust.Explain(err, "--manager", "--manager-ca")
	}
	return secured, nil
}

// explainConnect tells refused credentials, which a new registration mends, from all else.
func explainConnect(err error) error {
	if errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedNotAuthorised) {
		return ErrCredentials
	}
	return err
}

// grant is the Receipt of a subscription: a broker may answer that it refuses.
type grant struct {
	mqtt.Token
	filter string
}

// Error says why the filter is not granted.
func (g grant) Error() error {
	if err := g.Token.Error(); err != nil {
		return err
	}
	t, ok := g.Token.(*mqtt.SubscribeToken)
	if !ok || t.Result()[g.filter] > 2 {
		return errors.New("the broker refused it")
	}
	return nil
}

// Subscribe sends a SUBSCRIBE.
func (c *pahoConn) Subscribe(filter string) Receipt {
	return grant{c.client.Subscribe(filter, 1, nil), filter}
}

// Publish sends a PUBLISH.
func (c *pahoConn) Publish(topic string, qos byte, retained bool, payload []byte) Receipt {
	return c.client.Publish(topic, qos, retained, payload)
}

// Lost is closed once the connection is gone.
func (c *pahoConn) Lost() <-chan struct{} { return c.lost }

// Cause says why it is gone.
func (c *pahoConn) Cause() error { return c.cause }

// Disconnect sends a DISCONNECT.
func (c *pahoConn) Disconnect() { c.client.Disconnect(250) }

// Close ends the connection without a word, so that the broker publishes the last will, and waits until paho has ended.
func (c *pahoConn) Close() {
	c.conn.Close()
	select {
	case <-c.lost:
	case <-time.After(writeTime):
	}
}
