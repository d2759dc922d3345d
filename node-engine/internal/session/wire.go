package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"skerry.internal/messages"
)

const (
	writeTime   = 10 * time.Second // for one packet; a slower link counts as lost
	ackTime     = 30 * time.Second // for the answer to a packet; a broker that takes longer counts as lost
	goodbyeTime = 2 * time.Second  // for the last words of a clean end
)

// ErrCredentials says that a broker refuses what the last registration gave; the next one mends that.
var ErrCredentials = errors.New("the broker does not accept the credentials of the last registration")

var errAckTime = fmt.Errorf("the broker has not answered within %s", ackTime)

// Transport reaches a manager. A running node does so over the network; a simulation brings another.
type Transport interface {
	// Register goes through one registration: the manager's Hello is answered with what introduce makes of it. A *messages.Refusal in
	// the error is the manager's own word.
	Register(ctx context.Context, introduce func(messages.Hello) *messages.NodeInfo) (messages.Welcome, error)
	// Connect opens one MQTT connection with a clean session. receive is called with every message, in order, and does not block.
	Connect(ctx context.Context, broker *url.URL, login Login, receive func(topic string, payload []byte)) (Connection, error)
}

// Login is what a node says of itself to a broker.
type Login struct {
	messages.Welcome
	KeepAlive time.Duration
	Will      []byte // on the node's topic of presence, retained
}

// Connection is one MQTT connection. It lives once: whoever opened it opens the next.
type Connection interface {
	// Subscribe asks for a filter with QoS 1.
	Subscribe(filter string) Receipt
	// Publish sends a message. Messages leave in the order of the calls.
	Publish(topic string, qos byte, retained bool, payload []byte) Receipt
	// Lost is closed once the connection is gone, and Cause says why from then on.
	Lost() <-chan struct{}
	Cause() error
	// Disconnect ends it with a word, so that the last will is not published; Close without one. Both wait until it has ended.
	Disconnect()
	Close()
}

// Receipt tells how a packet fared. Done is closed once the broker has acknowledged it (QoS 1) or it has been written.
type Receipt interface {
	Done() <-chan struct{}
	Error() error
}

// wire is the session's use of a connection.
type wire struct {
	Connection
	addr string // of the broker
}

// openWire connects to one broker.
func (s *Session) openWire(ctx context.Context, a *admission, broker *url.URL, in *inbox) (*wire, error) {
	login := Login{Welcome: a.Welcome, KeepAlive: s.cfg.KeepAlive, Will: messages.Encode(&messages.Presence{BootID: s.cfg.BootID})}
	conn, err := s.transport.Connect(ctx, broker, login, in.receive)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", broker.Host, err)
	}
	return &wire{conn, broker.Host}, nil
}

func topic(node messages.NodeID, kind messages.Kind) string {
	return messages.Topic{Kind: kind, Node: node}.String()
}

// subscribe returns once the broker has granted the filter; before that nothing may be said that somebody answers.
func (w *wire) subscribe(ctx context.Context, filter string) error {
	if err := w.await(ctx, w.Subscribe(filter)); err != nil {
		return fmt.Errorf("subscribe to %s: %w", filter, err)
	}
	return nil
}

// publish returns once the broker has acknowledged the message (QoS 1) or it has been written (QoS 0).
func (w *wire) publish(ctx context.Context, topic string, qos byte, retained bool, payload any) error {
	if err := w.await(ctx, w.Publish(topic, qos, retained, messages.Encode(payload))); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

func (w *wire) await(ctx context.Context, r Receipt) error {
	timer := time.NewTimer(ackTime)
	defer timer.Stop()
	select {
	case <-r.Done():
		return r.Error()
	case <-w.Lost():
		return w.Cause()
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errAckTime
	}
}

// part ends the connection with the word that the node goes; the broker does not publish the last will then.
func (w *wire) part(ctx context.Context, log *slog.Logger, presence string, last *messages.Presence) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTime)
	defer cancel()
	if err := w.publish(ctx, presence, 1, true, last); err != nil {
		log.Warn("last presence not published, the last will says it", "err", err)
		w.Close()
		return
	}
	w.Disconnect()
}
