package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Access is what a client wants to do with a topic or a filter.
type Access int

// The kinds of access that Config.Allow decides about.
const (
	Publish   Access = iota + 1 // send to this topic, also by a last will
	Subscribe                   // subscribe to this filter
	Deliver                     // be sent what was published to this topic
)

// String returns the name of the access.
func (a Access) String() string {
	switch a {
	case Publish:
		return "publish"
	case Subscribe:
		return "subscribe"
	case Deliver:
		return "deliver"
	}
	return fmt.Sprintf("access(%d)", int(a))
}

var (
	// ErrRefused is what OnPublish returns (wrapped or not) for a message that will never be taken: it is acknowledged and
	// dropped. A client of MQTT 5 is told "not authorised" and the error's text; 3.1.1 has no words for it.
	ErrRefused = errors.New("refused")
	// ErrBadPayload is an ErrRefused whose reason is the payload: MQTT 5's "payload format invalid".
	ErrBadPayload = fmt.Errorf("%w: bad payload", ErrRefused)
	// ErrClosed is returned by Publish once Run has ended.
	ErrClosed = errors.New("broker closed")
	// ErrRetainedFull is returned by Publish where a retained message would exceed MaxRetained.
	ErrRetainedFull = errors.New("retained messages exceed their limit")
)

// Config is what a Broker needs to know. Zero means the default named at the field.
//
// All functions may be called from many goroutines at once. They run on the goroutine of the connection they are about; what
// they wait for, that client waits for, and nobody else does. Allow must be quick and must not call the Broker: it runs once
// per delivery, for a retained message under the lock that orders retained messages.
type Config struct {
	// Listeners are the addresses to listen on. None is possible: WebSocket serves through the owner's HTTP server.
	Listeners []Listener
	// Listen binds their addresses, as net.ListenConfig.Listen does. A connection that it accepts may be of any kind; its RemoteAddr is what
	// Login.Remote says. nil: TCP.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)
	// Authenticate admits a client (nil error) or not. The Client it returns is passed to all other functions; ID, Remote and
	// Protocol are filled in by the broker, and Username where it is empty. Required.
	Authenticate func(Login) (Client, error)
	// Allow decides about one topic or filter. For Subscribe it gets the filter as asked, of a shared subscription
	// ("$share/group/filter") the inner filter. For Deliver it gets each topic, so that a filter wider than the right it was
	// granted under still shows nothing more. Required.
	Allow func(c Client, a Access, topicOrFilter string) bool
	// OnConnect is called after a client was admitted, OnDisconnect once it has gone and its will was sent. Optional.
	OnConnect    func(c Client)
	OnDisconnect func(c Client)
	// OnPublish is called for every publish that Allow let through, in the order of the client's packets, before it is
	// delivered or acknowledged. nil: deliver and acknowledge. ErrRefused: acknowledge, do not deliver. Any other error: the
	// connection is closed without an acknowledgement, so that the client sends again (QoS 0: dropped, nobody would send
	// again). For a will any error means that it is dropped. The Payload may be kept, not changed. Optional.
	OnPublish func(c Client, m Message) error

	// MaxPacket is the largest packet taken from a client, and the largest payload that Publish takes, in bytes; 1 MiB.
	MaxPacket int
	// MaxClients is the number of admitted clients; 16,384.
	MaxClients int
	// MaxPending is the number of connections that have not yet been admitted; 1,024. A further one takes the place of the one that has been
	// silent for the longest, and is closed at once where all have sent their CONNECT.
	MaxPending int
	// MaxSubscriptions is the number of filters one client may hold; 1,024.
	MaxSubscriptions int
	// MaxRetained is the sum over all retained messages of topic, payload, forwarded properties and 512 bytes each, and of 320 bytes for each
	// level that their topics have, in bytes; 64 MiB.
	MaxRetained int
	// WriteBuffer is how many bytes wait for one client before it is closed as a slow consumer; 8 MiB.
	WriteBuffer int
	// ConnectTimeout is the time from accept to a complete CONNECT, TLS handshake included; 5 s.
	ConnectTimeout time.Duration
	// WriteTimeout is the time in which a client must take the next 32 KiB; 10 s.
	WriteTimeout time.Duration
	// KeepAliveMax is the longest keep-alive of an MQTT 5 client (it is told so); 5 min. A 3.1.1 client cannot be told and
	// keeps what it asked for; TCP keep-alive finds a dead one that asked for none.
	KeepAliveMax time.Duration
	// SessionExpiry is how long the session of a client that asks for one outlives its connection; 0: it does not. A queue
	// of a client that is away holds up to WriteBuffer bytes, then drops what is new.
	SessionExpiry time.Duration
	// SysInterval is the time between updates of $SYS/broker/...; 10 s, negative: none. They go where Allow lets them.
	SysInterval time.Duration
}

// Listener is one address to listen on, with TLS where TLS is not nil.
type Listener struct {
	Addr string
	TLS  *tls.Config
}

// Login is what a client says of itself and what the connection shows.
type Login struct {
	ClientID string // assigned by the broker where the client sent none
	Username string
	Password []byte
	Remote   net.Addr
	Protocol byte                 // 3 (MQTT 3.1), 4 (3.1.1) or 5
	Listener string               // "tcp", "tls" or "ws"
	TLS      *tls.ConnectionState // nil without TLS
}

// Client is an admitted client.
type Client struct {
	ID       string
	Username string
	Role     string // the owner's own, from Authenticate
	Value    any    // the owner's own, from Authenticate
	Remote   string
	Protocol byte
}

// Message is one publish.
type Message struct {
	Topic           string
	Payload         []byte
	QoS             byte
	Retain          bool
	ResponseTopic   string // MQTT 5
	CorrelationData []byte // MQTT 5
	Will            bool   // set when it comes from a last will
}

const (
	// maxConnect bounds a CONNECT: id, user name and password are far below it, a will's payload ends at 64 KiB.
	maxConnect = 256 << 10
	// maxClientID is beyond what any rights function wants to look at; MQTT asks for 23 only.
	maxClientID = 256
	// maxTopic and maxLevels keep the walk through the index short: it costs the square of the levels.
	maxTopic  = 4096
	maxLevels = 64
	// receiveMax is announced to MQTT 5 clients: how many QoS 2 publishes may be under way.
	receiveMax = 1024
)

// withDefaults checks cfg and fills in what is zero.
func (cfg Config) withDefaults() (Config, error) {
	var errs []error
	if cfg.Authenticate == nil {
		errs = append(errs, errors.New("authenticate is not set"))
	}
	if cfg.Allow == nil {
		errs = append(errs, errors.New("allow is not set"))
	}
	ints := []struct {
		name     string
		v        *int
		def, min int
	}{
		{"max packet", &cfg.MaxPacket, 1 << 20, 1 << 10},
		{"max clients", &cfg.MaxClients, 16384, 1},
		{"max pending", &cfg.MaxPending, 1024, 1},
		{"max subscriptions", &cfg.MaxSubscriptions, 1024, 1},
		{"max retained", &cfg.MaxRetained, 64 << 20, 1},
		{"write buffer", &cfg.WriteBuffer, 8 << 20, 64 << 10},
	}
	for _, f := range ints {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < f.min {
			errs = append(errs, fmt.Errorf("%s is %d, at least %d is needed", f.name, *f.v, f.min))
		}
	}
	if cfg.MaxPacket > 1<<28 {
		errs = append(errs, fmt.Errorf("max packet is %d, MQTT ends at %d", cfg.MaxPacket, 1<<28))
	}
	times := []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{
		{"connect timeout", &cfg.ConnectTimeout, 5 * time.Second},
		{"write timeout", &cfg.WriteTimeout, 10 * time.Second},
		{"keep-alive max", &cfg.KeepAliveMax, 5 * time.Minute},
	}
	for _, f := range times {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 0 {
			errs = append(errs, fmt.Errorf("%s is %v", f.name, *f.v))
		}
	}
	if cfg.SessionExpiry < 0 {
		errs = append(errs, fmt.Errorf("session expiry is %v", cfg.SessionExpiry))
	}
	if cfg.Listen == nil {
		cfg.Listen = new(net.ListenConfig).Listen
	}
	if cfg.SysInterval == 0 {
		cfg.SysInterval = 10 * time.Second
	}
	return cfg, errors.Join(errs...)
}
