package session

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"skerry.internal/messages"
)

// admission is what a registration gave. It is not changed afterwards.
type admission struct {
	messages.Welcome
	brokers []*url.URL
	at      time.Time     // when the Welcome came
	skew    time.Duration // the manager's clock minus ours at that moment
}

// clockSkew returns the manager's clock minus ours at now. It follows our clock when that is set after the registration, as on a
// board without a battery: what the monotonic clock did not see was a change of the time of day.
func (a *admission) clockSkew(now time.Time) time.Duration {
	wall := now.Round(0).Sub(a.at.Round(0))
	return a.skew + now.Sub(a.at) - wall
}

// interval returns the time between two telemetry messages.
func (a *admission) interval() time.Duration {
	return max(cmp.Or(a.TelemetryInterval.Std(), 5*time.Second), 100*time.Millisecond)
}

// register introduces the node to its manager. A *messages.Refusal in the error is the manager's own word.
func (s *Session) register(ctx context.Context) (*admission, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.pace.register, fmt.Errorf("not finished within %s", s.pace.register))
	defer cancel()
	a, err := s.introduce(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // what the closed connection said is of no use to anybody
		}
		return nil, fmt.Errorf("register at %s: %w", s.manager.Redacted(), err)
	}
	s.log.Info("registered", "node_id", a.ID, "cluster", a.Cluster, "kind", a.Kind, "clock_skew_ms", a.skew.Milliseconds())
	if s.cfg.Accepted != nil {
		s.cfg.Accepted(a.Welcome)
	}
	return a, nil
}

// introduce has the transport go through a registration and makes an admission of its Welcome.
func (s *Session) introduce(ctx context.Context) (*admission, error) {
	info := s.cfg.Info(ctx)
	welcome, err := s.transport.Register(ctx, func(hello messages.Hello) *messages.NodeInfo {
		s.sign(&info, hello)
		return &info
	})
	if err != nil {
		return nil, err
	}
	a := &admission{Welcome: welcome, at: time.Now()}
	if !a.Clock.IsZero() {
		a.skew = a.Clock.Sub(a.at)
	}
	a.brokers, err = brokerURLs(&a.Welcome, s.manager.Hostname())
	return a, err
}

// sign fills in what belongs to the registration itself.
func (s *Session) sign(info *messages.NodeInfo, hello messages.Hello) {
	public := s.cfg.Key.Public().(ed25519.PublicKey) //nolint:errcheck // by its contract
	info.Key = base64.StdEncoding.EncodeToString(public)
	info.Proof = messages.Prove(s.cfg.Key, hello)
	info.Token = s.cfg.Token
	info.Protocol = messages.Protocol
	info.BootID = s.cfg.BootID
	info.Clock = messages.At(time.Now())
	_, info.Epoch, _ = s.instances.Digest()
}

// payload is what crosses the wire at a registration.
type payload interface{ Validate() error }

// expect reads the event that has to come now into v. A refusal is returned as the error that it is. A manager that has waited for long
// says sc1 twice; the second one is answered already.
func expect(conn initConn, event string, v payload) error {
	name, arg, err := conn.next()
	if name == messages.HelloEvent && event != messages.HelloEvent && err == nil {
		name, arg, err = conn.next()
	}
	if err != nil {
		return fmt.Errorf("wait for %s: %w", event, err)
	}
	switch name {
	case event:
		if err := messages.Decode(arg, v); err != nil {
			return fmt.Errorf("%s: %w", event, err)
		}
		return nil
	case messages.RefusedEvent:
		return decodeRefusal(arg)
	default:
		return fmt.Errorf("event %q came, want %s", clip(name), event)
	}
}

func decodeRefusal(arg json.RawMessage) error {
	refusal := new(messages.Refusal)
	if err := messages.Decode(arg, refusal); err != nil {
		return fmt.Errorf("%s: %w", messages.RefusedEvent, err)
	}
	refusal.Message, refusal.Hint = clip(refusal.Message), clip(refusal.Hint)
	return refusal
}

// brokerURLs returns the brokers of a Welcome in order. A broker without a host, or with the address that means "all of this
// host", is at the host that answered the registration. Those that cannot be used are left out; an error says that none is left.
func brokerURLs(w *messages.Welcome, host string) ([]*url.URL, error) {
	var urls []*url.URL
	var errs []error
	for _, text := range w.Brokers[:min(len(w.Brokers), 16)] {
		u, err := brokerURL(text, host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		urls = append(urls, u)
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("no usable broker: %w", errors.Join(errs...))
	}
	return urls, nil
}

func brokerURL(text, host string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	port := u.Port()
	switch u.Scheme {
	case "tcp", "mqtt":
		port = cmp.Or(port, "1883")
	case "tls", "ssl", "mqtts":
		u.Scheme = "tls"
		port = cmp.Or(port, "8883")
	default:
		return nil, fmt.Errorf("broker %q: want a URL that begins with tcp:// or tls://", clip(text))
	}
	name := u.Hostname()
	if ip, err := netip.ParseAddr(name); name == "" || (err == nil && ip.IsUnspecified()) {
		name = host
	}
	if !isHost(name) || u.Opaque != "" { // tcp:host without slashes
		return nil, fmt.Errorf("broker %q: %q is no host", clip(text), clip(name))
	}
	u.Host = net.JoinHostPort(name, port)
	u.User = nil // the credentials are those of the Welcome
	return u, nil
}
